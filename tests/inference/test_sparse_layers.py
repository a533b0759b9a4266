"""Sparse layers against torch's dense ones, on every instruction set, in every layout."""

import copy
import ctypes
import io
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from built_kernels import build, kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sparsebench.errors import SparsebenchError
from sparsebench.inference import compressed_rows, native
from sparsebench.inference.compressed_rows import CompressedRows
from sparsebench.inference.compressed_tiles import CompressedTiles
from sparsebench.inference.layers import SparseLinear


def sparse_weight(outputs: int, inputs: int, sparsity: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight * (torch.rand(outputs, inputs, generator=generator) >= sparsity)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-4 of the largest element."""
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    if expected.numel():
        assert (found - expected).abs().max() <= 1e-4 * max(1e-3, float(expected.abs().max()))


def by_definition(weight, x, bias, rectify):
    """Sums written out in double precision."""
    out = np.einsum("of,bfp->bop", weight.double().numpy(), x.double().numpy())
    if bias is not None:
        out += bias.double().numpy()[:, None]
    return torch.tensor(np.maximum(out, 0) if rectify else out, dtype=torch.float32)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "features last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "images last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "features far apart": lambda x: F.pad(x, (3, 5))[:, :, 3 : 3 + x.shape[2]],
    "positions far apart": lambda x: F.pad(x.transpose(1, 2), (2, 7))[:, :, 2 : 2 + x.shape[1]].transpose(1, 2),
    "every second": lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, ::2, ::2],
}
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 129, 257, 600]))
STORAGES = [CompressedRows, CompressedTiles]


@settings(max_examples=60)
@given(
    st.sampled_from(STORAGES),
    st.tuples(SIZES, SIZES),
    st.tuples(st.integers(1, 4), st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 300]))),
    st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
    st.sampled_from(sorted(LAYOUTS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
@pytest.mark.usefixtures("threads")
def test_product_is_the_sum_by_definition(
    path, storage, sizes, columns, sparsity, layout, features_last, with_bias, rectify, seed
):
    weight = sparse_weight(*sizes, sparsity, seed)
    bias = torch.randn(sizes[0]) if with_bias else None
    x = torch.randn(columns[0], sizes[1], columns[1])
    images, positions = columns
    # Written to the last element and not beyond: what surrounds the output stays.
    around = torch.full((images * positions * sizes[0] + 128,), 7.0)
    inside = around[64:-64]
    out = inside.view(images, positions, sizes[0]).transpose(1, 2) if features_last else inside.view(images, sizes[0], positions)
    storage.of(weight).multiply(LAYOUTS[layout](x), out, bias, rectify)
    assert_close(out, by_definition(weight, x, bias, rectify))
    assert bool((around[:64] == 7).all())
    assert bool((around[-64:] == 7).all())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("outputs", "inputs", "shape"), [(300, 700, (150,)), (129, 3000, (70,)), (40, 9000, (33,)), (64, 33, (5, 7)), (10, 20, ())]
)
@pytest.mark.parametrize("storage", STORAGES)
def test_linear_is_torchs(path, storage, outputs, inputs, shape):
    dense = nn.Linear(inputs, outputs)
    dense.weight.data.copy_(sparse_weight(outputs, inputs, 0.9, 0))
    x = torch.randn(*shape, inputs)
    with torch.no_grad():
        found = SparseLinear(dense.weight, dense.bias, True, storage)(x)
        assert_close(found, F.relu(dense(x)))
    assert found.is_contiguous()


@settings(max_examples=60)
@given(st.sampled_from(STORAGES), st.tuples(SIZES, SIZES), st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.integers(0, 2**31))
def test_what_is_compressed_is_the_matrix(storage, sizes, sparsity, seed):
    weight = sparse_weight(*sizes, sparsity, seed)
    held = storage.of(weight)
    assert torch.equal(held.dense(), weight)
    assert int(held.values.count_nonzero()) == int(weight.count_nonzero())
    # Tiles fill the shorter row of a pair up with zeros.
    assert held.values.numel() == int(weight.count_nonzero()) or storage is CompressedTiles


def test_rows_of_a_tile_with_equally_many_entries_follow_each_other():
    weight = sparse_weight(300, 500, 0.9, 0)
    held = CompressedTiles.of(weight)
    tiles = 2 * 4
    steps, rows = held.starts[: 128 * tiles + 1].diff().view(tiles, 128), held.starts[128 * tiles + 1 :].view(tiles, 256)
    assert torch.equal(rows.sort(1).values, torch.arange(256).expand(tiles, 256).int())
    for tile in range(tiles):
        present = 256 if tile < 4 else 44
        assert set(rows[tile, :present].tolist()) == set(range(present))
        part = weight[tile // 4 * 256 :][:256, tile % 4 * 128 :][:, :128]
        counts = part.count_nonzero(1)[rows[tile, :present]]
        assert torch.equal(counts, counts.sort().values)
        assert torch.equal(steps[tile, : present // 2], counts.view(-1, 2).amax(1).int())
        assert not steps[tile, present // 2 :].any()
    assert held.values.numel() < 1.03 * int(weight.count_nonzero())


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)])
def test_empty_batches(path, shape):
    sparse = SparseLinear(sparse_weight(6, 8, 0.5, 0), torch.ones(6), False)
    assert sparse(torch.empty(shape)).shape == (*shape[:-1], 6)


def test_numbers_that_are_none_stay_so(path):
    """As in torch, the positive part of NaN is NaN, not zero."""
    sparse = SparseLinear(torch.eye(20), None, rectify=True)
    x = torch.ones(20, 20)
    x[3, 4], x[5, 6], x[7, 8] = float("nan"), float("inf"), -float("inf")
    found = sparse(x)
    assert found[3, 4].isnan()
    assert found[5, 6] == float("inf")
    assert found[7, 8] == 0
    assert int(found.isnan().sum()) == 1


def test_several_threads_may_call_at_once(path):
    """Threads of Python, each with products of its own and one that they share."""
    weight, shared = sparse_weight(64, 500, 0.8, 3), torch.randn(90, 500)
    layer = SparseLinear(weight, None, False)
    inputs = [torch.randn(count, 500) for count in (1, 17, 64, 200)]
    wrong = []

    def work(x):
        for _ in range(20):
            for batch in (x, shared):
                if not torch.allclose(layer(batch), batch @ weight.t(), atol=1e-3):
                    wrong.append(len(batch))

    workers = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_layer_survives_copies_files_and_state():
    x, layer = torch.randn(5, 30), SparseLinear(sparse_weight(20, 30, 0.8, 2), torch.randn(20), True)
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert again(x).equal(expected)
    other = SparseLinear(layer.weight, torch.zeros(20), True)
    other.load_state_dict(layer.state_dict())
    assert other(x).equal(expected)


def test_training_and_gradients_are_refused():
    layer = SparseLinear(torch.eye(4), None, False)
    with pytest.raises(SparsebenchError, match=r"no gradients.*no_grad"):
        layer(torch.ones(2, 4, requires_grad=True))
    with torch.no_grad():
        assert layer(torch.ones(2, 4, requires_grad=True)).shape == (2, 4)
    with pytest.raises(SparsebenchError, match=r"cannot be trained: call model.eval\(\)"):
        layer.train()(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (SparseLinear(torch.eye(4), None, False), torch.ones(2, 5), r"shape \(2, 5\): expected \[..., 4\]"),
        (SparseLinear(torch.eye(4), None, False), torch.ones(2, 4).double(), "its input is torch.float64 on cpu"),
        (SparseLinear(torch.eye(4), None, False).half(), torch.ones(2, 4), "the sparse layer is torch.float16 on cpu"),
    ],
)
def test_wrong_inputs_are_named(layer, x, message):
    with pytest.raises(SparsebenchError, match=message):
        layer(x)


def test_output_in_another_layout_is_refused():
    kernels("generic")
    rows = CompressedRows.of(torch.eye(4))
    if native.load_kernels() is not None:
        with pytest.raises(ValueError, match="expected features or positions to be neighbours"):
            rows.multiply(torch.ones(2, 4, 3), torch.empty(4, 3, 2).permute(2, 0, 1))


PROGRAM = """
import torch
from sparsebench.inference import kernel_path
from sparsebench.inference.layers import SparseLinear
weight = torch.arange(60.0).reshape(6, 10).fmod(7) * (torch.arange(60).reshape(6, 10) % 3 == 0)
x = torch.arange(30.0).reshape(3, 10)
assert torch.allclose(SparseLinear(weight, None, False)(x), x @ weight.t())
print(kernel_path())
"""


def in_fresh_process(**variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | variables
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=120
    )


@pytest.mark.parametrize("path", ["generic", native.FALLBACK])
def test_fresh_process_takes_the_path_that_the_variable_names(path):
    library = native.installed_library()
    done = in_fresh_process(**{native.VARIABLE: path})
    if path == native.FALLBACK or (library is not None and path in native.runnable_sets(library)):
        assert done.stdout.strip() == path, done.stderr
    else:
        assert f"{native.VARIABLE}={path!r}: expected one of " in done.stderr.splitlines()[-1]


def test_a_path_that_is_not_there_is_an_error():
    done = in_fresh_process(**{native.VARIABLE: "avx1024"})
    assert done.returncode != 0
    assert "SPARSEBENCH_KERNELS='avx1024': expected one of " in done.stderr.splitlines()[-1]


def test_without_the_library_torch_multiplies(monkeypatch):
    monkeypatch.setattr(native, "installed_library", lambda: None)
    monkeypatch.delenv(native.VARIABLE, raising=False)
    native.load_kernels.cache_clear()
    try:
        assert native.kernel_path() == "torch"
        layer = SparseLinear(torch.eye(3), None, False)
        assert layer(torch.ones(2, 3)).equal(torch.ones(2, 3))
        monkeypatch.setenv(native.VARIABLE, "generic")
        native.load_kernels.cache_clear()
        with pytest.raises(
            SparsebenchError, match=r"expected one of torch on this machine .the compiled kernels are not installed"
        ):
            native.kernel_path()
    finally:
        native.load_kernels.cache_clear()


def test_threads_of_torch_do_the_work():
    assert kernels("generic").parallel


@pytest.mark.parametrize(("allowed", "positions", "asked"), [(1, 500, []), (2, 500, [2]), (3, 500, [3]), (2, 1, [])])
def test_as_many_threads_as_torch_has(monkeypatch, allowed, positions, asked):
    """And one alone where there is little to do; a runtime that brings fewer than asked for does not matter."""
    chosen, started = kernels("generic"), []
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(function, data, threads, flags):
        started.append(threads)
        function(data)

    monkeypatch.setattr(chosen, "_parallel", ctypes.cast(parallel, ctypes.c_void_p))
    monkeypatch.setattr(compressed_rows, "load_kernels", lambda: chosen)
    monkeypatch.setattr(torch, "get_num_threads", lambda: allowed)
    weight, x, out = sparse_weight(50, 40, 0.5, 0), torch.randn(1, 40, positions), torch.empty(1, 50, positions)
    CompressedRows.of(weight).multiply(x, out)
    assert_close(out, by_definition(weight, x, None, False))
    assert started == asked


def test_library_of_another_revision_is_refused(tmp_path):
    file = build("int sparsebench_kernels_revision(void) { return 0; }\n", tmp_path)
    with pytest.raises(SparsebenchError, match="was built from another version of sparsebench: install the package again"):
        native.open_library(file)


def test_older_library_is_refused(tmp_path):
    file = build("int sparsebench_instruction_sets(void) { return 1; }\n", tmp_path)
    with pytest.raises(SparsebenchError, match="was built from another version of sparsebench"):
        native.open_library(file)
