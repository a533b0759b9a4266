"""The tables over all runs of a folder, imported ones too: Parquet, brought up to date when a run came, changed or went."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.dataset import Dataset, InMemoryDataset, dataset

from sparsebench.atomic import atomic_file
from sparsebench.errors import SparsebenchError
from sparsebench.records.compaction import Compacted, merge
from sparsebench.records.rows import RESULTS_SCHEMA, SCHEMAS
from sparsebench.records.run_states import RunState, finished_states, holds_tables_alone, imported_path, table_path

__all__ = ["Tables", "open_tables", "read_imported"]

_VERSION = 8  # of the tables: those that another release wrote are made again
_FINGERPRINT = b"sparsebench.fingerprint"
_STUDY = b"sparsebench.study"


_NEEDED = ("run_id", "source", "workload", "method", "configuration", "seed", "sparsity", "split", "metric", "value", "config")


@dataclass(frozen=True)
class Tables:
    """The tables of a results folder, up to date.

    `results` has a row for each evaluation, split and metric, `layers` one for each layer of an evaluation, `distributions` one
    for each histogram of a layer's weights.
    """

    directory: Path

    def rows(self, table: str) -> Dataset:
        """The rows of a table, read when they are asked for.

        Of tables that came without their runs, a column that they lack is null, and a table that is missing has no rows.

        Args:
            table: A key of `rows.SCHEMAS`.
        """
        path = table_path(self.directory, table)
        if not path.exists():
            return InMemoryDataset(SCHEMAS[table].empty_table())
        return dataset(path, schema=SCHEMAS[table])


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
    for column in _NEEDED:
        if table[column].null_count:
            raise SparsebenchError(f"{path} holds no imported runs: column {column!r} lacks values; delete it and import again")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def open_tables(directory: Path) -> Tables:
    """Bring the Parquet tables of a results folder up to date and tell where they are.

    The tables are a copy of what the `result.json` files and the file of imported runs say. When some of those came, changed or
    went, these are read, and the rows of all others are taken over. `run_states.parquet` says which records the rows were read
    from; where it, or a table, is lost, damaged or of another release, all are read again. A folder that was passed on as tables
    alone is left as it is.

    Args:
        directory: A folder written by `sparsebench study run`, `sparsebench train` or `sparsebench import`.

    Raises:
        SparsebenchError: The folder holds no finished run, or a record in it cannot be read.
    """
    tables = Tables(directory)
    if holds_tables_alone(directory):
        _check(tables)
        return tables
    states = finished_states(directory)
    if not states and not imported_path(directory).exists():
        raise SparsebenchError(f"{directory} holds no finished run yet")
    study = _study_name(directory)
    fingerprint = _fingerprint(states, imported_path(directory), study)
    paths = [table_path(directory, name) for name in SCHEMAS]
    if {_stored_fingerprint(path) for path in paths} == {fingerprint}:
        return tables
    index = directory / "run_states.parquet"
    merged = merge(directory, states, study, _previous([*paths, index], study))
    imported = pa.Table.from_pylist([row | {"study": study} for row in read_imported(directory)], schema=RESULTS_SCHEMA)
    found = (pa.concat_tables([merged.results, imported]), merged.layers, merged.distributions)
    for path, table in zip(paths, found, strict=True):
        _write(path, table, fingerprint)
    _write(index, merged.index.replace_schema_metadata({_STUDY: _written(study)}), fingerprint)
    return tables


def _check(tables: Tables) -> None:
    """Whether tables that came without runs can be read.

    Raises:
        SparsebenchError: They cannot, or are those of another program.
    """
    for name in SCHEMAS:
        path = table_path(tables.directory, name)
        try:
            read = tables.rows(name).to_table()
        except (OSError, pa.ArrowException) as error:
            raise SparsebenchError(f"{path} cannot be read: {_first_line(error)}") from error
        for column in _NEEDED if name == "results" else ("run_id", "layer"):
            if read[column].null_count:
                raise SparsebenchError(f"{path} is no table of this project: column {column!r} lacks values")


def _previous(paths: Sequence[Path], study: str | None) -> Compacted | None:
    """The tables and their index as they are, if they belong together."""
    stored = {_stored_fingerprint(path) for path in paths}
    if len(stored) != 1 or None in stored:
        return None
    try:
        found = Compacted(*(pq.read_table(path) for path in paths))
    except (OSError, pa.ArrowException):
        return None
    same = found.index.schema.metadata.get(_STUDY) == _written(study)
    return found if same and found.is_whole() else None


def _written(study: str | None) -> bytes:
    return f"{_VERSION} {study}".encode()


def _study_name(directory: Path) -> str | None:
    try:
        name = json.loads((directory / "study.json").read_bytes())["name"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SparsebenchError(f"{directory / 'study.json'} cannot be read: {error}; run the study again") from error
    return str(name)


def _fingerprint(states: Mapping[str, RunState], imported: Path, study: str | None) -> bytes:
    digest = hashlib.sha256(f"{_VERSION} {study}\n".encode())
    if imported.exists():
        states = {**states, imported.name: RunState.of(imported.stat())}
    digest.update("".join(f"{name} {' '.join(map(str, state))}\n" for name, state in states.items()).encode())
    return digest.hexdigest().encode()


def _stored_fingerprint(path: Path) -> bytes | None:
    try:
        metadata: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return metadata.get(_FINGERPRINT)


def _write(path: Path, table: pa.Table, fingerprint: bytes) -> None:
    metadata = {**(table.schema.metadata or {}), _FINGERPRINT: fingerprint}
    with atomic_file(path) as stream:
        pq.write_table(table.replace_schema_metadata(metadata), stream, compression="zstd")
