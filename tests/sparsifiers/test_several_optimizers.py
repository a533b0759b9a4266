"""One network, several optimizers: a step is complete once each has made one."""

import pytest
import torch
from masked_toys import classifier, dropped_weights_are_zero, loss_of, magnitude
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.optimizer_state import clean_optimizer_state

MAKE = {
    "magnitude-returning": lambda: magnitude(policy="returning"),
    "rigl": lambda: sparsebench.rigl(sparsity=0.8, begin=1, end=9, frequency=2, seed=3),
    "snfs": lambda: sparsebench.snfs(sparsity=0.8, begin=1, end=9, frequency=2, seed=3),
    "variational-dropout": lambda: sparsebench.variational_dropout(penalty=0.003, end=6),
}


def split(model):
    """The parameters of the convolution, and all others."""
    first = [parameter for name, parameter in model.named_parameters() if name.startswith("convolution")]
    return first, [parameter for name, parameter in model.named_parameters() if not name.startswith("convolution")]


def trained(method, optimizers_of, order=1):
    model = classifier()
    sparsifier = MAKE[method]()
    sparsifier.prepare(model)
    optimizers = optimizers_of(model)
    sparsifier.attach(optimizers)
    steps = []
    for step in range(12):
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.manual_seed(step)
        (loss_of(model, step) + sparsifier.penalty()).backward()
        for optimizer in optimizers[::order]:
            optimizer.step()
            steps.append(sparsifier.step)
            if method != "variational-dropout":
                assert dropped_weights_are_zero(model, sparsifier)
    return model, sparsifier, steps


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("method", MAKE)
def test_two_optimizers_train_as_one_that_holds_all(method, order):
    def one(model):
        return [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)]

    def two(model):
        return [torch.optim.SGD(parameters, lr=0.1, momentum=0.9) for parameters in split(model)]

    model, sparsifier, _ = trained(method, one)
    other, beside, steps = trained(method, two, order)
    assert steps == [(number + 1) // 2 for number in range(24)]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(other.named_parameters())[name]), name
    assert all(torch.equal(mask, beside.masks()[name]) for name, mask in sparsifier.masks().items())


def test_muon_for_matrices_and_adamw_for_the_rest():
    def optimizers(model):
        matrices = [model.hidden.weight, model.head.weight]
        rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
        return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.01)]

    _, sparsifier, _ = trained("magnitude-returning", optimizers)
    assert sparsifier.step == 12
    assert sparsifier.sparsity == pytest.approx(0.8, abs=0.005)


def test_a_weight_that_none_of_them_holds_is_named():
    model, sparsifier = classifier(), magnitude()
    sparsifier.prepare(model)
    optimizers = [torch.optim.SGD([model.convolution.weight]), torch.optim.SGD([model.head.weight])]
    with pytest.raises(SparsebenchError, match=r"^the optimizer does not hold 'hidden.weight'.*attach to all where there are"):
        sparsifier.attach(optimizers)
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in optimizers)


def test_an_optimizer_that_makes_two_steps_before_the_other_makes_one():
    """As where one part of a network is trained more often: dropped weights are zero at any time, and one step is complete."""
    model, sparsifier = classifier(), magnitude(policy="gone")
    sparsifier.prepare(model)
    first, second = (torch.optim.SGD(parameters, lr=0.1, momentum=0.9) for parameters in split(model))
    sparsifier.attach([first, second])
    for step in range(12):
        for optimizer in (first, first, second):
            loss_of(model, step).backward()
            optimizer.step()
            assert dropped_weights_are_zero(model, sparsifier)
    assert sparsifier.step == 12
    assert sparsifier.sparsity == pytest.approx(0.8, abs=0.005)


class Around(torch.optim.Optimizer):
    """An optimizer that leaves its work to one inside it, as ZeroRedundancyOptimizer does, under a name of its own."""

    def __init__(self, parameters, **options):
        self.inside = torch.optim.SGD(parameters, **options)
        super().__init__(self.inside.param_groups, {})

    def step(self, closure=None):
        return self.inside.step(closure)


def test_what_an_inner_optimizer_remembers_is_forgotten_too():
    runs = {}
    for kind in (torch.optim.SGD, Around):
        model, sparsifier = classifier(), magnitude(policy="returning")
        sparsifier.prepare(model)
        optimizer = kind(list(model.parameters()), lr=0.1, momentum=0.9)
        sparsifier.attach(optimizer)
        for step in range(12):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
        runs[kind] = model
    for one, other in zip(runs[torch.optim.SGD].parameters(), runs[Around].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_state_that_two_optimizers_share_is_cleaned_once():
    weight = nn.Parameter(torch.ones(4))
    outer = Around([weight], lr=0.1, momentum=0.9)
    outer.state = outer.inside.state
    outer.state[weight]["momentum_buffer"] = torch.ones(4)
    clean_optimizer_state(outer, [weight], [torch.tensor([1.0, 0.0, 1.0, 0.0])])
    assert outer.state[weight]["momentum_buffer"].tolist() == [1.0, 0.0, 1.0, 0.0]
