"""Files with zstd parts; `pip install sparsebench[storage]` brings what they need."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from exact_bits import same_bits
from mutated_checkpoints import put_together, take_apart
from test_storage_hostile import fuzz

from sparsebench.errors import SparsebenchError
from sparsebench.storage import inspect, load_compressed, save_compressed
from sparsebench.storage.element_types import _BY_TORCH

zstandard = pytest.importorskip("zstandard")


def random_state(sparsity: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for dtype in _BY_TORCH:
        keep = torch.rand(50, 64, generator=generator) >= sparsity
        values = torch.randn(50, 64, generator=generator) * keep + 0.0
        if dtype.is_floating_point and dtype.itemsize > 1:
            state[str(dtype)] = values.to(dtype)
        else:
            bits = torch.randint(0, 2, (50, 64 * dtype.itemsize), generator=generator, dtype=torch.uint8)
            state[str(dtype)] = (bits * keep.repeat_interleave(dtype.itemsize, 1)).view(dtype)
    return state | {"empty": torch.empty(3, 0), "scalar": torch.tensor(1.0)}


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("level", [1, 19])
def test_every_type_comes_back_to_the_last_bit(tmp_path: Path, sparsity: float, level: int) -> None:
    state = random_state(sparsity)
    save_compressed(state, tmp_path / "x", zstd=level)
    save_compressed(state, tmp_path / "without")
    assert same_bits(load_compressed(tmp_path / "x"), state)
    assert (tmp_path / "x").stat().st_size < (tmp_path / "without").stat().st_size or sparsity == 1.0
    with_zstd = {row.name: row.zeros for row in inspect(tmp_path / "x").tensors}
    assert with_zstd == {row.name: row.zeros for row in inspect(tmp_path / "without").tensors}


def test_rounded_values(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(200, 300, dtype=torch.float64, generator=generator)
    state = {"sparse": torch.where(torch.rand(200, 300, generator=generator) < 0.1, dense, 0.0).float(), "dense": dense}
    save_compressed(state, tmp_path / "x", zstd=3, values=torch.bfloat16)
    expected = {name: tensor.to(torch.bfloat16).to(tensor.dtype) for name, tensor in state.items()}
    assert same_bits(load_compressed(tmp_path / "x"), expected)
    assert [row.coding for row in inspect(tmp_path / "x").tensors] == ["gaps (k=3) + zstd", "plain + zstd"]


def test_sign_and_exponent_apart_from_the_mantissa_save_more_than_a_tenth(tmp_path: Path) -> None:
    weight = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    save_compressed({"w": weight}, tmp_path / "x", zstd=3)
    assert (tmp_path / "x").stat().st_size < 0.9 * 4 * 300 * 300


def test_regular_mask_takes_next_to_nothing(tmp_path: Path) -> None:
    """A bitmask of whole channels compresses better than its gaps do."""
    weight = torch.randn(64, 4096)
    weight[:, torch.rand(4096) < 0.9] = 0.0
    save_compressed({"w": weight}, tmp_path / "x", zstd=3)
    (row,) = inspect(tmp_path / "x").tensors
    header, _ = take_apart((tmp_path / "x").read_bytes())
    begin, end = header["w.mask"]["data_offsets"]
    assert end - begin < 2000 < weight.numel() / 8
    assert row.coding.endswith("+ zstd")
    assert same_bits(load_compressed(tmp_path / "x"), {"w": weight})


def test_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "xy":
        save_compressed(random_state(0.9), tmp_path / name, zstd=5)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_thousands_of_mutated_files(tmp_path: Path) -> None:
    fuzz(tmp_path, 1500, seed=2, zstd=3)


@pytest.mark.slow
def test_more_thousands_of_mutated_files(tmp_path: Path) -> None:
    fuzz(tmp_path, 8000, seed=3, zstd=3)


def frame_file(path: Path, frame: bytes, declared: int) -> None:
    """A tensor of `declared` bytes whose values are this frame."""
    save_compressed({"w": torch.ones(200, dtype=torch.uint8)}, path)
    header, _ = take_apart(path.read_bytes())
    header["w"] |= {"shape": [len(frame)], "data_offsets": [0, len(frame)]}
    header["__metadata__"]["tensors"] = {"w": {"dtype": "U8", "shape": [declared], "zeros": declared, "zstd": ["values"]}}
    path.write_bytes(put_together(header, frame))


def test_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    assert len(bomb) < 1 << 15
    tracemalloc.start()
    try:
        frame_file(tmp_path / "x", bomb, 1000)
        with pytest.raises(SparsebenchError, match="tensor 'w': its zstd frame has 268435456 bytes, 1000 are expected"):
            load_compressed(tmp_path / "x")
        lying = bytearray(zstandard.ZstdCompressor().compress(bytes(1000)))
        tail = bomb[len(bomb) - 100 :]
        frame_file(tmp_path / "x", bytes(lying) + tail, 1000)  # a second frame behind the first
        with pytest.raises(SparsebenchError, match="tensor 'w': its zstd frame is damaged"):
            load_compressed(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
    frame_file(tmp_path / "x", zstandard.ZstdCompressor().compress(bytes(1000)), 1000)
    assert load_compressed(tmp_path / "x")["w"].tolist() == [0] * 1000


def test_frame_whose_length_is_a_lie_or_missing(tmp_path: Path) -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(1000)))
    place = bytes(frame).index((1000 - 256).to_bytes(2, "little"))
    for declared in (900, 1100):
        frame[place : place + 2] = (declared - 256).to_bytes(2, "little")
        frame_file(tmp_path / "x", bytes(frame), declared)
        with pytest.raises(SparsebenchError, match="tensor 'w': its zstd frame is damaged"):
            load_compressed(tmp_path / "x")
    frame_file(tmp_path / "x", zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)), 1000)
    with pytest.raises(SparsebenchError, match="does not say how long its content is"):
        load_compressed(tmp_path / "x")
    frame_file(tmp_path / "x", b"no frame", 1000)
    with pytest.raises(SparsebenchError, match="its bytes are no zstd frame"):
        load_compressed(tmp_path / "x")


def test_mask_cannot_unfold_to_more_than_a_bitmask(tmp_path: Path) -> None:
    save_compressed({"w": torch.eye(40)}, tmp_path / "x")
    frame = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    header, rest = take_apart((tmp_path / "x").read_bytes())
    header["__metadata__"]["tensors"]["w"]["zstd"] = ["mask"]
    begin = header["w.mask"]["data_offsets"][0]
    header["w.mask"] |= {"shape": [len(frame)], "data_offsets": [begin, begin + len(frame)]}
    (tmp_path / "x").write_bytes(put_together(header, rest[:begin] + frame))
    with pytest.raises(SparsebenchError, match="the code of the mask is longer than a bitmask"):
        load_compressed(tmp_path / "x")


def test_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_compressed(random_state(0.9), tmp_path / "x", zstd=3)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for call in (lambda: load_compressed(tmp_path / "x"), lambda: save_compressed({}, tmp_path / "y", zstd=3)):
        with pytest.raises(SparsebenchError, match=r"zstd needs the package zstandard: pip install sparsebench\[storage\]"):
            call()
    assert not (tmp_path / "y").exists()
    assert inspect(tmp_path / "x").tensors  # needs no zstd
