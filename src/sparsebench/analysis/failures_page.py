"""The page of a study of which no run has finished and some failed: nothing can be compared, and it says why."""

from __future__ import annotations

from pathlib import Path

from sparsebench.analysis.study_data import read_failures, read_note
from sparsebench.analysis.tables import failed_runs
from sparsebench.analysis.templates import render
from sparsebench.analysis.wording import count
from sparsebench.atomic import atomic_file
from sparsebench.records.rows import RESULTS_SCHEMA
from sparsebench.records.run_states import finished_states, holds_tables_alone, imported_path, run_folders

__all__ = ["nothing_but_failures", "write_failures_page"]


def nothing_but_failures(directory: Path) -> bool:
    """Whether a results folder holds runs that failed, and none that finished or was imported.

    Raises:
        SparsebenchError: `directory` holds no runs.
    """
    if imported_path(directory).exists() or holds_tables_alone(directory) or finished_states(directory):
        return False
    return any(folder.status() == "failed" for folder in run_folders(directory))


def write_failures_page(directory: Path, out: Path | None = None) -> Path:
    """Write the page of such a folder: how many runs failed, which, and why.

    Args:
        directory: The results folder.
        out: The file to write; `report.html` in the folder if None.

    Returns:
        The file that was written.

    Raises:
        SparsebenchError: A file of the folder cannot be read, or the page cannot be written.
    """
    failures = read_failures(directory)
    note = read_note(directory / "study.json")
    workloads = {str(failure.config["workload"]) for failure in failures if "workload" in failure.config}
    others = len(run_folders(directory)) - len(failures)
    page = render(
        "failures.html.j2",
        figures={},
        name=directory.resolve().name if note is None else note.name,
        workload=note.workload if note is not None else ", ".join(sorted(workloads)) or "unknown",
        failed_count=count(len(failures), "run"),
        others=others,
        planned=None if note is None else note.planned_runs,
        command=None if note is None else note.command,
        failed=failed_runs(failures, RESULTS_SCHEMA.empty_table().to_pandas()),
    )
    target = directory / "report.html" if out is None else out
    with atomic_file(target) as file:
        file.write(page.encode())
    return target
