"""One HTML page that a newcomer understands: everything in one file, which asks no other machine for anything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sparsebench.analysis.comparisons import ERROR_RATE, areas, compare, in_words
from sparsebench.analysis.findings import find_findings
from sparsebench.analysis.frontiers import DENSE, TOLERANCE, BestValues, Frontiers, find_frontiers, tabulate
from sparsebench.analysis.panels import as_json
from sparsebench.analysis.published_curves import published_curves, published_rows
from sparsebench.analysis.remarks import remarks, summary
from sparsebench.analysis.settings import shared_settings
from sparsebench.analysis.statistics import LEVEL
from sparsebench.analysis.study_data import StudyData, load_study
from sparsebench.analysis.study_figures import StudyFigures, study_figures
from sparsebench.analysis.tables import best_rows, choices, comparison_rows, configurations, costs, failed_runs
from sparsebench.analysis.templates import render, write_rendered
from sparsebench.analysis.wording import asked, metric_label, value
from sparsebench.records.schema import OWN_SOURCE

__all__ = ["StudyReport", "render_page", "write_page"]


@dataclass(frozen=True)
class StudyReport:
    """What a results folder says: read once, for the page, the table of best values and the figures.

    Attributes:
        directory: The results folder.
        data: Its runs.
        frontiers: The best point of every method at every sparsity asked about.
    """

    directory: Path
    data: StudyData
    frontiers: Frontiers

    @classmethod
    def of(cls, directory: Path) -> StudyReport:
        """Read a results folder.

        Args:
            directory: A folder written by `sparsebench study run` or `sparsebench train`.

        Raises:
            SparsebenchError: The folder holds no finished run, or its runs cannot be compared.
        """
        data = load_study(directory)
        return cls(directory, data, find_frontiers(data))

    @property
    def best(self) -> BestValues:
        """The value of every method at every sparsity."""
        return tabulate(self.data, self.frontiers)

    @cached_property
    def figures(self) -> StudyFigures:
        """The figures of the page."""
        return study_figures(self.data, self.frontiers)

    def write_page(self, out: Path | None = None) -> Path:
        """Write the page.

        Args:
            out: The file to write; `report.html` in the results folder if None.

        Returns:
            The file that was written.

        Raises:
            SparsebenchError: The file cannot be written.
        """
        target = self.directory / "report.html" if out is None else out
        return write_rendered(_render(self.data, self.frontiers, self.figures), target)


def write_page(directory: Path, out: Path | None = None) -> Path:
    """Write the page about a results folder.

    Args:
        directory: A folder written by `sparsebench study run` or `sparsebench train`.
        out: The file to write; `report.html` in the folder if None.

    Returns:
        The file that was written.

    Raises:
        SparsebenchError: The folder holds no finished run, its runs cannot be compared, or the file cannot be written.
    """
    return StudyReport.of(directory).write_page(out)


def render_page(directory: Path) -> str:
    """The page about a results folder, as HTML text.

    Args:
        directory: A folder written by `sparsebench study run` or `sparsebench train`.

    Raises:
        SparsebenchError: The folder holds no finished run, or its runs cannot be compared.
    """
    report = StudyReport.of(directory)
    return _render(report.data, report.frontiers, report.figures)


def _render(data: StudyData, frontiers: Frontiers, figures: StudyFigures) -> str:
    published = published_curves(data.note.workload, data.metric)
    paired = data.source == OWN_SOURCE  # the seeds of imported runs only count their replicates
    comparisons = compare(frontiers, paired=paired)
    curves = figures.trade_off
    described = {method: data.note.methods[method] for method in sorted(data.note.methods)}
    shared = {method: shared_settings(own) for method, own in configurations(data, frontiers).items() if own}
    return render(
        "page.html.j2",
        note=data.note,
        metric=metric_label(data.metric),
        summary=summary(data, frontiers),
        remarks=remarks(data, frontiers),
        described=described,
        curves=curves,
        has_points=bool(frontiers.points),
        sparsities=[asked(sparsity) for sparsity in frontiers.sparsities],
        best=best_rows(frontiers),
        areas=areas(frontiers, paired=paired),
        area_text=value,
        findings=find_findings(data, frontiers, paired=paired),
        verdicts=in_words(comparisons, data.note.workload, data.metric),
        shown=len({frozenset((one.first, one.second)) for one in comparisons if one.shown}),
        testable=any(one.difference.testable for one in comparisons),
        comparisons=comparison_rows(comparisons, data.metric),
        paired=paired,
        error_rate=f"{ERROR_RATE:.2f}",
        published=published_rows(published, frontiers),
        dense=frontiers.dense and value(frontiers.dense.test),
        dense_seeds=frontiers.dense.test.n if frontiers.dense else 0,
        dense_name=DENSE,
        panels=figures.panels,
        cost_panel=figures.cost,
        choices=choices(data, frontiers),
        shared=shared,
        costs=costs(data),
        failed=failed_runs(data.failures, data.results),
        tables_alone=data.tables_alone,
        tolerance=f"{100 * TOLERANCE:g}",
        level=f"{100 * LEVEL:g}",
        figures={
            "tradeoff": as_json(curves.figure),
            "axes": {axis.key: {view: curves.view(axis, view) for view in curves.views} for axis in curves.axes},
            "panels": {one.key: one.as_json() for one in (*figures.panels, figures.cost)},
        },
    )
