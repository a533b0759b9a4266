from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from sparsebench.atomic import atomic_file, make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.query import query
from sparsebench.records.rows import LAYERS_SCHEMA, RESULTS_SCHEMA, layer_rows, result_rows
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import LayerRecord, PointRecord, RunRecord, WeightHistogram, short_hash
from sparsebench.records.table import open_tables

LAYERS = (
    LayerRecord(
        layer="0.weight",
        shape=(4, 1, 3, 3),
        weights=36,
        zeros=18,
        histogram=WeightHistogram(low=-0.5, high=0.5, counts=(8, 1, 9, 0)),
    ),
    LayerRecord(layer="7.weight", shape=(10, 4), weights=40, zeros=40),
)


def record(seed: int = 0, method: str = "magnitude", thresholds: tuple[float | None, ...] = (None,), **changes: Any) -> RunRecord:
    config = {"method": method, "parameters": {"sparsity": 0.9}, "seed": seed}
    values: dict[str, Any] = {
        "run_id": short_hash(config),
        "config": config,
        "workload": "digits",
        "method": method,
        "seed": seed,
        "metric": "accuracy",
        "steps": 100,
        "seconds": 1.5,
        "processor_seconds": 1.25,
        "peak_memory_bytes": 1000,
        "weights_sha256": "0" * 64,
        "environment": {},
        "dense_multiply_adds": 1000,
        "training_multiply_adds": 3e6,
        "dense_training_multiply_adds": 4e6,
        "points": tuple(
            PointRecord(
                target_sparsity=0.9 if threshold is None else None,
                threshold=threshold,
                sparsity=0.75,
                metrics={"validation": {"accuracy": 90.0, "loss": 0.5}, "test": {"accuracy": 89.0, "loss": 0.6}},
                layers=LAYERS,
                multiply_adds=250,
            )
            for threshold in thresholds
        ),
    }
    return RunRecord(**(values | changes))


def write(directory: Path, *records: RunRecord) -> Path:
    for one in records:
        folder = RunFolder(directory / "runs" / one.run_id)
        folder.create(one.config)
        folder.write_result(one)
    return directory


def test_results_have_a_row_for_each_evaluation_split_and_metric(tmp_path: Path) -> None:
    """PEERS 2 and 23: theoretical costs and measured seconds side by side, with the whole configuration and the seed."""
    one, other = record(), record(1, "variational-dropout", (3.0, 1.0), peak_memory_bytes=None, training_multiply_adds=None)
    write(tmp_path, one, other)
    (tmp_path / "study.json").write_text(json.dumps({"name": "mine"}))
    for run in (one, other):
        RunFolder(tmp_path / "runs" / run.run_id).model_path.write_bytes(b"small")
    rows = open_tables(tmp_path).rows("results").to_table().to_pylist()
    assert len(rows) == 4 + 8
    found = {(row["run_id"], row["threshold"], row["split"], row["metric"]): row for row in rows}
    assert len(found) == len(rows)
    row = found[one.run_id, None, "test", "accuracy"]
    assert row == {
        "run_id": one.run_id,
        "study": "mine",
        "source": "sparsebench",
        "workload": "digits",
        "method": "magnitude",
        "configuration": short_hash({"method": "magnitude", "parameters": {"sparsity": 0.9}}),
        "seed": 0,
        "target_sparsity": 0.9,
        "sparsity": 0.75,
        "threshold": None,
        "split": "test",
        "metric": "accuracy",
        "primary_metric": True,
        "value": 89.0,
        "steps": 100,
        "seconds": 1.5,
        "processor_seconds": 1.25,
        "peak_memory_bytes": 1000,
        "inference_cost": 0.25,
        "training_cost": 0.75,
        "file_bytes": 5,
        "latency_ms": None,
        "dense_latency_ms": None,
        "latency_batch": None,
        "latency_threads": None,
        "config": '{"method":"magnitude","parameters":{"sparsity":0.9},"seed":0}',
    }
    assert found[other.run_id, 1.0, "validation", "loss"]["value"] == 0.5
    assert found[other.run_id, 1.0, "validation", "loss"]["primary_metric"] is False
    assert found[other.run_id, 1.0, "validation", "loss"]["peak_memory_bytes"] is None
    assert found[other.run_id, 1.0, "validation", "loss"]["training_cost"] is None
    assert found[other.run_id, 3.0, "test", "accuracy"]["target_sparsity"] is None
    # A run of variational dropout leaves the network of its first threshold.
    assert {row["threshold"]: row["file_bytes"] for row in rows if row["run_id"] == other.run_id} == {3.0: 5, 1.0: None}


