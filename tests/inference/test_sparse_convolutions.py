"""Sparse convolutions against torch's dense ones, on every instruction set, in both memory formats."""

import copy
import ctypes
import pickle
import subprocess
import sys
import threading
from unittest.mock import patch

import numpy as np
import pytest
import torch
from built_kernels import kernels
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.inference import convolutions
from sparsebench.inference.convolutions import SparseConvolution, reason_to_stay_dense

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def pruned(layer: nn.Module, sparsity: float) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator) >= sparsity)
    return layer


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-4 of the largest element."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * max(1e-3, float(expected.abs().max()))


@st.composite
def cases(draw):
    """A convolution in one or two dimensions, what it gets, and what is added."""
    dimensions = draw(st.integers(1, 2))

    def sizes(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(dimensions))

    kernel, stride, dilation = sizes(1, 5), sizes(1, 4), sizes(1, 3)
    padding = sizes(0, 5)
    if draw(st.booleans()):
        stride, padding = (1,) * dimensions, "same"
    inputs, outputs = draw(st.integers(1, 20)), draw(st.one_of(st.integers(1, 20), st.sampled_from([33, 64])))
    layer = pruned(
        KINDS[dimensions](inputs, outputs, kernel, stride, padding, dilation, bias=draw(st.booleans())),
        draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
    )
    extents = [1 + factor * (size - 1) for size, factor in zip(kernel, dilation, strict=True)]
    x = torch.randn(draw(st.integers(1, 4)), inputs, *(extent + draw(st.integers(0, 20)) for extent in extents))
    if dimensions == 2 and draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    return (
        layer,
        x,
        draw(st.booleans()),
        draw(st.sampled_from(["nothing", "the same", "another format", "one channel", "a number"])),
    )


def addend(kind: str, like: torch.Tensor):
    """What is added, for an output like this one."""
    if kind == "nothing":
        return None
    if kind == "one channel":
        return torch.randn(like.shape[0], 1, *like.shape[2:])
    if kind == "another format":
        return torch.randn(like.transpose(1, -1).shape).transpose(1, -1)
    return torch.randn_like(like) if kind == "the same" else 0.5


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.usefixtures("threads")
@settings(max_examples=60)
@given(cases(), st.sampled_from([1, 3, 7, 1000]))
@example((pruned(nn.Conv2d(3, 40, 3, 2, 1), 0.5), torch.randn(2, 3, 30, 30), True, "the same"), 2)
@example((pruned(nn.Conv2d(40, 5, 1, 2), 0.5), torch.randn(1, 40, 30, 30), False, "nothing"), 9)
@example((pruned(nn.Conv2d(5, 5, 2, 3, 4), 0.5), torch.randn(1, 5, 1, 1), False, "nothing"), 2)
@example((pruned(nn.Conv2d(70, 300, 1), 0.8), torch.randn(2, 70, 8, 16), True, "the same"), 32)
@example((pruned(nn.Conv2d(70, 300, 3, 1, 1), 0.8), torch.randn(2, 70, 7, 9), True, "the same"), 32)
def test_convolution_is_torchs(path, case, tile):
    layer, x, rectify, kind = case
    with patch.multiple(convolutions, TILE=tile, POINTWISE_TILE=tile, LEAST_IN_TILE=0):
        sparse = SparseConvolution(layer, rectify)
    assert sparse.tile == min(tile, layer.in_channels)
    with torch.no_grad():
        expected = layer(x)
        added = addend(kind, expected)
        if added is not None:
            expected = expected + added
        kept = copy.deepcopy((x, added))
        found = sparse(x) if added is None else sparse(x, added)
    assert_close(found, expected.relu() if rectify else expected)
    assert sparse.weight.equal(layer.weight)
    # What it reads is as it was.
    assert kept[0].equal(x)
    assert added is None or not isinstance(added, torch.Tensor) or kept[1].equal(added)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(64, 64, 3, 1, 1), (2, 64, 56, 56)),
        (nn.Conv2d(130, 70, 3, 2, 1), (1, 130, 28, 28)),
        (nn.Conv2d(512, 40, 3, 1, 1), (3, 512, 7, 7)),
        (nn.Conv2d(2000, 30, 3, 1, 1), (1, 2000, 14, 14)),
        (nn.Conv2d(70, 130, 1), (2, 70, 28, 28)),
        (nn.Conv2d(20, 20, 11, 4, 2), (1, 20, 64, 64)),
    ],
)
def test_large_convolution_is_torchs(path, layer, shape, last):
    """Panels of several groups, several panels, parts of the outputs, more channels than fit the cache."""
    pruned(layer, 0.9)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    with torch.no_grad():
        expected = layer(x)
        added = torch.randn_like(expected)
        found = SparseConvolution(layer, True)(x, added)
    assert_close(found, (expected + added).relu())
    assert found.stride() == expected.stride()


