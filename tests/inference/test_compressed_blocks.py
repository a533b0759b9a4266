"""Blocks of 16 outputs by one input, on every instruction set, against sums written out."""

import copy
import pickle

import numpy as np
import pytest
import torch
from built_kernels import kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsebench.inference import compilation, compile_sparse, compressed_blocks, whole
from sparsebench.inference.compressed_blocks import CompressedBlocks
from sparsebench.inference.compressed_rows import CompressedRows
from sparsebench.inference.layers import SparseLinear
from sparsebench.sparsifiers.masked.structures import structure_by_name


def block_weight(outputs: int, inputs: int, sparsity: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(-(-outputs // 16), inputs, generator=generator) >= sparsity
    return torch.randn(outputs, inputs, generator=generator) * kept.repeat_interleave(16, 0)[:outputs]


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "features last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "images last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
}
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 129]))
# Up to eight columns are multiplied where they lie.
COLUMNS = st.one_of(st.tuples(st.integers(1, 3), st.integers(1, 70)), st.tuples(st.just(1), st.integers(1, 9)))


@settings(max_examples=60)
@given(
    st.tuples(SIZES, SIZES),
    st.one_of(COLUMNS, st.tuples(st.integers(1, 9), st.just(1))),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.sampled_from(sorted(LAYOUTS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
@pytest.mark.usefixtures("threads")
def test_product_is_the_sum_by_definition(path, sizes, columns, sparsity, layout, features_last, with_bias, rectify, seed):
    weight, (images, positions) = block_weight(*sizes, sparsity, seed), columns
    bias = torch.randn(sizes[0]) if with_bias else None
    x = torch.randn(images, sizes[1], positions)
    # Written to the last element and not beyond: what surrounds the output stays.
    around = torch.full((images * positions * sizes[0] + 128,), 7.0)
    inside = around[64:-64]
    out = inside.view(images, positions, sizes[0]).transpose(1, 2) if features_last else inside.view(images, sizes[0], positions)
    CompressedBlocks.of(weight).multiply(LAYOUTS[layout](x), out, bias, rectify)
    expected = np.einsum("of,bfp->bop", weight.double().numpy(), x.double().numpy())
    if bias is not None:
        expected += bias.double().numpy()[:, None]
    expected = torch.tensor(np.maximum(expected, 0) if rectify else expected, dtype=torch.float32)
    assert (out - expected).abs().max() <= 1e-4 * max(1e-3, float(expected.abs().max()))
    assert bool((around[:64] == 7).all())
    assert bool((around[-64:] == 7).all())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(1,), (4,), (16,), (150,), (5, 7)])
def test_layer_large_enough_for_several_threads(path, shape):
    dense = nn.Linear(1500, 328)
    dense.weight.data.copy_(block_weight(328, 1500, 0.5, 0))
    layer, x = SparseLinear(dense.weight, dense.bias, True, CompressedBlocks), torch.randn(*shape, 1500)
    with torch.no_grad():
        expected = torch.relu(dense(x))
        assert (layer(x) - expected).abs().max() <= 1e-4 * float(expected.abs().max())
    assert layer.weight.equal(dense.weight)


@settings(max_examples=30)
@given(st.integers(1, 50), st.integers(0, 20), st.sampled_from([0.0, 0.3, 0.95]))
def test_matrix_comes_back_and_fill_is_counted(outputs, inputs, sparsity):
    weight = torch.randn(outputs, inputs) * (torch.rand(outputs, inputs) >= sparsity)
    blocks = CompressedBlocks.of(weight)
    assert blocks.dense().equal(weight)
    within = sum(min(16, outputs - r) for r in range(0, outputs, 16) for f in range(inputs) if bool(weight[r : r + 16, f].any()))
    assert blocks.fill == pytest.approx(int(weight.count_nonzero()) / within if within else 1.0)
    assert CompressedBlocks.of(block_weight(outputs, inputs, 0.5, 0)).fill == 1.0


def test_structure_of_the_sparsifiers_is_stored_in_full_blocks():
    """Which 16 outputs belong together is the same there and here."""
    layer = nn.Linear(10, 36)
    structure = structure_by_name("block:16x1")
    units = structure.reduce(layer.weight.detach().abs(), layer)
    mask = structure.expand(torch.rand(units.shape) < 0.3, layer.weight.shape, layer)
    blocks = CompressedBlocks.of(layer.weight * mask)
    assert blocks.fill == 1.0
    assert len(blocks.columns) < units.numel()


def test_layers_print_pickle_and_copy(path):
    layer = SparseLinear(block_weight(40, 30, 0.8, 2), torch.randn(40), True, CompressedBlocks)
    x = torch.randn(5, 30)
    expected = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert again(x).equal(expected)
    sparsity = 1 - int(layer.weight.count_nonzero()) / 1200
    assert str(layer) == f"SparseLinear(30, 40, bias=True, relu=True, sparsity={sparsity:.3f})"


@pytest.mark.parametrize(("times", "storage"), [((3.0, 2.0, 1.0), CompressedBlocks), ((3.0, 1.0, 2.0), CompressedRows)])
def test_compiled_as_what_is_faster(monkeypatch, times, storage):
    chosen = kernels("generic")
    for module in (compilation, compressed_blocks):
        monkeypatch.setattr(module, "load_kernels", lambda: chosen)
    monkeypatch.setattr(compilation, "least_times", lambda ways, seen: list(times[: len(ways)]))
    monkeypatch.setattr(whole, "take_turns", lambda ways, rounds: [2.0, 1.0, *(3.0 for _ in ways[2:])])
    model, x = nn.Linear(64, 40), torch.randn(3, 64)
    model.weight.data.copy_(block_weight(40, 64, 0.8, 0))
    compiled = compile_sparse(model, x)
    assert compiled.storage is storage
    assert compiled.sparse_choices[0].sparse_ms == 1.0
    assert (compiled(x) - model(x).detach()).abs().max() < 1e-4


def test_scattered_zeros_are_not_tried_in_blocks():
    weight = torch.randn(64, 50) * (torch.rand(64, 50) >= 0.8)
    assert compilation._storages(weight) == [CompressedRows]
