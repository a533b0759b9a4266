"""Latency that was measured after a run stands in the rows of the network that it was measured of, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsebench.errors import SparsebenchError
from sparsebench.records.latency import LatencyRecord
from sparsebench.records.query import query
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import PointRecord, RunRecord, short_hash
from sparsebench.records.table import open_tables

COLUMNS = ("latency_ms", "dense_latency_ms", "latency_batch", "latency_threads")


def finished_run(directory: Path, method: str, thresholds: tuple[float | None, ...] = (None,)) -> RunFolder:
    config = {"method": method, "seed": 0}
    points = tuple(
        PointRecord(target_sparsity=None, threshold=threshold, sparsity=0.5, metrics={"test": {"accuracy": 90.0}}, layers=())
        for threshold in thresholds
    )
    record = RunRecord(
        run_id=short_hash(config),
        config=config,
        workload="digits",
        method=method,
        seed=0,
        metric="accuracy",
        steps=1,
        seconds=1.0,
        peak_memory_bytes=None,
        weights_sha256="a" * 64,
        environment={},
        points=points,
    )
    folder = RunFolder(directory / "runs" / record.run_id)
    folder.create(record.config)
    folder.write_result(record)
    return folder


def latency(**changes: Any) -> LatencyRecord:
    values = {
        "weights_sha256": "a" * 64,
        "batch": 16,
        "threads": 2,
        "rounds": 50,
        "latency_ms": 0.5,
        "median_latency_ms": 0.75,
        "dense_latency_ms": 2.0,
        "median_dense_latency_ms": 2.5,
        "sparse_layers": 1,
        "layers": 2,
    }
    return LatencyRecord(**(values | changes))


def measured(directory: Path) -> dict[tuple[str, float | None], tuple[Any, ...]]:
    rows = open_tables(directory).rows("results").to_table().to_pylist()
    return {(row["method"], row["threshold"]): tuple(row[column] for column in COLUMNS) for row in rows}


NOTHING = (None, None, None, None)


def test_stands_in_the_rows_of_the_network_that_the_run_left(tmp_path: Path) -> None:
    one, other = finished_run(tmp_path, "magnitude"), finished_run(tmp_path, "variational-dropout", (3.0, 1.0))
    keys = {("magnitude", None), ("variational-dropout", 3.0), ("variational-dropout", 1.0)}
    assert measured(tmp_path) == dict.fromkeys(keys, NOTHING)
    other.write_latency(latency())
    # A run of variational dropout leaves the network of its first threshold.
    assert measured(tmp_path) == dict.fromkeys(keys, NOTHING) | {("variational-dropout", 3.0): (0.5, 2.0, 16, 2)}
    one.write_latency(latency(latency_ms=0.125))
    assert query(tmp_path, "select min(latency_ms) as least from results")["least"][0] == 0.125


def test_tables_follow_when_it_is_measured_again_or_deleted(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "magnitude")
    for least in (0.5, 0.25, 0.75):
        folder.write_latency(latency(latency_ms=least))
        assert measured(tmp_path) == {("magnitude", None): (least, 2.0, 16, 2)}
    folder.latency_path.unlink()
    assert measured(tmp_path) == {("magnitude", None): NOTHING}


def test_that_of_other_weights_is_none(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "magnitude")
    folder.write_latency(latency(weights_sha256="b" * 64))
    assert measured(tmp_path) == {("magnitude", None): NOTHING}


def test_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "magnitude")
    assert folder.read_latency() is None
    folder.write_latency(latency(environment={"torch": "2"}))
    assert folder.read_latency() == latency(environment={"torch": "2"})
    assert folder.status() == "finished"


@pytest.mark.parametrize("text", ["", "{}", '{"batch": 0}', "[1]"])
def test_damaged_file_is_one_line(tmp_path: Path, text: str) -> None:
    folder = finished_run(tmp_path, "magnitude")
    folder.latency_path.write_text(text)
    expected = r"^\S+latency\.json is not a latency record: [^\n]*; delete the file to measure it again$"
    with pytest.raises(SparsebenchError, match=expected):
        open_tables(tmp_path)
