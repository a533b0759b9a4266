"""The tables over all runs of a folder, imported ones too, kept as Parquet and made again when a run came, changed or went."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparsebench.atomic import atomic_file
from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RUNS, RunFolder
from sparsebench.records.schema import RunRecord, canonical_json, configuration_hash

__all__ = ["LAYERS_SCHEMA", "RESULTS_SCHEMA", "Tables", "imported_path", "open_tables", "read_imported", "run_folders"]

RESULTS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("study", pa.string()),
        ("source", pa.string()),  # who made the run: schema.OWN_SOURCE, or whose result file it was imported from
        ("workload", pa.string()),
        ("method", pa.string()),
        ("configuration", pa.string()),  # hash of the configuration without its seed: equal for replicates
        ("seed", pa.int64()),
        ("target_sparsity", pa.float64()),
        ("sparsity", pa.float64()),
        ("threshold", pa.float64()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("primary_metric", pa.bool_()),
        ("value", pa.float64()),
        ("steps", pa.int64()),
        ("seconds", pa.float64()),
        ("processor_seconds", pa.float64()),
        ("peak_memory_bytes", pa.int64()),
        ("inference_cost", pa.float64()),  # multiply-adds as multiples of the dense network's, and of its training: theoretical
        ("training_cost", pa.float64()),
        ("config", pa.string()),
    ]
)
LAYERS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("method", pa.string()),
        ("configuration", pa.string()),
        ("seed", pa.int64()),
        ("target_sparsity", pa.float64()),
        ("threshold", pa.float64()),
        ("position", pa.int64()),  # order of the layer in the network
        ("layer", pa.string()),
        ("shape", pa.string()),
        ("weights", pa.int64()),
        ("zeros", pa.int64()),
        ("sparsity", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Tables:
    """Where the tables of a results folder lie: `results` (a row per evaluation, split and metric) and `layers`."""

    results: Path
    layers: Path


def run_folders(directory: Path) -> list[RunFolder]:
    """The run folders of a results folder, in order of their ids; none where all its results are imported.

    Raises:
        SparsebenchError: `directory` holds no runs.
    """
    if not directory.is_dir():
        raise SparsebenchError(f"no such results folder: {directory}")
    runs = directory / RUNS
    if not runs.is_dir():
        if imported_path(directory).exists():
            return []
        raise SparsebenchError(f"{directory} holds no runs: expected a folder {runs}; `sparsebench study run` makes one")
    return [RunFolder(path) for path in sorted(runs.iterdir()) if path.is_dir()]


def imported_path(directory: Path) -> Path:
    """Where a results folder keeps the rows of imported runs: Parquet with the columns of `RESULTS_SCHEMA`."""
    return directory / "imported.parquet"


def read_imported(directory: Path) -> list[dict[str, Any]]:
    """The rows of the imported runs of a results folder; what their files did not tell is None.

    Raises:
        SparsebenchError: The file of imported runs cannot be read.
    """
    path = imported_path(directory)
    if not path.exists():
        return []
    try:
        with path.open("rb") as stream:
            table = pq.read_table(stream, schema=RESULTS_SCHEMA)  # a column that it lacks is read as nulls
    except (OSError, pa.ArrowException) as error:
        raise SparsebenchError(f"{path} cannot be read: {_first_line(error)}; delete it and import again") from error
    for column in (
        "run_id",
        "source",
        "workload",
        "method",
        "configuration",
        "seed",
        "sparsity",
        "split",
        "metric",
        "value",
        "config",
    ):
        if table[column].null_count:
            raise SparsebenchError(f"{path} holds no imported runs: column {column!r} lacks values; delete it and import again")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def open_tables(directory: Path) -> Tables:
    """Bring the Parquet tables of a results folder up to date and tell where they are.

    The tables are a copy of what the `result.json` files and the file of imported runs say, and are made again whenever
    those changed.

    Args:
        directory: A folder written by `sparsebench study run`, `sparsebench train` or `sparsebench import`.

    Raises:
        SparsebenchError: The folder holds no finished run, or a record in it cannot be read.
    """
    finished = [folder for folder in run_folders(directory) if folder.status() == "finished"]
    if not finished and not imported_path(directory).exists():
        raise SparsebenchError(f"{directory} holds no finished run yet")
    study = _study_name(directory)
    fingerprint = _fingerprint(finished, imported_path(directory), study)
    tables = Tables(directory / "results.parquet", directory / "layers.parquet")
    if _stored_fingerprint(tables.results) == fingerprint == _stored_fingerprint(tables.layers):
        return tables
    records = [folder.read_result() for folder in finished]
    results = [row for record in records for row in _result_rows(record, study)]
    results += [row | {"study": study} for row in read_imported(directory)]
    _write(tables.results, RESULTS_SCHEMA, results, fingerprint)
    _write(tables.layers, LAYERS_SCHEMA, [row for record in records for row in _layer_rows(record)], fingerprint)
    return tables


def _study_name(directory: Path) -> str | None:
    try:
        name = json.loads((directory / "study.json").read_bytes())["name"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SparsebenchError(f"{directory / 'study.json'} cannot be read: {error}; run the study again") from error
    return str(name)


def _fingerprint(finished: Iterable[RunFolder], imported: Path, study: str | None) -> bytes:
    digest = hashlib.sha256(f"3 {study}\n".encode())
    named = [(folder.path.name, folder.result_path) for folder in finished]
    for name, path in [*named, (imported.name, imported)] if imported.exists() else named:
        status = path.stat()
        digest.update(f"{name} {status.st_mtime_ns} {status.st_size}\n".encode())
    return digest.hexdigest().encode()


def _stored_fingerprint(path: Path) -> bytes | None:
    try:
        metadata: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return metadata.get(b"sparsebench.fingerprint")


def _write(path: Path, schema: pa.Schema, rows: list[dict[str, Any]], fingerprint: bytes) -> None:
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({b"sparsebench.fingerprint": fingerprint}))
    with atomic_file(path) as stream:
        pq.write_table(table, stream, compression="zstd")


def _configuration(record: RunRecord) -> str:
    return configuration_hash(record.config)


def _result_rows(record: RunRecord, study: str | None) -> Iterator[dict[str, Any]]:
    shared = {
        "run_id": record.run_id,
        "study": study,
        "source": record.source,
        "workload": record.workload,
        "method": record.method,
        "configuration": _configuration(record),
        "seed": record.seed,
        "steps": record.steps,
        "seconds": record.seconds,
        "processor_seconds": record.processor_seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "training_cost": _ratio(record.training_multiply_adds, record.dense_training_multiply_adds),
        "config": canonical_json(record.config),
    }
    for point in record.points:
        for split, metrics in point.metrics.items():
            for metric, value in metrics.items():
                yield shared | {
                    "target_sparsity": point.target_sparsity,
                    "sparsity": point.sparsity,
                    "threshold": point.threshold,
                    "inference_cost": _ratio(point.multiply_adds, record.dense_multiply_adds),
                    "split": split,
                    "metric": metric,
                    "primary_metric": metric == record.metric,
                    "value": value,
                }


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _layer_rows(record: RunRecord) -> Iterator[dict[str, Any]]:
    configuration = _configuration(record)
    for point in record.points:
        for position, layer in enumerate(point.layers):
            yield {
                "run_id": record.run_id,
                "method": record.method,
                "configuration": configuration,
                "seed": record.seed,
                "target_sparsity": point.target_sparsity,
                "threshold": point.threshold,
                "position": position,
                "layer": layer.layer,
                "shape": "x".join(str(size) for size in layer.shape),
                "weights": layer.weights,
                "zeros": layer.zeros,
                "sparsity": layer.zeros / layer.weights if layer.weights else 0.0,
            }
