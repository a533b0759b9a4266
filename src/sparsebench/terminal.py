"""What the command line shows: progress where somebody watches, plain lines where nobody does."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from sparsebench.analysis.frontiers import BestValues
    from sparsebench.analysis.progress import Progress as StudyCounts
    from sparsebench.analysis.progress import Snapshot
    from sparsebench.analysis.statistics import Estimate
    from sparsebench.records.run_folder import RunFolder
    from sparsebench.records.schema import RunRecord
    from sparsebench.studies.executors.executor import Outcome
    from sparsebench.studies.forecast import Forecast
    from sparsebench.studies.run_study import StudySummary
    from sparsebench.training.config import RunConfig
    from sparsebench.training.loop import Observer
    from sparsebench.training.loop import Progress as TrainingProgress

__all__ = [
    "Counter",
    "StudyProgress",
    "counting",
    "print_best_values",
    "print_forecast",
    "print_frame",
    "print_list",
    "print_record",
    "print_summary",
    "say",
    "say_error",
    "show_snapshots",
    "study_progress",
    "training_progress",
]

REFRESH_SECONDS = 0.1
HOUR, MEGABYTE = 3600.0, 1e6
PIPE_WIDTH = 1000


def _console(stderr: bool = False) -> Console:
    # soft_wrap, and room where nobody watches: a path or a table that somebody copies or pipes is never broken or cut.
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=True, width=width)


def say(text: str) -> None:
    """Print a line as it is."""
    _console().print(text, markup=False)


def say_error(text: str) -> None:
    """Print one line to standard error."""
    _console(stderr=True).print(f"error: {' '.join(text.split())}", markup=False, style="red")


@contextlib.contextmanager
def training_progress(config: RunConfig) -> Iterator[Observer]:
    """A line with step, loss, metric, sparsity and time left while a network trains; nothing where nobody watches."""
    console = _console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  validation {task.fields[metric]}  sparsity {task.fields[sparsity]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        name = f"{config.workload} {config.method}"
        task = progress.add_task(name, total=config.recipe.steps, loss="-", metric="-", sparsity="-")
        shown = 0.0

        def observe(state: TrainingProgress) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown < REFRESH_SECONDS:
                return
            shown = now
            metric = "-" if state.metric is None else f"{state.metric:.2f}"
            progress.update(
                task, completed=state.step, loss=f"{state.loss:.4f}", metric=metric, sparsity=f"{100 * state.sparsity:.1f} %"
            )

        yield observe


def _counting_columns(what: str) -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )


class Counter:
    """Counts what is done of something."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._task = progress, progress.add_task(name, total=None)

    def begin(self, todo: int) -> None:
        """Say how many are to do."""
        self._progress.reset(self._task, total=todo)

    def done(self) -> None:
        """Count one."""
        self._progress.update(self._task, advance=1)


@contextlib.contextmanager
def counting(name: str, what: str) -> Iterator[Counter]:
    """A bar over things to do, `what` in the plural; nothing where nobody watches."""
    console = _console(stderr=True)
    with Progress(*_counting_columns(what), console=console, disable=not console.is_terminal, transient=True) as progress:
        yield Counter(progress, name)


