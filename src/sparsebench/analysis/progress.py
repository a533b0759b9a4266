"""How far a study has come, read from its results folder alone: whoever trains it need not be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsebench.analysis.failures_page import write_failures_page
from sparsebench.analysis.frontiers import BestValues
from sparsebench.analysis.page import StudyReport
from sparsebench.analysis.study_data import read_note
from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.run_states import run_folders

__all__ = ["Progress", "Snapshot", "read_progress", "results_folder", "watch"]

_QUIET_SECONDS = 300.0  # five times the usual time between two checkpoints
_RECENT = 20  # runs that tell how fast the study goes
_PATIENCE = 10.0  # times as long as it took to read the results, they are not read again


@dataclass(frozen=True)
class Progress:
    """Counts of a study's runs.

    Args:
        name: The study.
        planned: How many runs are known to be due; None where nobody wrote it down. Later stages add to it.
        finished: How many are finished.
        failed: How many failed.
        running: How many were begun, have not ended and wrote something in the last five minutes.
        quiet: How many were begun, have not ended and wrote nothing for longer: most likely nobody is at them.
        stopped: How many a search stopped early.
        seconds_left: The time until all planned runs have ended at the pace of the last twenty; None where that cannot be told.
    """

    name: str
    planned: int | None
    finished: int
    failed: int
    running: int
    quiet: int
    stopped: int
    seconds_left: float | None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do that is known of."""
        return self.planned is not None and self.finished + self.failed + self.stopped >= self.planned and not self.running


@dataclass(frozen=True)
class Snapshot:
    """What there is to see: the counts, the best values (None before a run is finished), the page if it was written."""

    progress: Progress
    best: BestValues | None
    page: Path | None


def results_folder(name: str) -> Path:
    """The results folder that a path or the name of a study stands for.

    Args:
        name: A folder, or the name of one in `runs`, where `sparsebench study run` puts it.

    Raises:
        SparsebenchError: There is neither.
    """
    for path in (Path(name), Path("runs") / name):
        if path.is_dir():
            return path
    known = sorted(path.name for path in Path("runs").glob("*/") if (path / "study.json").exists())
    hint = f"; in runs: {', '.join(known)}" if known else ""
    raise SparsebenchError(f"no results folder {name!r}, neither here nor in runs{hint}")


def read_progress(directory: Path, now: float) -> Progress:
    """Count the runs of a results folder.

    Args:
        directory: The folder.
        now: The time, in seconds since 1970.

    Raises:
        SparsebenchError: The folder holds no runs, or its study.json cannot be read.
    """
    note = read_note(directory / "study.json")
    folders: dict[str, list[RunFolder]] = {"finished": [], "failed": [], "stopped": [], "started": [], "new": []}
    for folder in run_folders(directory):
        folders[folder.status()].append(folder)
    begun = [_last_sign(folder) for folder in folders["started"]]
    running = sum(now - sign <= _QUIET_SECONDS for sign in begun)
    planned = None if note is None else note.planned_runs
    ended = [_modified(folder.result_path) for folder in folders["finished"]]
    ended += [_modified(folder.failure_path) for folder in folders["failed"]]
    ended += [_modified(folder.stop_path) for folder in folders["stopped"]]
    first = min((_modified(folder.config_path) for kind in folders.values() for folder in kind), default=now)
    return Progress(
        name=directory.resolve().name if note is None else note.name,
        planned=planned,
        finished=len(folders["finished"]),
        failed=len(folders["failed"]),
        running=running,
        quiet=len(begun) - running,
        stopped=len(folders["stopped"]),
        seconds_left=None if planned is None or not running else _seconds_left(first, ended, planned - len(ended), now),
    )


def _seconds_left(first: float, ended: list[float], left: int, now: float) -> float | None:
    """At the pace since the study began, or since so many runs ago: several may end at the same moment."""
    if left <= 0 or not ended:
        return None
    since = [first, *sorted(ended)][-_RECENT - 1 :]
    return left * max(now - since[0], 0.0) / (len(since) - 1)


def _last_sign(folder: RunFolder) -> float:
    try:
        return max(_modified(path) for path in (folder.path, *folder.path.iterdir()))
    except OSError:
        return 0.0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # the run went on, or was removed, while we looked
        return 0.0


def watch(directory: Path, *, interval: float, refresh_page: bool) -> Iterator[Snapshot]:
    """Look at a results folder again and again, until all runs that are known of have ended.

    The best values, and the page where it is asked for, are made anew when runs came to an end, but not so often that reading
    a large folder keeps a processor busy.

    Args:
        directory: The folder.
        interval: Seconds between two looks.
        refresh_page: Whether to write `report.html` anew, too.

    Raises:
        SparsebenchError: The folder holds no runs, its runs cannot be compared, or the page cannot be written.
    """
    best, page = None, None
    seen, next_reading = (0, 0, 0), 0.0
    while True:
        progress = read_progress(directory, time.time())
        counts = (progress.finished, progress.failed, progress.stopped)
        if counts != seen and (progress.ended or time.monotonic() >= next_reading):
            begin = time.monotonic()
            report = StudyReport.of(directory) if progress.finished else None
            best = None if report is None else report.best
            if refresh_page and report is not None:
                page = report.write_page()
            elif refresh_page and progress.failed:
                page = write_failures_page(directory)
            seen, next_reading = counts, time.monotonic() + _PATIENCE * (time.monotonic() - begin)
        yield Snapshot(progress, best, page)
        if progress.ended:
            return
        time.sleep(interval)