def test_columns_have_the_promised_types(tmp_path: Path) -> None:
    schema = open_tables(write(tmp_path, record(peak_memory_bytes=None))).rows("results").schema
    types = {field.name: str(field.type) for field in schema}
    promised = {
        "run_id": "string",
        "study": "string",
        "source": "string",
        "workload": "string",
        "method": "string",
        "seed": "int64",
        "target_sparsity": "double",
        "sparsity": "double",
        "threshold": "double",
        "split": "string",
        "metric": "string",
        "value": "double",
        "steps": "int64",
        "seconds": "double",
        "processor_seconds": "double",
        "peak_memory_bytes": "int64",
        "config": "string",
    }
    assert {name: types.get(name) for name in promised} == promised


def test_replicates_share_a_configuration(tmp_path: Path) -> None:
    write(tmp_path, record(0), record(1), record(0, "random"))
    answer = query(
        tmp_path, "select method, count(distinct configuration) as n, count(distinct seed) as s from results group by all"
    )
    assert {row.method: (row.n, row.s) for row in answer.itertuples()} == {"magnitude": (1, 2), "random": (1, 1)}


def test_layers_are_a_table_too(tmp_path: Path) -> None:
    write(tmp_path, record())
    answer = query(tmp_path, "select position, layer, shape, weights, zeros, sparsity from layers order by position")
    assert answer.to_numpy().tolist() == [[0, "0.weight", "4x1x3x3", 36, 18, 0.5], [1, "7.weight", "10x4", 40, 40, 1.0]]


def test_distributions_are_a_table_too(tmp_path: Path) -> None:
    """A row for each histogram that a run wrote down, and none for what it did not."""
    begun = {"0.weight": WeightHistogram(low=-1.0, high=1.0, counts=(9, 9, 9, 9))}
    write(tmp_path, record(0, "variational-dropout", (3.0, 1.0), initial_histograms=begun), record(1, points=bare(record())))
    answer = query(
        tmp_path,
        "select moment, target_sparsity, threshold, position, layer, weights, low, high, counts, method, seed from distributions "
        "order by moment desc, threshold",
    )
    rows = [tuple(None if value != value else value for value in row) for row in answer.itertuples(index=False)]
    assert rows == [
        ("initialization", None, None, 0, "0.weight", 36, -1.0, 1.0, "[9, 9, 9, 9]", "variational-dropout", 0),
        ("end", None, 1.0, 0, "0.weight", 18, -0.5, 0.5, "[8, 1, 9, 0]", "variational-dropout", 0),
        ("end", None, 3.0, 0, "0.weight", 18, -0.5, 0.5, "[8, 1, 9, 0]", "variational-dropout", 0),
    ]
    whole = query(
        tmp_path, "select sum(list_sum(from_json(counts, '[\"bigint\"]'))) as n from distributions where moment = 'end'"
    )
    left = query(tmp_path, "select sum(weights - zeros) as n from layers where method = 'variational-dropout'")
    assert int(whole["n"][0]) == int(left["n"][0]) == 36


def bare(full: RunRecord) -> tuple[PointRecord, ...]:
    """Its points as an older release wrote them."""
    layers = tuple(layer.model_copy(update={"histogram": None}) for layer in full.points[0].layers)
    return (full.points[0].model_copy(update={"layers": layers}),)


def passed_on(directory: Path, target: Path, *names: str) -> Path:
    open_tables(directory)
    target.mkdir()
    for name in names:
        shutil.copy(directory / name, target / name)
    return target