class StudyProgress:
    """Counts runs as they end."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=None, failed="")
        self._failed = 0
        self._begun = False

    def begin(self, ended: int, todo: int) -> None:
        """Say how many runs had ended before the first ones begin, and how many are to do now."""
        if ended and not self._begun:
            self._progress.console.print(f"{ended} of {ended + todo} runs are done already", markup=False)
        self._begun = True
        self._progress.reset(self._task, total=todo)

    def done(self, outcome: Outcome) -> None:
        """Count a run that ended; say so if it failed."""
        if outcome.status == "failed":
            self._failed += 1
            self._progress.console.print(f"run {outcome.run_id} failed: {outcome.reason}", markup=False)
        self._progress.update(self._task, advance=1, failed=f"{self._failed} failed" if self._failed else "")


@contextlib.contextmanager
def study_progress(name: str) -> Iterator[StudyProgress]:
    """A bar over the runs of a study; only failures are printed where nobody watches."""
    console = _console(stderr=True)
    with Progress(
        *_counting_columns("runs {task.fields[failed]}"), console=console, disable=not console.is_terminal, transient=True
    ) as progress:
        yield StudyProgress(progress, name)


def print_record(record: RunRecord, folder: RunFolder) -> None:
    """Print the evaluation points of a run."""
    table = Table(title=f"{record.workload}, {record.method}, seed {record.seed}", title_justify="left")
    for heading in ("sparsity", "threshold", f"validation {record.metric}", f"test {record.metric}"):
        table.add_column(heading, justify="right")
    for point in record.points:
        table.add_row(
            f"{100 * point.sparsity:.2f} %",
            "-" if point.threshold is None else f"{point.threshold:g}",
            *(f"{point.metrics[split][record.metric]:.2f}" for split in ("validation", "test")),
        )
    _console().print(table)
    say(f"{record.steps} steps in {record.seconds:.1f} s; files: {folder.path}")


def print_summary(summary: StudySummary, directory: Path) -> None:
    """Print what a call did for a study."""
    parts = [f"{summary.finished} finished now", f"{summary.finished_before} were done already"]
    if summary.failed:
        parts.append(f"{len(summary.failed)} failed (run them again with --retry-failed)")
    if summary.elsewhere:
        parts.append(f"{summary.elsewhere} were finished by other drivers")
    if summary.stopped:
        parts.append(f"{summary.stopped} stopped early by the search")
    if summary.left:
        parts.append(f"{summary.left} left")
    if summary.unproposed:
        parts.append(f"up to {summary.unproposed} more to be proposed by the search")
    if summary.unplanned:
        parts.append(f"not planned yet: {', '.join(summary.unplanned)}")
    say(f"{summary.planned} runs planned: {', '.join(parts)}; results: {directory}")


def print_forecast(forecasts: Mapping[str, Forecast], unplanned: Sequence[str], processes: int, directory: Path) -> None:
    """Print what a study takes, method by method and in all."""
    table = Table()
    table.add_column("method")
    for heading in ("runs", "finished", "failed", "to do", "hours in one process", "training FLOPs", "disk, MB"):
        table.add_column(heading, justify="right")
    methods = list(forecasts.values())
    total = sum(methods[1:], methods[0]) if methods else None
    for method, forecast in [*forecasts.items(), *([("in all", total)] if total is not None else [])]:
        counts = (forecast.runs, forecast.finished, forecast.failed, forecast.todo)
        cost = forecast.cost
        costs = (f"{cost.seconds / HOUR:,.3f}", f"{cost.flops:.2e}", f"{cost.file_bytes / MEGABYTE:,.2f}")
        known = costs if forecast.todo > forecast.unmeasured else ("-",) * 3
        table.add_row(method, *(f"{count:,}" for count in counts), *known)
    _console().print(table)
    if total is not None and total.todo > total.unmeasured:
        hours = total.cost.seconds / HOUR
        say(
            f"{hours:,.2f} hours in one process, {hours / processes:,.2f} at best in {processes} on this machine. Times, FLOPs "
            "and disk are of the runs to do, from shortened runs of each method at its lowest and highest sparsity, taken to be "
            "alike but for steps, batch size and sparsity. FLOPs are theoretical: zeros cost nothing."
        )
    if total is not None and total.unmeasured:
        say(f"{total.unmeasured:,} runs to do are not measured, and in none of these sums")
    if total is not None and total.stopped:
        say(f"{total.stopped:,} runs were stopped early by the search")
    if total is not None and total.unproposed:
        say(
            f"{total.unproposed:,} runs to do, or fewer, are proposed by the search as results come: taken to be like the others "
            "of their method, and to be trained to the end"
        )
    for stage in unplanned:
        say(f"stage {stage}: planned when the runs are done that decide it, and in none of these sums")
    say(f"results folder: {directory}")


def print_best_values(values: BestValues) -> None:
    """Print the value of every method at every sparsity, means over seeds with the half-width of their 95 % interval."""
    title = f"{values.metric} on the test split (best configuration by validation, mean over seeds, 95 % t interval)"
    _console().print(_best_table(values, title))
    if values.dense is not None:
        say(f"dense baseline: {_estimate(values.dense)}")


def _best_table(values: BestValues, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for sparsity in values.sparsities:
        table.add_column(f"{100 * sparsity:g} %", justify="right", no_wrap=True)
    for method, row in values.rows.items():
        table.add_row(method, *(_estimate(cell) for cell in row))
    return table


def show_snapshots(snapshots: Iterable[Snapshot]) -> None:
    """Show how a study comes along: in place where somebody watches, a line for every change where nobody does."""
    console = _console()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for snapshot in snapshots:
                parts: list[str | Table] = [_counts(snapshot.progress)]
                if snapshot.best is not None:
                    parts.append(_best_table(snapshot.best, f"{snapshot.best.metric} on the test split, best so far"))
                    parts.append("" if snapshot.best.dense is None else f"dense baseline: {_estimate(snapshot.best.dense)}")
                parts.append("" if snapshot.page is None else f"page: {snapshot.page}")
                live.update(Group(*(part for part in parts if part != "")), refresh=True)
        return
    said, last = "", None
    for snapshot in snapshots:
        last = snapshot
        line = _counts(snapshot.progress, times=False)
        if line != said:
            said = line
            say(_counts(snapshot.progress))
    if last is not None and last.best is not None:
        print_best_values(last.best)


def _counts(progress: StudyCounts, *, times: bool = True) -> str:
    planned = "" if progress.planned is None else f" of {progress.planned:,}"
    parts = [f"{progress.finished:,}{planned} runs finished", f"{progress.failed:,} failed", f"{progress.running:,} running"]
    if progress.stopped:
        parts.append(f"{progress.stopped:,} stopped early")
    if progress.quiet:
        parts.append(f"{progress.quiet:,} begun but silent for five minutes")
    if times and progress.seconds_left is not None:
        minutes = progress.seconds_left / 60.0
        parts.append(f"about {f'{minutes / 60.0:,.1f} hours' if minutes >= 90.0 else f'{minutes:,.0f} minutes'} left")
    return f"{progress.name}: {', '.join(parts)}"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.mean:.2f}" if estimate.half_width is None else f"{estimate.mean:.2f} ± {estimate.half_width:.2f}"


def print_list(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with a line each."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        say(f"{name:<{width}}  {summary}")


def print_frame(frame: pd.DataFrame) -> None:
    """Print an answer as a table, whole."""
    say(frame.to_string(index=False))
