"""Which runs of a results folder are finished, and whether one changed since somebody looked: without opening a record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RUNS, RunFolder

__all__ = ["RunState", "finished_states", "holds_tables_alone", "imported_path", "run_folders", "table_path"]


class RunState(NamedTuple):
    """What changes when a record is written: the time, the size in bytes, and which file it is.

    The time alone does not tell: a kernel's clock ticks a few hundred times a second. The second three are those of the measured
    latency, zeros where there is none.
    """

    modified_ns: int
    size: int
    inode: int
    latency_modified_ns: int = 0
    latency_size: int = 0
    latency_inode: int = 0

    @classmethod
    def of(cls, *files: os.stat_result) -> RunState:
        """The state of a record's file, and of that of its latency."""
        return cls(*(part for file in files for part in (file.st_mtime_ns, file.st_size, file.st_ino)))


def imported_path(directory: Path) -> Path:
    """Where a results folder keeps the rows of imported runs: Parquet with the columns of `RESULTS_SCHEMA`."""
    return directory / "imported.parquet"


def table_path(directory: Path, table: str) -> Path:
    """Where a results folder keeps a table: a copy of what its runs say, or all that it holds."""
    return directory / f"{table}.parquet"


def holds_tables_alone(directory: Path) -> bool:
    """Whether somebody passed on the tables of a results folder without its runs."""
    gone = not (directory / RUNS).exists() and not imported_path(directory).exists()
    return gone and table_path(directory, "results").exists()


def run_folders(directory: Path) -> list[RunFolder]:
    """The run folders of a results folder, in order of their ids; none where its results are imported or tables alone.

    Raises:
        SparsebenchError: `directory` holds no runs.
    """
    return [RunFolder(directory / RUNS / name) for name in _run_names(directory)]


def finished_states(directory: Path) -> dict[str, RunState]:
    """The finished runs of a results folder by the names of their folders, in order of these.

    Raises:
        SparsebenchError: `directory` holds no runs.
    """
    runs = os.fspath(directory / RUNS)
    states = {}
    for name in _run_names(directory):
        # Text and one call for each run: with paths, 100,000 runs take seconds.
        record = _stat(f"{runs}/{name}/result.json")
        if record is not None:
            latency = _stat(f"{runs}/{name}/latency.json")
            states[name] = RunState.of(record) if latency is None else RunState.of(record, latency)
    return states


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None


def _run_names(directory: Path) -> list[str]:
    if not directory.is_dir():
        raise SparsebenchError(f"no such results folder: {directory}")
    try:
        with os.scandir(directory / RUNS) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError) as error:
        if imported_path(directory).exists() or holds_tables_alone(directory):
            return []
        runs = directory / RUNS
        raise SparsebenchError(
            f"{directory} holds no runs: expected a folder {runs}; `sparsebench study run` makes one"
        ) from error
