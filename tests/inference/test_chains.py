"""Chains against the layers one by one, on every instruction set."""

import copy
import operator
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from sparsebench.inference.chains import SparseChain
from sparsebench.inference.compressed_blocks import CompressedBlocks
from sparsebench.inference.compressed_rows import CompressedRows
from sparsebench.inference.compressed_tiles import CompressedTiles
from sparsebench.inference.layers import SparseLinear
from sparsebench.inference.regions import chain_of, find_regions, mutates, put_chain


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert found.is_contiguous()
    if expected.numel():
        assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


class Columnwise(nn.Module):
    """A random graph of linear layers, normalizations and sums over one or two inputs, its last results as output."""

    def __init__(self, widths, plan, outputs):
        super().__init__()
        self.plan, self.count = plan, outputs
        widths, self.parts = list(widths), nn.ModuleList()
        for kind, source, _, width, storage, bias, rectify in plan:
            source = source % len(widths)
            part: nn.Module = nn.Identity()
            if kind == "product":
                dense = nn.Linear(widths[source], width, bias)
                dense.weight.data.mul_(torch.rand_like(dense.weight) >= 0.5)
                part = SparseLinear(dense.weight, dense.bias, rectify, storage)
            elif kind == "normalize":
                part = nn.LayerNorm(widths[source], elementwise_affine=bias)
                if bias:
                    nn.init.normal_(part.weight)
                    nn.init.normal_(part.bias)
            if kind == "rectify":
                part = nn.ReLU()
            self.parts.append(part)
            widths.append(width if kind == "product" else widths[source])
        self.widths = widths
        self.eval().requires_grad_(False)

    def forward(self, *inputs):
        values = list(inputs)
        for (kind, source, other, *_), part in zip(self.plan, self.parts, strict=True):
            source = source % len(values)
            # The sum with another one of equal width, be it itself.
            same = [index for index in range(len(values)) if self.widths[index] == self.widths[source]]
            if kind == "add":
                values.append(operator.add(values[source], values[same[other % len(same)]]))
            elif kind == "rectify":
                values.append([torch.relu, part, lambda x: x.relu()][other % 3](values[source]))
            else:
                values.append(part(values[source]))
        return tuple(values[-self.count :])


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, SparseLinear) or super().is_leaf_module(m, module_qualified_name)


def traced(model, *inputs):
    """The graph and what each node gives."""
    names = ["one", "two"][: len(inputs)]
    scope: dict = {}
    exec(
        f"class Root(torch.nn.Module):\n def forward(self, {', '.join(names)}): return self.model({', '.join(names)})",
        {"torch": torch},
        scope,
    )
    root = scope["Root"]()
    root.model = model
    tracer = _Tracer()
    network = fx.GraphModule(root, tracer.trace(root))
    interpreter = fx.Interpreter(network, garbage_collect_values=False)
    interpreter.run(*inputs)
    return network, interpreter.env


STEPS = st.tuples(
    st.sampled_from(["product", "product", "normalize", "add", "rectify"]),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([1, 5, 16, 20, 33]),
    st.sampled_from([CompressedRows, CompressedTiles, CompressedBlocks]),
    st.booleans(),
    st.booleans(),
)
SHAPES = st.sampled_from([(1,), (3,), (8,), (2, 5), (17,), (4, 16), (3, 1, 30), (150,), (0, 4)])


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from([1, 5, 16, 20, 33]), min_size=1, max_size=2),
    st.lists(STEPS, min_size=2, max_size=9),
    SHAPES,
    st.integers(1, 3),
    st.booleans(),
)
@pytest.mark.usefixtures("threads")
def test_random_graphs_compute_the_same(path, widths, plan, shape, outputs, turned):
    model = Columnwise(widths, plan, min(outputs, len(plan)))
    inputs = [torch.randn(*shape, width) for width in widths]
    if turned:
        inputs = [x.transpose(0, -2).contiguous().transpose(0, -2) if x.dim() > 2 else x for x in inputs]
    network, values = traced(model, *inputs)
    expected = model(*inputs)
    regions = list(find_regions(network, {}, values))
    found = [(region, chain_of(network, region, {}, values)) for region in regions]
    for number, (region, chain) in enumerate(found):
        assert chain.features <= sum(values[node].shape[-1] for node in (*region.inputs, *region.nodes))
        put_chain(network, region, chain, f"chain_{number}")
    network.graph.eliminate_dead_code()
    network.graph.lint()
    network.recompile()
    for result, wanted in zip(network(*inputs), expected, strict=True):
        assert_close(result.contiguous(), wanted.contiguous())


