"""Keeping imported runs in a results folder, beside the runs that were made there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparsebench.atomic import atomic_file, make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.importing.layouts import SPARSITIES
from sparsebench.records.importing.result_file import ImportedRun, read_result_file
from sparsebench.records.locking import locked
from sparsebench.records.rows import RESULTS_SCHEMA
from sparsebench.records.run_folder import RUNS
from sparsebench.records.run_states import imported_path
from sparsebench.records.table import read_imported

__all__ = ["ImportSummary", "import_files"]

_STUDY = "gale2019-published"


@dataclass(frozen=True)
class ImportSummary:
    """What an import did.

    Args:
        runs: The runs that the files hold.
        rows: Their evaluations.
        new_runs: Those runs that the folder did not hold before.
    """

    runs: int
    rows: int
    new_runs: int


def import_files(files: Sequence[Path], directory: Path) -> ImportSummary:
    """Add other people's result files to a results folder; what it holds already is not added again.

    All files are read and checked before anything is written.

    Args:
        files: Result files in a layout of `layouts.LAYOUTS`.
        directory: The results folder; made where it is missing. `sparsebench report` wants one workload in a folder.

    Raises:
        SparsebenchError: A file cannot be read (the message names file, line and column), two lines tell different values of the
            same run, or the folder cannot be written.
    """
    given: dict[str, ImportedRun] = {}
    for run in (run for file in files for run in read_result_file(file)):
        other = given.setdefault(run.run_id, run)
        if _facts(other.rows) != _facts(run.rows):
            raise SparsebenchError(
                f"{run.place} and {other.place} give different results of the same run: import them into folders of their own, "
                "and keep the authors' file names, which alone tell some of their files apart"
            )
    make_directory(directory)
    path = imported_path(directory)
    # No two imports may read the file, add to it and write it at once.
    with locked(path):
        held: dict[str, list[dict[str, Any]]] = {}
        for row in read_imported(directory):
            held.setdefault(row["run_id"], []).append(row)
        for run in given.values():
            if run.run_id in held and _facts(held[run.run_id]) != _facts(run.rows):
                raise SparsebenchError(
                    f"{run.place} gives other results of a run than {path} holds: import into another folder, or delete that file"
                )
        new = [run for run in given.values() if run.run_id not in held]
        rows = [row for own in held.values() for row in own] + [row for run in new for row in run.rows]
        if new:
            with atomic_file(path) as stream:
                pq.write_table(pa.Table.from_pylist(rows, schema=RESULTS_SCHEMA), stream, compression="zstd")
        _describe(directory, {str(row["workload"]) for row in rows})
    return ImportSummary(runs=len(given), rows=sum(len(run.rows) for run in given.values()), new_runs=len(new))


def _facts(rows: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["threshold"], row["sparsity"], row["value"]) for row in rows]


def _describe(directory: Path, workloads: set[str]) -> None:
    """Say what a folder of imported runs asks about, unless it is a study's already or has no single subject."""
    path = directory / "study.json"
    if path.exists() or (directory / RUNS).exists() or len(workloads) > 1:
        return
    (workload,) = workloads
    description = {
        "name": _STUDY,
        "workload": workload,
        "description": "Results that Gale, Elsen and Hooker published with The State of Sparsity in Deep Neural Networks "
        "(2019, arXiv:1902.09574).",
        "sparsities": list(SPARSITIES[workload]),
    }
    with atomic_file(path) as stream:
        stream.write(json.dumps(description, indent=1).encode())
