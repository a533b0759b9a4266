"""The counterparts of a paper's figures and tables, from any results folder, beside what the paper prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import plotly.graph_objects as go

from sparsebench.analysis import sparsity_axis
from sparsebench.analysis.best_lines import add_dense_level, half_widths, means
from sparsebench.analysis.figures import trade_off
from sparsebench.analysis.frontiers import DENSE, Frontiers, Point, find_frontiers
from sparsebench.analysis.layer_figures import layer_panel
from sparsebench.analysis.layout import as_plotly_text, base_layout, line_trace, metric_axis
from sparsebench.analysis.mask_figures import mask_panel
from sparsebench.analysis.palette import style
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.published_curves import PublishedCurve, PublishedRow, published_curves, published_rows
from sparsebench.analysis.study_data import StudyData, load_study
from sparsebench.analysis.study_figures import named_figures
from sparsebench.analysis.templates import render
from sparsebench.analysis.wording import metric_label, value
from sparsebench.atomic import atomic_file
from sparsebench.errors import SparsebenchError
from sparsebench.records.published.values import printed_as

__all__ = ["PAPERS", "PaperFigures", "paper_figures", "write_paper_page"]

PAPERS = {"gale2019": "Gale, Elsen and Hooker 2019, The State of Sparsity in Deep Neural Networks, arXiv:1902.09574"}
"""The papers whose figures can be drawn, and how they are cited."""

_METHODS = ("magnitude", "magnitude-global", "magnitude-erk", "magnitude-non-uniform", "variational-dropout", "l0", "random")


@dataclass(frozen=True)
class PaperFigures:
    """What `sparsebench report --paper` draws of a results folder.

    Args:
        data: The study.
        panels: The figures.
        rows: The values that the paper prints for the workload beside those of the runs; none where it prints none.
    """

    data: StudyData
    panels: tuple[Panel, ...]
    rows: tuple[PublishedRow, ...]

    def named(self) -> dict[str, go.Figure]:
        """Every figure by a name of its own."""
        return named_figures(self.panels)


def paper_figures(directory: Path, paper: str, beside: Path | None = None) -> PaperFigures:
    """Draw the counterparts of a paper's figures.

    Args:
        directory: A folder of own runs, or of imported ones.
        paper: One of `PAPERS`.
        beside: A second folder of the same workload and metric, drawn with dashed lines and open marks: own runs beside imported
            ones.

    Raises:
        SparsebenchError: The paper is not known, a folder holds no finished run, or runs cannot be compared.
    """
    if paper not in PAPERS:
        raise SparsebenchError(f"--paper {paper!r}: expected one of {', '.join(PAPERS)}")
    data = load_study(directory)
    frontiers = find_frontiers(data)
    printed = [curve for curve in published_curves(data.note.workload, data.metric) if curve.reference == paper]
    own = _only(frontiers, (*_METHODS, DENSE))
    curves = _curves_panel(own, data.metric, [curve for curve in printed if curve.method in _METHODS])
    scatter = _scatter_panel(own, data.metric)
    if beside is not None:
        _add_second(curves, scatter, _second(beside, data), beside.resolve().name)
    panels = (
        curves,
        scatter,
        layer_panel(own, data.layers),
        mask_panel(frontiers, data.metric),
    )
    return PaperFigures(data, panels, tuple(published_rows(printed, frontiers)))


def write_paper_page(figures: PaperFigures, paper: str, out: Path | None = None) -> Path:
    """Write the page of a paper's figures.

    Args:
        figures: What `paper_figures` drew.
        paper: The same paper.
        out: The file to write; `gale2019.html`, for that paper, in the results folder if None.

    Raises:
        SparsebenchError: The file cannot be written.
    """
    data = figures.data
    page = render(
        "paper.html.j2",
        title=f"{data.note.name}: figures of {paper}",
        workload=data.note.workload,
        citation=PAPERS[paper],
        panels=figures.panels,
        rows=figures.rows,
        metric=metric_label(data.metric),
        figures={"panels": {panel.key: panel.as_json() for panel in figures.panels}},
    )
    target = data.directory / f"{paper}.html" if out is None else out
    with atomic_file(target) as file:
        file.write(page.encode())
    return target


def _second(directory: Path, first: StudyData) -> Frontiers:
    data = load_study(directory)
    names = zip(printed_as(first.note.workload, first.metric), printed_as(data.note.workload, data.metric), strict=True)
    for what, (here, there) in zip(("workload", "metric"), names, strict=True):
        if here != there:
            raise SparsebenchError(f"--beside {directory}: its {what} is {there}, that of {first.directory} is {here}")
    return _only(find_frontiers(data), _METHODS)


def _add_second(curves: Panel, scatter: Panel, frontiers: Frontiers, name: str) -> None:
    for method, chosen in frontiers.chosen.items():
        look, called = style(method), f"{method}, {name}"
        for figure in curves.figures.values():
            figure.add_trace(
                line_trace(
                    called,
                    [sparsity_axis.position(sparsity) for sparsity in frontiers.sparsities],
                    means(chosen),
                    ["" if point is None else f"<b>{as_plotly_text(called)}</b><br>{value(point.test)}" for point in chosen],
                    look,
                    half_widths(chosen),
                    line={"color": look.colour, "width": 2, "dash": "dash"},
                )
            )
        for figure in scatter.figures.values():
            marks = _marks(method, [point for point in frontiers.points if point.method == method])
            figure.add_trace(marks.update(name=as_plotly_text(called), marker={"symbol": f"{look.symbol}-open"}))


def _only(frontiers: Frontiers, methods: Sequence[str]) -> Frontiers:
    return replace(
        frontiers,
        chosen={method: row for method, row in frontiers.chosen.items() if method in methods},
        points=tuple(point for point in frontiers.points if point.method in methods),
    )


def _curves_panel(frontiers: Frontiers, metric: str, printed: Sequence[PublishedCurve]) -> Panel:
    curves = trade_off(replace(frontiers, points=()), metric, printed)
    return Panel(
        key="curves",
        title="Sparsity and accuracy",
        label="",
        figures={"trade-off": curves.figure} if any(map(any, frontiers.chosen.values())) else {},
        caption="The best point of each technique with at least the sparsity of the axis, chosen on the validation split "
        "where there is one. Dotted lines with open marks are what the paper prints; bars are 95 % intervals over "
        "seeds.",
        absence="No technique of the paper has a point that is sparse enough, so this cannot be drawn.",
    )


def _scatter_panel(frontiers: Frontiers, metric: str) -> Panel:
    figure = go.Figure()
    for method in frontiers.chosen:
        points = [point for point in frontiers.points if point.method == method]
        if points:
            figure.add_trace(_marks(method, points))
    add_dense_level(figure, frontiers)
    figure.update_layout(
        **base_layout(height=520),
        xaxis={"title": {"text": "sparsity (%)"}, "range": [-2.0, 102.0], "zeroline": False},
        yaxis=metric_axis(metric),
    )
    return Panel(
        key="configurations",
        title="All configurations",
        label="",
        figures={"all": figure} if figure.data else {},
        caption="Every configuration of each technique at the sparsity it was measured to have, a mean over its seeds; "
        "the dashed line is the dense network.",
        absence="No technique of the paper was run here, so this cannot be drawn.",
    )


def _marks(method: str, points: Sequence[Point]) -> go.Scatter:
    look = style(method)
    return go.Scatter(
        x=[round(100.0 * point.sparsity, 3) for point in points],
        y=[round(point.test.mean, 4) for point in points],
        mode="markers",
        name=method,
        hovertemplate=f"<b>{method}</b><br>sparsity %{{x}} %<br>%{{y}}<extra></extra>",
        marker={"color": look.colour, "symbol": look.symbol, "size": 6, "opacity": 0.5},
    )
