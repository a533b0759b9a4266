"""Sums made part of the convolution before them: only where nothing else changes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.inference import compilation, compile_sparse, whole
from sparsebench.inference.convolutions import SparseConvolution
from sparsebench.inference.folding import Added, Rectified, fold


class Block(nn.Module):
    """Two convolutions and what is done with them."""

    def __init__(self, combine) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.rectifier, self.pool = nn.ReLU(inplace=True), nn.AvgPool2d(3, 1, 1)
        self.combine = combine

    def forward(self, x):
        return self.combine(self, x)


def left(block, x):
    return block.first(x) + x


def right_and_rectified(block, x):
    return F.relu(block.pool(x) + block.first(x))


def in_place(block, x):
    y = block.first(x)
    y += x
    return block.rectifier(y)


def by_method(block, x):
    return block.first(x).add_(x).relu_()


def by_torch(block, x):
    return torch.add(block.first(x), block.second(x)).relu()


def of_a_number(block, x):
    return block.first(x) + x.size(0)


def of_another_shape(block, x):
    return F.relu(block.first(x) + x.mean((2, 3), keepdim=True))


def to_something_larger(block, x):
    return block.first(x[:1]) + x


def to_other_numbers(block, x):
    return block.first(x) + x.double()


def of_a_constant(block, x):
    return block.first(x) + 1


def scaled(block, x):
    return torch.add(block.first(x), x, alpha=2)


def read_twice(block, x):
    y = block.first(x)
    return (y + x) * y


def with_itself(block, x):
    y = block.first(x)
    return y + y


def written_on_the_way(block, x):
    x = x * 1
    y = block.first(x)
    x = block.rectifier(x)
    return y + x


def written_by_a_function(block, x):
    x = x * 1
    y = block.first(x)
    F.relu(x, inplace=True)
    return y + x


def written_by_a_method(block, x):
    x = x * 1
    y = block.first(x)
    return y + x.mul_(2)


FOLDED = [
    left,
    right_and_rectified,
    in_place,
    by_method,
    by_torch,
    of_a_number,
    of_another_shape,
    to_something_larger,
    to_other_numbers,
]
KEPT = [
    of_a_constant,
    scaled,
    read_twice,
    with_itself,
    written_on_the_way,
    written_by_a_function,
    written_by_a_method,
]


@pytest.mark.parametrize("combine", [*FOLDED, *KEPT], ids=lambda combine: combine.__name__)
def test_sums_compute_the_same(combine, monkeypatch):
    """Folded, in dense layers and in sparse ones."""
    model, x = Block(combine).eval().requires_grad_(False), torch.randn(2, 4, 6, 7)
    model.first.weight *= torch.rand_like(model.first.weight) > 0.5
    expected = copy.deepcopy(model)(x.clone())
    folded = fold(copy.deepcopy(model))
    sums = [module for module in folded.modules() if isinstance(module, Added)]
    assert len(sums) == (combine in FOLDED)
    torch.testing.assert_close(folded(x.clone()), expected, rtol=1e-4, atol=1e-5)

    monkeypatch.setattr(compilation, "least_times", lambda ways, seen: [2.0, 1.0])
    monkeypatch.setattr(whole, "take_turns", lambda ways, rounds: [2.0, 1.0, *(3.0 for _ in ways[2:])])
    compiled = compile_sparse(model, x)
    torch.testing.assert_close(compiled(x.clone()), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled(x[:1].clone()), model(x[:1].clone()), rtol=1e-4, atol=1e-5)
    sparse = [module for module in compiled.modules() if isinstance(module, SparseConvolution)]
    # What gets a number beside its input is not timed.
    assert bool(sparse) == (combine is not of_a_number)
    assert not sparse or sparse[0].rectify == any(isinstance(module, Rectified) for module in folded.modules())


def test_what_tracing_takes_for_a_new_sum_runs_as_it_is():
    def into_the_other(block, x):
        x = x * 1
        y = x
        y += block.first(x)
        return x + y

    model, x = Block(into_the_other).eval().requires_grad_(False), torch.randn(2, 4, 6, 7)
    model.first.weight *= torch.rand_like(model.first.weight) > 0.5
    torch.testing.assert_close(compile_sparse(model, x)(x), model(x), rtol=1e-4, atol=1e-5)


def test_dense_sums_are_in_place_where_they_can_be():
    layer = nn.Conv2d(2, 3, 1)
    added = Added(layer)
    x = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        assert added(x, 1.0).equal(layer(x) + 1.0)
        assert added(x, torch.ones(1, 3, 4, 4)).equal(layer(x) + 1.0)
    assert added.weight is layer.weight
    assert added.bias is layer.bias
