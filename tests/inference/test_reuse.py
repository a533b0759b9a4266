"""Sums written over what was added: only where nobody sees the difference."""

import copy

import pytest
import torch
from pretended_times import pretend_sparse_is_fastest
from torch import fx, nn
from torch.nn import functional as F

from sparsebench.inference import compile_sparse
from sparsebench.inference.convolutions import SparseConvolution
from sparsebench.inference.reuse import write_sums_in_place


class Residual(nn.Module):
    """Two blocks like those of a ResNet, and what else is done with what they give."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.first, self.one, self.two, self.three, self.four = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(5))
        self.code = code
        with torch.no_grad():
            for part in self.children():
                part.weight.mul_(torch.rand_like(part.weight) < 0.4)
        self.eval().requires_grad_(False)

    def forward(self, x):
        if self.code == "input":
            return F.relu(self.one(self.first(x)) + x)
        x = F.relu(self.first(x))
        if self.code == "view":
            seen = x.flatten(1)
        y = F.relu(self.two(F.relu(self.one(x))) + x)
        z = self.four(F.relu(self.three(y))) + y
        if self.code == "returned":
            return z, y
        if self.code == "read later":
            return z * y
        if self.code == "view":
            return z.flatten(1) * seen
        if self.code == "itself":
            return self.one(z) + z
        return z


def sums_in_place(compiled: nn.Module) -> int:
    return sum(
        "out" in node.kwargs for part in compiled.modules() if isinstance(part, fx.GraphModule) for node in part.graph.nodes
    )


@pytest.mark.parametrize(
    ("code", "expected"), [("plain", 2), ("returned", 1), ("read later", 1), ("view", 1), ("itself", 2), ("input", 0)]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_is_read_again_stays(path, code, expected, memory_format, monkeypatch):
    pretend_sparse_is_fastest(monkeypatch)
    model = Residual(code)
    x = torch.randn(3, 6, 7, 9).to(memory_format=memory_format)
    compiled = compile_sparse(model, x)
    assert sums_in_place(compiled) == expected
    kept = x.clone()
    for network in (compiled, copy.deepcopy(compiled)):
        torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network(x[:1, :, :5]), model(x[:1, :, :5]), rtol=1e-4, atol=1e-4)
    assert x.equal(kept)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_result_takes_the_memory_that_is_offered_where_it_fits(path, memory_format):
    layer = nn.Conv2d(6, 5, 3, padding=1).requires_grad_(False)
    sparse, x = SparseConvolution(layer, True), torch.randn(2, 6, 4, 8).to(memory_format=memory_format)
    added = torch.randn(2, 5, 4, 8).to(memory_format=memory_format)
    expected = F.relu(layer(x) + added)
    for out in (torch.empty(2, 5, 4, 7), torch.empty(2, 5, 4, 8, dtype=torch.float64), torch.empty(2, 5, 8, 4).transpose(2, 3)):
        found = sparse(x, added, out=out)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert found.data_ptr() != out.data_ptr()
    found = sparse(x, added, out=added)
    assert found is added
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_layers_that_stay_dense_are_called_as_before():
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_module("a", (x,))
    graph.output(graph.call_module("b", (first, first)))
    network = fx.GraphModule({"a": nn.Conv2d(3, 3, 1), "b": nn.Bilinear(3, 3, 3)}, graph)
    assert write_sums_in_place(network) == 0