class Block(nn.Module):
    """What is between two attentions of a Transformer."""

    def __init__(self, width: int, hidden: int, sparsity: float, storage=CompressedRows) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        sizes = {
            "out": (width, width),
            "up": (width, hidden),
            "down": (hidden, width),
            "key": (width, width),
            "value": (width, width),
        }
        for name, (inputs, outputs) in sizes.items():
            weight = torch.randn(outputs, inputs) / inputs**0.5 * (torch.rand(outputs, inputs) >= sparsity)
            setattr(self, name, SparseLinear(weight, torch.randn(outputs), name == "up", storage))
        self.eval().requires_grad_(False)

    def forward(self, mixed, x):  # in the order in which they are read
        x = x + self.out(mixed)
        x = x + self.down(self.up(self.norm(x)))
        normed = self.last(x)
        return x, self.key(normed), self.value(normed)


def chained(model, *inputs) -> SparseChain:
    network, values = traced(model, *inputs)
    (region,) = find_regions(network, {}, values)
    return chain_of(network, region, {}, values)


@pytest.mark.parametrize("columns", [1, 4, 16, 40, 64, 200])
@pytest.mark.parametrize("storage", [CompressedRows, CompressedTiles, CompressedBlocks])
@pytest.mark.usefixtures("threads")
def test_large_chains_in_several_threads(path, columns, storage):
    """Fewer panels than threads, as many, and more."""
    model = Block(256, 700, 0.3, storage)
    inputs = torch.randn(columns, 256), torch.randn(columns, 256)
    chain = chained(model, *inputs)
    assert len(chain.links) == 9
    for _ in range(5):
        for found, expected in zip(chain(*inputs), model(*inputs), strict=True):
            assert_close(found, expected)


def test_places_are_used_again():
    chain = chained(Block(64, 64, 0.5), torch.randn(3, 64), torch.randn(3, 64))
    assert chain.features <= 5 * 64


def test_other_batches_and_what_does_not_fit(path):
    model = Block(20, 30, 0.5)
    chain = chained(model, torch.randn(2, 3, 20), torch.randn(2, 3, 20))
    x = torch.randn(5, 7, 20)
    for inputs in (
        (x, x * 2),
        (x[:, :1], x[:, :1]),
        (x, x[:1]),  # a sum that broadcasts
        (x[0], x[1]),  # of fewer dimensions
        (x.transpose(0, 1), x.transpose(0, 1)),
        (x.expand(5, 7, 20), torch.randn(1, 1, 20).expand(5, 7, 20)),
        (x.permute(2, 0, 1).contiguous().permute(1, 2, 0), x),
    ):
        for found, expected in zip(chain(*inputs), model(*inputs), strict=True):
            assert found.shape == expected.shape
            assert (found - expected).abs().max() < 1e-4
    with pytest.raises(ValueError, match=r"got an input of shape \(5, 7, 10\)"):
        chain(x[..., :10], x)


def test_copies_and_new_tensors(path):
    """The addresses that the kernels get are those of the layers as they are now."""
    model, x = Block(20, 30, 0.5), torch.randn(3, 20)
    chain = chained(model, x, x)
    expected = chain(x, x)
    for again in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        for found, wanted in zip(again(x, x), expected, strict=True):
            assert found.equal(wanted)
    other = copy.deepcopy(chain)
    state = {
        name: torch.zeros_like(value) if "last.weight" in name or name.endswith("bias") else value
        for name, value in chain.state_dict().items()
    }
    other.load_state_dict(state, assign=True)
    for found, wanted in zip(other(x, x), other.network(x, x), strict=True):
        assert_close(found, wanted)
    assert "product: 5" in str(chain)


def test_mistakes_are_those_of_the_layers(path):
    chain = chained(Block(20, 30, 0.5), torch.randn(3, 20), torch.randn(3, 20))
    x = torch.randn(3, 20)
    with pytest.raises(ValueError, match=r"torch.float64 on cpu: expected torch.float32"):
        chain(x.double(), x.double())
    with pytest.raises(ValueError, match="no gradients"):
        chain(x.clone().requires_grad_(), x)
    with pytest.raises(ValueError, match="cannot be trained"):
        chain.train()(x, x)


class TwoWays(nn.Module):
    """The second product needs what comes from the first through something else: they cannot be one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (SparseLinear(torch.eye(4), None, False) for _ in range(3))

    def forward(self, one):
        y = self.first(one) + one
        z = torch.sigmoid(y)
        return self.second(z) + self.third(y) + y


def test_what_needs_something_between_is_another_chain():
    x = torch.randn(3, 4)
    network, values = traced(TwoWays().eval(), x)
    expected = network(x)
    regions = list(find_regions(network, {}, values))
    names = [[node.name for node in region.nodes] for region in regions]
    assert names[0] == ["model_first", "add", "model_third"]
    found = [(region, chain_of(network, region, {}, values)) for region in regions]
    for number, (region, chain) in enumerate(found):
        put_chain(network, region, chain, f"chain_{number}")
    network.recompile()
    assert_close(network(x), expected)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (lambda x: x.add_(1), True),
        (lambda x: torch.relu_(x), True),
        (lambda x: nn.functional.relu(x, inplace=True), True),
        (lambda x: x + x.relu() + torch.add(x, x), False),
    ],
)
def test_changes_in_place_are_seen(code, expected):
    assert mutates(fx.symbolic_trace(code)) == expected