@settings(max_examples=30)
@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 40)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_kernels_of_one_element_in_one_to_three_dimensions(path, dimensions, sizes, strides, channels, last, batched, with_added):
    images, inputs, outputs = channels
    layer = pruned(KINDS[dimensions](inputs, outputs, 1, tuple(strides[:dimensions])), 0.7)
    x = torch.randn(images, inputs, *sizes[:dimensions])
    if last and dimensions > 1:
        x = x.to(memory_format=torch.channels_last if dimensions == 2 else torch.channels_last_3d)
    x = x if batched else x[0]
    with torch.no_grad():
        expected = layer(x)
        added = torch.randn_like(expected) if with_added else torch.zeros_like(expected)
        found = SparseConvolution(layer, False)(x, added) if with_added else SparseConvolution(layer, False)(x)
        assert_close(found, expected + added)


def test_by_definition(path):
    """Sums written out, in double precision."""
    layer = pruned(nn.Conv2d(3, 4, (2, 3), (1, 2), (1, 0), (2, 1)), 0.4)
    x = torch.randn(2, 3, 5, 8)
    weight, padded = layer.weight.detach().double().numpy(), np.pad(x.double().numpy(), ((0, 0), (0, 0), (1, 1), (0, 0)))
    expected = np.zeros((2, 4, 5, 3)) + layer.bias.detach().double().numpy()[:, None, None]
    for row, column, ky, kx in np.ndindex(5, 3, 2, 3):
        expected[:, :, row, column] += padded[:, :, row + 2 * ky, 2 * column + kx] @ weight[:, :, ky, kx].T
    assert_close(SparseConvolution(layer, False)(x), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("last", [False, True])
def test_memory_format_stays(path, last):
    memory_format = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=memory_format)
    assert SparseConvolution(pruned(nn.Conv2d(8, 6, 3, padding=1), 0.5), False)(x).is_contiguous(memory_format=memory_format)


def test_inputs_between_others(path):
    """Views of larger tensors, with neither channels nor columns as neighbours, or some way apart."""
    layer, around = pruned(nn.Conv2d(4, 5, 3), 0.5), torch.randn(3, 8, 20, 24)
    sparse = SparseConvolution(layer, False)
    with torch.no_grad():
        for x in (around[:, 2:6, 3:15, 5:20], around[::2, ::2, ::2, ::2], around.permute(2, 1, 3, 0)[:, :4], around[:1, :4]):
            assert_close(sparse(x), layer(x))


def test_a_panel_much_larger_than_the_cache(path):
    """Dilation reaches over most of a large image with many channels."""
    layer = pruned(nn.Conv2d(300, 3, 3, dilation=30), 0.9)
    x = torch.randn(1, 300, 70, 70)
    with torch.no_grad():
        assert_close(SparseConvolution(layer, False)(x), layer(x))


def test_empty_batch(path):
    sparse = SparseConvolution(pruned(nn.Conv2d(8, 6, 3, padding=1), 0.5), False)
    assert sparse(torch.empty(0, 8, 5, 5)).shape == (0, 6, 5, 5)


def test_numbers_that_are_none_stay_so(path):
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight)
    x = torch.ones(1, 1, 9, 9)
    x[0, 0, 1, 1], x[0, 0, 5, 8], x[0, 0, 8, 0] = float("nan"), float("inf"), -float("inf")
    found = SparseConvolution(layer, rectify=True)(x)
    assert found[0, 0, 1, 1].isnan()
    assert found[0, 0, 5, 8] == float("inf")
    assert found[0, 0, 8, 0] == 0
    # Nothing leaks from the end of one row into the beginning of the next.
    assert int(found.isnan().sum()) == 1
    assert int((found == 1).sum()) == 78


