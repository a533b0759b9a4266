"""Tables that are brought up to date, step by step, are those that are made at once; and a large folder answers in time."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.records.query import query
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import LayerRecord, PointRecord, RunRecord, WeightHistogram, short_hash
from sparsebench.records.table import open_tables

FILES = ("results.parquet", "layers.parquet", "distributions.parquet", "run_states.parquet")
HISTOGRAM = WeightHistogram(low=-1.0, high=1.0, counts=(1, 0, 0, 1))


def record(seed: int, points: int, layers: int, seconds: float) -> RunRecord:
    config = {"method": "magnitude", "parameters": {"sparsity": 0.9}, "seed": seed}
    point = PointRecord(
        target_sparsity=0.9,
        threshold=None,
        sparsity=0.9,
        metrics={"validation": {"accuracy": 90.0 + seed % 7}, "test": {"accuracy": 89.0}},
        layers=tuple(
            LayerRecord(layer=f"{n}.weight", shape=(4, 5), weights=20, zeros=18, histogram=HISTOGRAM) for n in range(layers)
        ),
        multiply_adds=250,
    )
    return RunRecord(
        run_id=short_hash(config),
        config=config,
        workload="digits",
        method="magnitude",
        seed=seed,
        metric="accuracy",
        steps=100,
        seconds=seconds,
        processor_seconds=seconds,
        peak_memory_bytes=None,
        weights_sha256="0" * 64,
        environment={},
        dense_multiply_adds=1000,
        training_multiply_adds=3e6,
        dense_training_multiply_adds=4e6,
        initial_histograms={f"{n}.weight": HISTOGRAM for n in range(layers)},
        points=(point,) * points,
    )


def write(directory: Path, one: RunRecord) -> None:
    RunFolder(directory / "runs" / one.run_id).write_result(one)


def make_folder(directory: Path, seed: int) -> Path:
    folder = directory / "runs" / record(seed, 1, 1, 1.0).run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


WRITE = st.tuples(st.just("write"), st.integers(0, 7), st.integers(1, 3), st.integers(0, 3), st.integers(1, 10**6))
REMOVE = st.tuples(st.just("remove"), st.integers(0, 7))
LOSE = st.tuples(st.just("lose"), st.sampled_from(FILES))
NAME = st.tuples(st.just("name"), st.sampled_from(["one", "two"]))
LOOK = st.tuples(st.just("look"))


@settings(max_examples=15)
@given(st.lists(st.one_of(WRITE, WRITE, WRITE, REMOVE, LOSE, NAME, LOOK, LOOK), min_size=1, max_size=15))
def test_step_by_step_is_at_once(actions: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "steps"
        make_folder(directory, 99)
        write(directory, record(99, 1, 1, 1.0))  # so that there is something to look at
        for action in [*actions, ("look",)]:
            match action:
                case ("write", seed, points, layers, microseconds):
                    make_folder(directory, seed)
                    write(directory, record(seed, points, layers, microseconds / 1e6))
                case ("remove", seed):
                    shutil.rmtree(make_folder(directory, seed))
                case ("lose", name):
                    (directory / name).unlink(missing_ok=True)
                case ("name", name):
                    (directory / "study.json").write_text(json.dumps({"name": name}))
                case _:
                    open_tables(directory)
        shutil.copytree(directory, Path(place) / "once", ignore=shutil.ignore_patterns("*.parquet"))
        open_tables(Path(place) / "once")
        for name in FILES[:3]:
            assert pq.read_table(directory / name).equals(pq.read_table(Path(place) / "once" / name))


def test_only_records_that_changed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(6):
        make_folder(tmp_path, seed)
        write(tmp_path, record(seed, 2, 2, 1.0))
    open_tables(tmp_path)
    read = []
    original = RunFolder.read_result
    monkeypatch.setattr(RunFolder, "read_result", lambda self: [read.append(self.path.name), original(self)][1])
    open_tables(tmp_path)
    assert read == []
    make_folder(tmp_path, 6)
    for seed in (2, 6):
        write(tmp_path, record(seed, 1, 3, 2.0))
    open_tables(tmp_path)
    assert sorted(read) == sorted(record(seed, 1, 1, 1.0).run_id for seed in (2, 6))
    answer = query(tmp_path, "select seed, count(*) as n, max(seconds) as s from results group by seed order by seed")
    assert answer.to_numpy().tolist() == [[seed, 2 if seed in (2, 6) else 4, 2.0 if seed in (2, 6) else 1.0] for seed in range(7)]


def test_rows_of_another_release_are_not_taken_over(tmp_path: Path) -> None:
    make_folder(tmp_path, 0)
    write(tmp_path, record(0, 1, 1, 1.0))
    open_tables(tmp_path)
    old = pq.read_table(tmp_path / "results.parquet").drop_columns(["seconds"])
    pq.write_table(old, tmp_path / "results.parquet")  # with the fingerprint that it had
    make_folder(tmp_path, 1)
    write(tmp_path, record(1, 1, 1, 1.0))
    assert query(tmp_path, "select sum(seconds) as s from results")["s"][0] == 4.0


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is room: disks can take ten minutes to make and delete so many files."""
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free > 3e9:
        with tempfile.TemporaryDirectory(dir=shared) as folder:
            yield Path(folder)
    else:
        yield tmp_path


@pytest.mark.slow
def test_hundred_thousand_results_answer_in_two_seconds(roomy: Path) -> None:
    """Six seconds are allowed where two are promised of a quiet machine: other programs make a processor slower."""
    text = record(0, 1, 6, 1.0).model_dump_json()
    (roomy / "runs").mkdir()
    for number in range(100_000):
        folder = roomy / "runs" / f"{number:016x}"
        folder.mkdir()
        (folder / "result.json").write_text(text.replace(record(0, 1, 6, 1.0).run_id, f"{number:016x}"))
    begun = time.process_time()
    open_tables(roomy)
    made = time.process_time() - begun
    begun = time.process_time()
    answer = query(roomy, "select count(distinct run_id) as n, avg(value) as v from results where split = 'validation'")
    asked = time.process_time() - begun
    assert answer.to_numpy().tolist() == [[100_000, 90.0]]
    make_folder(roomy, 1)
    write(roomy, record(1, 1, 6, 1.0))
    begun = time.process_time()
    open_tables(roomy)
    updated = time.process_time() - begun
    shutil.rmtree(roomy / "runs")  # later tests need not remove so many files
    assert asked < 6.0
    assert updated < made / 4
