"""The page of a study of which no run has finished and some failed: nothing can be compared, and it says why."""

from __future__ import annotations

from pathlib import Path

from sparsebench.analysis.study_data import read_failures, read_note
from sparsebench.analysis.tables import failed_runs
from sparsebench.analysis.templates import render, write_rendered
from sparsebench.analysis.wording import count
from sparsebench.records.rows import RESULTS_SCHEMA
from sparsebench.records.run_states import holds_tables_alone, imported_path, run_folders

__all__ = ["nothing_but_failures", "write_failures_page"]


def nothing_but_failures(directory: Path) -> bool:
    """Whether a results folder holds runs that failed, and none that finished or was imported.

    Raises:
        SparsebenchError: `directory` holds no runs.
    """
    if imported_path(directory).exists() or holds_tables_alone(directory):
        return False
    folders = run_folders(directory)
    # A finished run is mostly the first that is looked at: a large folder is not read twice for this.
    return not any(folder.result_path.exists() for folder in folders) and any(folder.status() == "failed" for folder in folders)


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
    folders = run_folders(directory)
    failures = read_failures(folders, [folder.status() for folder in folders])
    note = read_note(directory / "study.json")
    workloads = {str(failure.config["workload"]) for failure in failures if "workload" in failure.config}
    others = len(folders) - len(failures)
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
    return write_rendered(page, directory / "report.html" if out is None else out)