def test_tables_answer_without_their_runs(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", record(0), record(1))
    alone = passed_on(whole, tmp_path / "alone", "results.parquet", "layers.parquet", "distributions.parquet")
    before = {path.name: path.read_bytes() for path in alone.iterdir()}
    for table in ("results", "layers", "distributions"):
        asked = f"select * from {table}"
        assert query(alone, asked).equals(query(whole, asked))
    assert {path.name: path.read_bytes() for path in alone.iterdir()} == before


def test_what_older_tables_lack_is_not_known(tmp_path: Path) -> None:
    alone = passed_on(write(tmp_path / "whole", record()), tmp_path / "alone", "results.parquet")
    pq.write_table(pq.read_table(alone / "results.parquet").drop_columns(["processor_seconds"]), alone / "results.parquet")
    assert query(alone, "select processor_seconds as s from results")["s"].isna().all()
    assert len(query(alone, "select * from layers")) == len(query(alone, "select * from distributions")) == 0


@pytest.mark.parametrize("damage", ["bytes", "column", "type"])
def test_tables_alone_that_cannot_be_read_are_named(tmp_path: Path, damage: str) -> None:
    alone = passed_on(write(tmp_path / "whole", record()), tmp_path / "alone", "results.parquet")
    path = alone / "results.parquet"
    if damage == "bytes":
        path.write_bytes(b"PAR1 no more")
    elif damage == "column":
        pq.write_table(pq.read_table(path).drop_columns(["method"]), path)
    else:
        pq.write_table(pa.table({"run_id": [1.5], "value": ["x"]}), path)
    with pytest.raises(SparsebenchError, match=r"results\.parquet (cannot be read|is no table)") as caught:
        query(alone, "select * from results")
    assert "\n" not in str(caught.value)


def test_runs_come_before_tables(tmp_path: Path) -> None:
    write(tmp_path, record())
    assert count(tmp_path) == 1
    shutil.rmtree(tmp_path / "runs")
    assert count(tmp_path) == 1  # all that is left
    write(tmp_path, record(1), record(2))
    assert count(tmp_path) == 2


def stamps(directory: Path) -> list[tuple[int, int]]:
    return [
        (path.stat().st_mtime_ns, path.stat().st_ino) for path in (directory / "results.parquet", directory / "layers.parquet")
    ]


def count(directory: Path) -> int:
    return int(query(directory, "select count(distinct run_id) as n from results")["n"][0])


def test_tables_are_made_again_when_runs_change_and_only_then(tmp_path: Path) -> None:
    write(tmp_path, record(0))
    assert count(tmp_path) == 1
    before = stamps(tmp_path)
    assert count(tmp_path) == 1
    (tmp_path / "runs" / "started").mkdir()  # a run under way is not a result
    (tmp_path / "runs" / "a.lock").touch()
    assert count(tmp_path) == 1
    assert stamps(tmp_path) == before
    write(tmp_path, record(1))
    assert count(tmp_path) == 2
    assert stamps(tmp_path) != before
    before = stamps(tmp_path)
    write(tmp_path, record(1, seconds=2.5))
    assert query(tmp_path, "select max(seconds) as s from results")["s"][0] == 2.5
    assert stamps(tmp_path) != before
    RunFolder(tmp_path / "runs" / record(1).run_id).result_path.unlink()
    assert count(tmp_path) == 1
    (tmp_path / "study.json").write_text('{"name": "later"}')
    assert query(tmp_path, "select distinct study from results")["study"].tolist() == ["later"]


@pytest.mark.parametrize("name", ["results.parquet", "layers.parquet", "distributions.parquet"])
@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PAR1"), lambda path: path.touch()]
)
def test_lost_or_damaged_tables_are_made_again(tmp_path: Path, name: str, damage: Any) -> None:
    write(tmp_path, record())
    open_tables(tmp_path)
    damage(tmp_path / name)
    assert count(tmp_path) == 1
    assert len(query(tmp_path, "select * from layers")) == 2


def test_tables_of_another_program_are_not_taken_for_ours(tmp_path: Path) -> None:
    write(tmp_path, record())
    pq.write_table(pa.table({"a": [1]}), tmp_path / "results.parquet")
    assert count(tmp_path) == 1


@pytest.mark.parametrize("name", ["with space", "star*", "brackets[1]", "quote's", "ünïcode", "question?"])
def test_any_folder_name_can_be_queried(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, record())
    write(tmp_path / "star-and-more", record(1), record(2))
    open_tables(tmp_path / "star-and-more")
    assert count(tmp_path / name) == 1


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("selec 1", r"^the query failed: Parser Error: .*selec"),
        ("select nope from results", r"^the query failed: Binder Error: .*nope"),
        ("select * from resuls", r"^the query failed: Catalog Error: .*resuls"),
        ("select cast('a' as int)", r"^the query failed: Conversion Error"),
        ("", r"^the query returns no rows"),
        ("select * from '/no/such/file.parquet'", r"^the query failed: IO Error"),
    ],
)
def test_wrong_query_is_one_line(tmp_path: Path, statement: str, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message) as caught:
        query(write(tmp_path, record()), statement)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("", "file"),
        ("{", "file"),
        ("[]", "file"),
        ('{"format": 1}', "run_id"),
        (record().model_dump_json().replace('"format":1', '"format":2'), "format"),
        (record().model_dump_json().replace('"sparsity":0.75', '"sparsity":1.75'), "points.0.sparsity"),
        (record().model_dump_json().replace('"steps":100', '"steps":"many"'), "steps"),
        (record().model_dump_json().replace('"seed":0,', '"seed":0,"extra":1,'), "extra"),
    ],
)
def test_damaged_record_is_one_line_that_names_file_and_field(tmp_path: Path, content: str, field: str) -> None:
    write(tmp_path, record(0), record(1))
    path = RunFolder(tmp_path / "runs" / record(1).run_id).result_path
    path.write_text(content)
    with pytest.raises(SparsebenchError, match="delete the file to run it again") as caught:
        query(tmp_path, "select 1")
    assert str(caught.value).startswith(f"{path} is not a run record: {field}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results.parquet").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\0"])
