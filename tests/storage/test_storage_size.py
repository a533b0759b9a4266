"""The size and the time of a ResNet-50 on disk."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pytest
import torch
from exact_bits import same_bits
from resnet50_state import PARAMETERS, resnet50_state

from sparsebench.storage import inspect, load_compressed, save_compressed

PAGE = Path(__file__).parents[2] / "docs" / "compressed-checkpoint.md"
SECONDS = 3.0
COLUMNS = ("dense", 0.5, 0.8, 0.9, 0.95, 0.98, 0.995)


def bound(state: dict[str, torch.Tensor], bytes_per_weight: int) -> float:
    """Bytes of kept values, and the entropy of a mask with independent elements of the same density."""
    total = 0.0
    for tensor in state.values():
        if tensor.dim() < 2:
            total += tensor.numel() * tensor.element_size()
            continue
        elements, kept = tensor.numel(), int((tensor != 0).sum())
        total += kept * bytes_per_weight
        if 0 < kept < elements:
            p = kept / elements
            total -= elements * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
    return total


@pytest.mark.parametrize("values", [None, torch.float16])
def test_resnet50_that_is_90_per_cent_sparse(tmp_path: Path, values: torch.dtype | None) -> None:
    state = resnet50_state(0.9)
    trained = [name for name in state if "running" not in name and "batches" not in name]
    assert sum(state[name].numel() for name in trained) == PARAMETERS
    begin = time.process_time()
    save_compressed(state, tmp_path / "x", values=values)
    written = time.process_time()
    back = load_compressed(tmp_path / "x")
    read = time.process_time()
    assert written - begin < SECONDS
    assert read - written < SECONDS
    assert (tmp_path / "x").stat().st_size <= 1.01 * bound(state, 4 if values is None else 2)
    if values is None:
        assert same_bits(back, state)


def stated(row: str) -> dict[str, float]:
    (cells,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(zip(map(str, COLUMNS), map(float, cells.split("|")), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("column", COLUMNS)
def test_table_of_the_page(tmp_path: Path, column: str | float) -> None:
    state = resnet50_state(0.0 if column == "dense" else float(column))
    save_compressed(state, tmp_path / "x")
    size = (tmp_path / "x").stat().st_size
    assert size / 1e6 == pytest.approx(stated("file, MB")[str(column)], abs=0.006)
    assert size / bound(state, 4) == pytest.approx(stated("file / (values kept + entropy of the mask)")[str(column)], abs=6e-5)
    report = inspect(tmp_path / "x")
    assert report.file_bytes - report.stored_bytes < 45_000
