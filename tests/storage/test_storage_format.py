"""What docs/compressed-checkpoint.md says, tried on real files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bit_by_bit_golomb
import numpy as np
import pytest
import safetensors
import torch
from exact_bits import raw
from torch import nn

from sparsebench.storage import load_compressed, save_compressed

PAGE = Path(__file__).parents[2] / "docs" / "compressed-checkpoint.md"
Read = Callable[[Any], dict[str, np.ndarray]]


def code_block(fence: str) -> str:
    (code,) = re.findall(rf"^```{fence}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return str(code)


@pytest.fixture(scope="module")
def read() -> Read:
    code = code_block("python reader")
    assert len(code.splitlines()) <= 30
    assert set(re.findall(r"^import (\w+)", code, re.MULTILINE)) == {"json", "math", "numpy", "safetensors"}
    assert "from " not in code
    names: dict[str, Any] = {}
    exec(code, names)

    return lambda path: dict(names["read"](str(path)))


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for sparsity in (0.0, 0.5, 0.8, 0.9, 0.98, 0.999, 1.0):
        keep = torch.rand(80, 70, generator=generator) >= sparsity
        tensors[f"float {sparsity}"] = torch.randn(80, 70, generator=generator) * keep + 0.0
        tensors[f"brain {sparsity}"] = tensors[f"float {sparsity}"].bfloat16()
        tensors[f"integer {sparsity}"] = torch.randint(1, 9, (80, 70), generator=generator) * keep
        tensors[f"eight bits {sparsity}"] = tensors[f"float {sparsity}"].to(torch.float8_e4m3fn)
    tensors |= {"scalar": torch.tensor(7), "empty": torch.empty(0, 3), "bool": keep, "complex": torch.ones(3) * 1j}
    tensors["tied"] = tensors["float 0.9"]
    return tensors


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def test_reader_of_the_page_reads_every_coding(tmp_path: Path, read: Read) -> None:
    """PEERS 25: a small, documented file that reads back with safetensors alone."""
    tensors = state()
    save_compressed(tensors, tmp_path / "x")
    found = read(tmp_path / "x")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = as_numpy(tensor)
        assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape), name
        assert found[name].tobytes() == expected.tobytes(), name


def test_reader_of_the_page_says_what_it_does_not_know(tmp_path: Path, read: Read) -> None:
    pytest.importorskip("zstandard", reason="needs pip install sparsebench[storage]")
    save_compressed(state(), tmp_path / "x", zstd=3)
    with pytest.raises(AssertionError, match="this reader knows no zstd"):
        read(tmp_path / "x")


@pytest.mark.parametrize("values", [torch.float16, torch.bfloat16], ids=str)
def test_reader_of_the_page_reads_rounded_values(tmp_path: Path, read: Read, values: torch.dtype) -> None:
    tensors = {name: tensor for name, tensor in state().items() if name.startswith("float")}
    save_compressed(tensors, tmp_path / "x", values=values)
    found = read(tmp_path / "x")
    for name, tensor in load_compressed(tmp_path / "x").items():
        assert np.array_equal(found[name].astype(np.float32), tensor.numpy())


def test_every_byte_is_where_the_page_says(tmp_path: Path) -> None:
    weight = torch.zeros(40, 50)
    weight[torch.rand(40, 50, generator=torch.Generator().manual_seed(0)) < 0.1] = 1.5
    save_compressed({"w": weight, "b": torch.ones(3)}, tmp_path / "x", method="m", config={"a": 1}, metrics={"x": 2})
    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert data[8:35] == b'{"__metadata__":{"sha256":"'
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"]
    assert list(metadata) == ["sha256", "format", "method", "config", "metrics", "tensors", "tied"]
    assert metadata["sha256"].encode() == data[35:99]
    assert hashlib.sha256(data[:35] + b"0" * 64 + data[99:]).hexdigest() == metadata["sha256"]
    assert (metadata["format"], metadata["method"]) == ("sparsebench compressed 1", "m")
    assert (json.loads(metadata["config"]), json.loads(metadata["metrics"]), metadata["tied"]) == ({"a": 1}, {"x": 2}, "{}")
    (name, row), *_ = json.loads(metadata["tensors"]).items()
    kept = int((weight != 0).sum())
    assert (name, row) == ("w", {"dtype": "F32", "shape": [40, 50], "zeros": 2000 - kept, "mask": "w.mask", "rice": row["rice"]})
    code = bit_by_bit_golomb.encode((weight.reshape(-1) != 0).tolist(), row["rice"])
    stored = {name: bytes(entry["data"]) for name, entry in safetensors.deserialize(data)}
    assert stored == {"w": raw(weight[weight != 0]), "w.mask": code, "b": raw(torch.ones(3))}
    assert {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"} == {
        "w": [kept],
        "w.mask": [len(code)],
        "b": [3],
    }


def test_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(code_block("python"), names)
    assert isinstance(names["model"], nn.Module)
    assert "gaps (k=3)" in capsys.readouterr().out
