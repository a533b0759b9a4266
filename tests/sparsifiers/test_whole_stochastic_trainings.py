"""Whole trainings of variational dropout and L0 against textbook ones in float64, step by step.

The oracle writes the formulas out with torch's elementary functions and lets autograd differentiate them; it shares with the
package nothing but torch's default generator, and the order in which layers draw from it.
"""

import contextlib
import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import sparsebench
from sparsebench.sparsifiers.keyed_generator import keyed_generator

torch.set_num_threads(1)


def progress(step, begin, end, shape):
    """How far the penalty's weight has risen."""
    if step >= end:
        return 1.0
    passed = (step - begin) / (end - begin) if step > begin else 0.0
    return passed if shape == "linear" else 1 - (1 - passed) ** 3


def log_alpha(weight, log_sigma2):
    return log_sigma2 - torch.log(weight**2 + 1e-8)


class VariationalDropoutTextbook:
    """Molchanov et al. (2017): eq. 14, and the local reparameterization of Kingma et al. (2015)."""

    auxiliary = "log_sigma2"

    def __init__(self, noise):
        self.noise = noise

    def start(self, name, weight):
        return torch.full_like(weight, -4.0)

    def output(self, inputs, weight, log_sigma2, bias):
        if self.noise == "weight":
            return F.linear(inputs, weight + torch.exp(log_sigma2 / 2) * torch.randn_like(weight), bias)
        mean = F.linear(inputs, weight, bias)
        deviation = torch.sqrt(F.linear(inputs**2, torch.exp(log_sigma2)) + 1e-8)
        drawn = torch.randn(mean.shape if self.noise == "position" else (len(mean), 1, mean.shape[-1]), dtype=mean.dtype)
        return mean + deviation * drawn

    def divergence(self, weight, log_sigma2):
        alpha = log_alpha(weight, log_sigma2).clamp(-8, 8)
        return (0.63576 - 0.63576 * torch.sigmoid(1.87320 + 1.48695 * alpha) + 0.5 * torch.log(1 + torch.exp(-alpha))).sum()

    def evaluated(self, weight, log_sigma2, threshold):
        return torch.where(log_alpha(weight, log_sigma2) < threshold, weight, 0.0)


class HardConcreteTextbook:
    """Louizos et al. (2018): eq. 10 to 13, with beta = 2/3, gamma = -0.1, zeta = 1.1."""

    auxiliary = "log_alpha"

    def __init__(self, seed):
        self.seed = seed

    def start(self, name, weight):
        generator = keyed_generator(self.seed, name)
        return torch.empty(weight.shape, dtype=torch.float32).normal_(0.5, 0.01, generator=generator).to(weight.dtype)

    def output(self, inputs, weight, alpha, bias):
        u = torch.rand_like(weight)
        stretched = torch.sigmoid((torch.log(u + 1e-8) - torch.log(1 - u) + alpha) / (2 / 3)) * 1.2 - 0.1
        return F.linear(inputs, weight * stretched.clamp(0, 1), bias)

    def divergence(self, weight, alpha):
        return torch.sigmoid(alpha - 2 / 3 * math.log(0.1 / 1.1)).sum()

    def evaluated(self, weight, alpha, threshold):
        return weight * (torch.sigmoid(alpha) * 1.2 - 0.1).clamp(0, 1)


def batch(seed, step, widths, positions):
    generator = torch.Generator().manual_seed(seed * 100 + step)
    return tuple(torch.randn(3, positions, width, generator=generator, dtype=torch.float64) for width in (widths[0], widths[-1]))


def network(widths, start, spread):
    with torch.random.fork_rng():
        torch.manual_seed(start)
        layers = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.Tanh())][:-1]
        model = nn.Sequential(*layers).double()
        with torch.no_grad():  # weights of all magnitudes, so that log alpha passes its bounds on both sides
            for layer in model[::2]:
                layer.weight.mul_(10.0 ** (spread * torch.randn(layer.weight.shape, dtype=torch.float64)))
        return model


@st.composite
def trainings(draw):
    begin = draw(st.integers(0, 4))
    return {
        "widths": draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)),
        "positions": draw(st.integers(1, 3)),
        "start": draw(st.integers(0, 1_000)),
        "spread": draw(st.sampled_from([0.0, 0.5, 2.0])),
        "steps": draw(st.integers(2, 8)),
        "begin": begin,
        "end": begin + draw(st.integers(0, 6)),
        "shape": draw(st.sampled_from(["linear", "cubic"])),
        "penalty": draw(st.sampled_from([0.0, 1e-3, 0.3, 5.0])),
        "scale": draw(st.sampled_from([1.0, 7.0])),
        "optimizer": draw(st.sampled_from([("SGD", {"momentum": 0.9}), ("Adam", {"eps": 1e-3})])),
    }


