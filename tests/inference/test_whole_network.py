"""The network as a whole: memory format, parts of the batch, and whether its sparse layers stay."""

import copy
import operator
import pickle

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from sparsebench.inference import compilation, compile_sparse, whole
from sparsebench.inference.convolutions import SparseConvolution
from sparsebench.inference.folding import Arrangement, Traced
from sparsebench.inference.independence import examples_are_independent


def network(*last: nn.Module) -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), *last]
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            layer.weight *= torch.rand_like(layer.weight) > 0.7
    return model


@pytest.fixture
def fastest(monkeypatch):
    """Makes one of the ways to run the whole network the fastest, and the memory format that comes first or second."""

    def choose(way: int, memory_format: int = 1) -> None:
        monkeypatch.setattr(compilation, "least_times", lambda ways, seen: [2.0, 1.0])
        answers = iter([memory_format, way])

        def take_turns(ways, rounds):
            for run in ways:
                run()
            # Contiguous images are asked about; others have only one question.
            best = next(answers) if len(ways) == 2 else way
            return [float(index != best) for index in range(len(ways))]

        monkeypatch.setattr(whole, "take_turns", take_turns)

    return choose


def sparse_layers(model: nn.Module) -> int:
    return sum(isinstance(module, SparseConvolution) for module in model.modules())


def test_dense_where_the_whole_is_faster_dense(fastest):
    fastest(0)
    model, x = network(), torch.randn(5, 3, 9, 9)
    compiled = compile_sparse(model, x)
    assert sparse_layers(compiled) == 0
    assert {choice.sparse for choice in compiled.sparse_choices} == {False}
    assert {choice.reason for choice in compiled.sparse_choices} == {"the network as a whole is faster without"}
    assert all(choice.sparse_ms < choice.dense_ms for choice in compiled.sparse_choices)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("way", "rows"), [(1, None), (2, 1), (3, 4)])
def test_parts_of_the_batch(fastest, way, rows):
    fastest(way)
    model, x = network(nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(5, 3, 9, 9)
    compiled = compile_sparse(model, x)
    assert isinstance(compiled, Traced)
    assert compiled.arrangement.rows == rows
    assert sparse_layers(compiled) == 2
    calls = []
    compiled.get_submodule("_traced").register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    for count in (5, 1, 8):
        more = torch.randn(count, 3, 9, 9)
        calls.clear()
        torch.testing.assert_close(compiled(more), model(more), rtol=1e-4, atol=1e-5)
        assert sum(calls) == count
        assert max(calls) == min(rows or count, count)
    again = pickle.loads(pickle.dumps(copy.deepcopy(compiled)))
    assert again.arrangement == compiled.arrangement
    assert again(x).equal(compiled(x))


def test_images_without_a_batch_are_not_cut(fastest):
    fastest(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval().requires_grad_(False)
    model[0].weight *= torch.rand_like(model[0].weight) > 0.7
    compiled = compile_sparse(model, torch.randn(5, 3, 9, 9))
    assert compiled.arrangement.rows == 1
    image = torch.randn(3, 9, 9)
    torch.testing.assert_close(compiled(image), model(image), rtol=1e-4, atol=1e-5)


class OverTheBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


def test_a_batch_whose_examples_meet_stays_whole(fastest):
    """Also where the example cannot show it: all its images are the same."""
    fastest(1)
    model, x = network(OverTheBatch()), torch.ones(4, 3, 9, 9)
    compiled = compile_sparse(model, x)
    assert compiled.arrangement.rows is None
    more = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(compiled(more), model(more), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_memory_format(fastest, last):
    fastest(1, memory_format=0 if last else 1)
    model, x = network(), torch.randn(1, 3, 9, 9)
    compiled = compile_sparse(model, x)
    assert compiled.arrangement == Arrangement(channels_last=last)
    found = compiled(x)
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert ("channels_last" in repr(compiled)) == last


def test_images_that_are_channels_last_stay_so(fastest):
    fastest(1, memory_format=0)
    compiled = compile_sparse(network(), torch.randn(1, 3, 9, 9).to(memory_format=torch.channels_last))
    assert compiled.arrangement == Arrangement()


INDEPENDENT = [
    lambda x: F.relu(x) + x,
    lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 1), 1),
    lambda x: x.view(x.size(0), -1),
    lambda x: x.reshape(x.shape[0], -1),
    lambda x: x.mean((2, 3)),
    lambda x: torch.cat([x, x], dim=1),
]
DEPENDENT = [
    lambda x: x + x.mean(0),
    lambda x: x.mean(),
    lambda x: x.mean(-4),
    lambda x: x[:1] + x,
    lambda x: x / x.size(0),
    lambda x: x + x.shape[0],
    lambda x: torch.cat([x, x]),
    lambda x: F.softmax(x, 0),
    lambda x: x.transpose(0, 1),
    lambda x: x.flip(0),
    lambda x: operator.matmul(x, x),
]


@pytest.mark.parametrize("function", INDEPENDENT)
def test_examples_that_are_computed_each_by_itself(function):
    assert examples_are_independent(fx.symbolic_trace(function))


@pytest.mark.parametrize("function", DEPENDENT)
def test_examples_that_may_meet(function):
    assert not examples_are_independent(fx.symbolic_trace(function))


def test_normalization_by_the_batch():
    assert examples_are_independent(fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(3))))
    assert not examples_are_independent(fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))))


def test_code_as_it_was_stays_where_nothing_is_clearly_faster(monkeypatch):
    """A twentieth is not resolved: a small network must not become slower for what one measurement said."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    nearly, clearly = ([time, *(2.0 for _ in range(8))] for time in (0.97, 0.9))
    for times, is_traced in ((nearly, False), (clearly, True)):
        monkeypatch.setattr(whole, "take_turns", lambda ways, rounds, times=times: [*times[: len(ways) - 1], 1.0])
        assert isinstance(compile_sparse(model, torch.randn(2, 3, 5, 5)), Traced) == is_traced


def test_code_as_it_was_where_that_is_fastest(monkeypatch):
    """In a small network the calls that folding adds may cost more than the passes that it saves."""
    monkeypatch.setattr(whole, "take_turns", lambda ways, rounds: [*(2.0 for _ in ways[1:]), 1.0])
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.randn(1, 6)
    compiled = compile_sparse(model, x)
    assert type(compiled) is nn.Sequential
    assert [type(part) for part in compiled] == [nn.Linear, nn.ReLU, nn.Linear]
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    assert [choice.reason for choice in compiled.sparse_choices] == ["no zeros", "no zeros"]