def test_damaged_study_note_is_one_line_that_names_the_file(tmp_path: Path, content: str) -> None:
    write(tmp_path, record())
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(SparsebenchError, match=r"study\.json cannot be read: ") as caught:
        open_tables(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: (path / "runs").mkdir(parents=True)])
def test_folder_without_results_is_one_line(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "empty")
    with pytest.raises(SparsebenchError, match=r"no such results folder|holds no runs|holds no finished run yet"):
        open_tables(tmp_path / "empty")


def test_not_a_number_cannot_be_recorded() -> None:
    with pytest.raises(ValidationError):
        record(seconds=float("nan"))


def test_result_replaces_failure_and_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.status() == "new"
    folder.create(record().config)
    assert folder.status() == "started"
    folder.checkpoint_path.write_bytes(b"1")
    folder.write_failure("it went wrong", "Traceback ...")
    assert (folder.status(), folder.read_failure()) == ("failed", "it went wrong")
    assert "Traceback" in folder.failure_path.read_text()
    folder.write_result(record())
    assert folder.status() == "finished"
    assert {file.name for file in folder.path.iterdir()} == {"config.json", "result.json"}
    assert folder.read_result() == record()


def test_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with contextlib.suppress(KeyError), atomic_file(path) as file:
        file.write(b"half of the new")
        assert path.read_bytes() == b"old"
        raise KeyError
    assert path.read_bytes() == b"old"
    with atomic_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_file_is_readable_for_those_that_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "page.html") as file:
            file.write(b"for everybody")
    finally:
        os.umask(before)
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["results.parquet", "layers.parquet", "distributions.parquet"])
def test_full_disk_leaves_no_half_written_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(tmp_path, record())
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if list(tmp_path.glob(f".{name}.*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SparsebenchError, match=rf"^cannot write \S*/{name}: No space left on device$"):
        open_tables(tmp_path)
    assert not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))
    monkeypatch.setattr(os, "fsync", sync)
    assert count(tmp_path) == 1


LIMITED = """
import resource, sys
from pathlib import Path
from sparsebench.records.table import open_tables
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    open_tables(Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_file_size_limit_of_the_system_is_met_like_a_full_disk(tmp_path: Path) -> None:
    write(tmp_path, record())
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (f"SparsebenchError cannot write {tmp_path}/results.parquet: File too large\n", "")
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]


def test_unwritable_places_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SparsebenchError, match=r"^cannot create folder \S+: "):
        make_directory(tmp_path / "file" / "below")
    with pytest.raises(SparsebenchError, match=r"^cannot create folder \S+: File exists"):
        make_directory(tmp_path / "file")
    with pytest.raises(SparsebenchError, match=r"^cannot write \S+: Not a directory$"), atomic_file(tmp_path / "file" / "x"):
        pass
    with (
        pytest.raises(SparsebenchError, match=r"^cannot write \S+: No such file or directory$"),
        atomic_file(tmp_path / "no" / "x"),
    ):
        pass
    with pytest.raises(SparsebenchError, match=r"^cannot create folder \S+: "), RunFolder(tmp_path / "file" / "a" / "b").claim():
        pass


def test_lock_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(SparsebenchError, match=r"^cannot write \S+run\.lock: "), RunFolder(tmp_path / "run").claim():
        pass


def test_schema_of_the_tables_is_what_the_rows_hold() -> None:
    assert set(RESULTS_SCHEMA.names) == set(next(result_rows(record(), None, None, None)))
    assert set(LAYERS_SCHEMA.names) == set(next(layer_rows(record())))