def trained_like_the_textbook(make, textbook, thresholds, case):
    widths, (kind, options) = case["widths"], case["optimizer"]
    model = network(widths, case["start"], case["spread"])
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    auxiliaries = {n: textbook.start(n, w) for n, w in weights.items() if n.endswith("weight")}
    for value in (*weights.values(), *auxiliaries.values()):
        value.requires_grad_(True)
    sparsifier = make(penalty=case["penalty"], begin=case["begin"], end=case["end"], shape=case["shape"])
    sparsifier.prepare(model)
    optimizers = [
        getattr(torch.optim, kind)(groups, **options)
        for groups in (
            sparsifier.parameter_groups(lr=0.02, auxiliary_lr_scale=case["scale"]),
            [{"params": [*weights.values()], "lr": 0.02}, {"params": [*auxiliaries.values()], "lr": 0.02 * case["scale"]}],
        )
    ]
    sparsifier.attach(optimizers[0])

    def through(values, evaluated=None):
        for position in range(len(widths) - 1):
            name, bias = f"{2 * position}.weight", weights[f"{2 * position}.bias"]
            if evaluated is None:
                values = textbook.output(values, weights[name], auxiliaries[name], bias)
            else:
                values = F.linear(values, evaluated[name], bias)
            values = values.tanh() if position < len(widths) - 2 else values
        return values

    def close(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)

    for step in range(case["steps"]):
        inputs, targets = batch(case["start"], step, widths, case["positions"])
        weight_now = case["penalty"] * progress(step, case["begin"], case["end"], case["shape"])
        losses = []
        for own in (True, False):
            torch.manual_seed(1_000 * case["start"] + step)
            optimizers[0 if own else 1].zero_grad()
            output = model(inputs) if own else through(inputs)
            penalty = (
                sparsifier.penalty()
                if own
                else weight_now * sum(textbook.divergence(weights[name], auxiliary) for name, auxiliary in auxiliaries.items())
            )
            loss = F.mse_loss(output, targets) + penalty
            loss.backward()
            losses.append(loss.detach())
        # A training of the textbook that diverges has no end that could be compared: large weights can make it do so.
        assume(bool(losses[1].isfinite()))
        close(*losses)
        optimizers[1].step()
        assume(all(bool((value.abs() < 1e100).all()) for value in (*weights.values(), *auxiliaries.values())))
        optimizers[0].step()
        parameters = dict(model.named_parameters())
        for name, weight in weights.items():
            close(parameters[name].detach(), weight.detach())
        for name, auxiliary in auxiliaries.items():
            close(parameters[name.removesuffix("weight") + textbook.auxiliary].detach(), auxiliary.detach())
    with torch.no_grad():
        model.eval()
        points = list(sparsifier.points())
        assert len(points) == len(thresholds)
        for point, threshold in zip(points, thresholds, strict=True):
            evaluated = {name: textbook.evaluated(weights[name], own, threshold) for name, own in auxiliaries.items()}
            zeros = sum(int((w == 0).sum()) for w in evaluated.values()) / sum(w.numel() for w in evaluated.values())
            assert point.threshold == threshold
            assert point.sparsity == pytest.approx(zeros, abs=1e-12)
            with point:
                close(model(inputs), through(inputs, evaluated))
        first = {name: textbook.evaluated(weights[name], own, thresholds[0]) for name, own in auxiliaries.items()}
        unfinished = case["penalty"] > 0.0 and case["steps"] < case["end"]
        with pytest.warns(UserWarning, match="of a schedule that arrives at") if unfinished else contextlib.nullcontext():
            final = dict(sparsifier.finalize().named_parameters())
        for name, weight in first.items():
            close(final[name].detach(), weight)
            assert torch.equal(final[name] == 0, weight == 0)


@settings(max_examples=60)
@given(
    trainings(),
    st.sampled_from(["example", "position", "weight"]),
    st.lists(st.sampled_from([-2.5, 0.0, 1.3, 3.0, 9.0]), min_size=1, max_size=3),
)
def test_variational_dropout_trains_as_its_formulas_say(case, noise, thresholds):
    def make(**arguments):
        return sparsebench.variational_dropout(**arguments, noise=noise, thresholds=thresholds, initial_log_sigma2=-4.0)

    trained_like_the_textbook(make, VariationalDropoutTextbook(noise), thresholds, case)


@settings(max_examples=60)
@given(trainings(), st.integers(0, 99))
def test_l0_regularization_trains_as_its_formulas_say(case, seed):
    def make(**arguments):
        return sparsebench.l0_regularization(**arguments, initial_log_alpha=0.5, seed=seed)

    trained_like_the_textbook(make, HardConcreteTextbook(seed), [None], case)
