"""Gradients of dropped weights are dense after a step where the optimizer treats weights alone: nothing may come of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_toys import batch, case_name, matrices, optimizer_cases
from torch import nn

import sparsebench
from sparsebench.sparsifiers.masked.optimizer_state import EACH_ALONE

ALONE = [case for case in optimizer_cases() if case[0] in EACH_ALONE]
METHODS = {
    "gone": lambda **times: sparsebench.magnitude_pruning(sparsity=0.7, policy="gone", **times),
    "returning": lambda **times: sparsebench.magnitude_pruning(sparsity=0.7, policy="returning", allocation="global", **times),
    "random, returning": lambda **times: sparsebench.random_pruning(sparsity=0.5, policy="returning", seed=4, **times),
    "blocks, returning": lambda **times: sparsebench.magnitude_pruning(sparsity=0.6, structure="block:2x2", **times),
    "set": lambda **times: sparsebench.set_training(sparsity=0.6, seed=4, **times),
    "static": lambda **times: sparsebench.static_sparse_training(sparsity=0.6),
}


def training(case, method, times, seed, factor, steps):
    """What can be read after every step: weights, what is kept aside, and the optimizer's memory of kept weights.

    Before every step the gradients of dropped weights become random numbers times `factor`; zeros where it is None.
    """
    kind, options = case
    model = matrices(seed)
    sparsifier = METHODS[method](**times)
    sparsifier.prepare(model)
    optimizer = kind(model.parameters(), **options)
    generator = torch.Generator().manual_seed(seed)

    def replace(*_):
        masks = sparsifier.masks()
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            other = torch.zeros_like(drawn) if factor is None else drawn * factor
            parameter.grad = torch.where(masks[name], parameter.grad, other)

    optimizer.register_step_pre_hook(replace)
    sparsifier.attach(optimizer)
    seen, returned = [], 0
    for step in range(steps):
        before = sparsifier.masks()
        optimizer.zero_grad()
        inputs, targets = batch(seed + step, (8, 8))
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        masks = sparsifier.masks()
        saved = sparsifier.state_dict()
        reached = [value for value in saved.values() if isinstance(value, dict)]
        now = [tensor.clone() for part in reached for tensor in part.values() if isinstance(tensor, torch.Tensor)]
        for name, parameter in model.named_parameters():
            now.append(parameter.detach().clone())
            assert bool((parameter.detach()[~masks[name]] == 0).all())
            returned += int((masks[name] & ~before[name]).sum())
            for value in optimizer.state[parameter].values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    # Where masks change, all that is not kept begins anew; else the memory of dropped weights is not defined.
                    changed = not torch.equal(masks[name], before[name])
                    now.append(value.clone() if changed else value[masks[name]])
        seen.append(now)
    return seen, returned


@pytest.mark.parametrize("case", ALONE, ids=case_name)
def test_peers_row_8_gradients_of_dropped_weights_reach_nothing(case):
    """PEERS 8 and 10: neither weights, nor values kept aside, nor the optimizer's memory of what returns; bit for bit."""

    @settings(max_examples=4)
    @given(
        st.sampled_from(sorted(METHODS)),
        st.integers(0, 3),
        st.integers(0, 6),
        st.integers(1, 3),
        st.integers(0, 500),
        st.sampled_from([1.0, 1e3, 1e-3]),
    )
    def check(method, begin, length, frequency, seed, factor):
        times = {"begin": begin, "end": begin + length, "frequency": frequency}
        expected, found = (training(case, method, times, seed, scale, 9)[0] for scale in (None, factor))
        for step, pair in enumerate(zip(expected, found, strict=True)):
            assert len(pair[0]) == len(pair[1])
            assert all(map(torch.equal, *pair)), f"after step {step + 1}"

    check()


@pytest.mark.parametrize("method", ["random, returning", "set"])
@pytest.mark.parametrize("case", ALONE, ids=case_name)
def test_what_returns_knows_nothing_of_the_gradients_it_had_while_away(case, method):
    times = {"begin": 1, "end": 9, "frequency": 2}
    (expected, returned), (found, _) = (training(case, method, times, 7, scale, 12) for scale in (None, 1e3))
    assert returned > 10
    for pair in zip(expected, found, strict=True):
        assert all(map(torch.equal, *pair))