def test_several_threads_may_call_at_once(path):
    layer = pruned(nn.Conv2d(20, 30, 3, padding=1), 0.8)
    sparse, wrong = SparseConvolution(layer, False), []
    with torch.no_grad():
        pairs = [(x, layer(x)) for x in (torch.randn(images, 20, size, size) for images, size in ((1, 5), (2, 14), (4, 20)))]

    def work(x, expected):
        for _ in range(20):
            if not torch.allclose(sparse(x), expected, atol=1e-4):
                wrong.append(x.shape)

    workers = [threading.Thread(target=work, args=pair) for pair in pairs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_layer_survives_copies_files_and_a_fresh_process(tmp_path):
    layer = SparseConvolution(pruned(nn.Conv2d(5, 7, 3, 2, "valid"), 0.6), True)
    x = torch.randn(2, 5, 11, 12)
    expected = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert again(x).equal(expected)
    torch.save((layer, x, expected), tmp_path / "layer.pt")
    program = (
        "import sys, torch\n"
        "layer, x, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "print(torch.allclose(layer(x), expected, atol=1e-5))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "layer.pt")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize(("allowed", "size", "asked"), [(1, 30, []), (2, 30, [2]), (3, 30, [3]), (2, 2, [])])
def test_as_many_threads_as_torch_has(monkeypatch, allowed, size, asked):
    """And one alone where there is little to do; a runtime that brings fewer than asked for does not matter."""
    chosen, started = kernels("generic"), []
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(function, data, threads, flags):
        started.append(threads)
        function(data)

    monkeypatch.setattr(chosen, "_parallel", ctypes.cast(parallel, ctypes.c_void_p))
    monkeypatch.setattr(convolutions, "load_kernels", lambda: chosen)
    monkeypatch.setattr(torch, "get_num_threads", lambda: allowed)
    layer, x = pruned(nn.Conv2d(20, 30, 3, padding=1), 0.5), torch.randn(1, 20, size, size)
    assert_close(SparseConvolution(layer, False)(x), layer(x).detach())
    assert started == asked


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "groups"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
        (nn.Conv2d(4, 4, 17), "a kernel of more than 256 elements"),
        (nn.Conv3d(4, 4, 2), "a kernel in three dimensions"),
        (nn.Conv3d(4, 4, 1, padding=1), "a kernel in three dimensions"),
    ],
)
def test_what_cannot_run_sparse_is_named(layer, reason):
    assert reason_to_stay_dense(layer) == reason
    with pytest.raises(SparsebenchError, match=f"a convolution with {reason} cannot run sparse"):
        SparseConvolution(layer, False)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 3, 5, 5), r"shape \(2, 3, 5, 5\): expected \[images, 4, ..., ...\]"),
        (torch.ones(2, 4, 2, 5), r"shape \(2, 4, 2, 5\): smaller than its kernel"),
        (torch.ones(2, 4, 5, 5).double(), "its input is torch.float64 on cpu"),
        (torch.ones(2, 4, 5, 5, requires_grad=True), "gives no gradients"),
    ],
)
def test_wrong_inputs_are_named(x, message):
    with pytest.raises(SparsebenchError, match=message):
        SparseConvolution(nn.Conv2d(4, 4, 3), False)(x)


def test_what_is_added_needs_no_gradient():
    sparse = SparseConvolution(nn.Conv2d(4, 4, 1), False)
    with pytest.raises(SparsebenchError, match="gives no gradients"):
        sparse(torch.ones(2, 4, 5, 5), torch.ones(2, 4, 5, 5, requires_grad=True))
    with pytest.raises(SparsebenchError, match=r"cannot be trained: call model.eval\(\)"):
        sparse.train()(torch.ones(2, 4, 5, 5))


@pytest.mark.parametrize(
    ("kernel", "zeros", "expected"), [(1, 0.9, 64), (1, 0.98, 256), (3, 0.9, 32), (3, 0.98, 32), (3, 0.999, 256)]
)
def test_tiles_are_small_where_rows_have_entries_in_them(kernel, zeros, expected):
    assert SparseConvolution(pruned(nn.Conv2d(256, 64, kernel), zeros), False).tile == expected
    assert SparseConvolution(pruned(nn.Conv2d(20, 64, kernel), zeros), False).tile == 20
