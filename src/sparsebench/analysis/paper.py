"""The counterparts of a paper's figures and tables, from any results folder, beside what the paper prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sparsebench.analysis.best_lines import add_dense_level, best_line, half_widths
from sparsebench.analysis.figures import trade_off
from sparsebench.analysis.frontiers import DENSE, Frontiers, Point, find_frontiers
from sparsebench.analysis.layer_figures import layer_panel
from sparsebench.analysis.layout import base_layout, metric_axis
from sparsebench.analysis.mask_figures import mask_panel
from sparsebench.analysis.palette import style
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.point_marks import point_marks
from sparsebench.analysis.published_curves import PublishedCurve, PublishedRow, published_curves, published_rows
from sparsebench.analysis.study_data import StudyData, load_study
from sparsebench.analysis.study_figures import named_figures
from sparsebench.analysis.templates import render, write_rendered
from sparsebench.analysis.wording import metric_label
from sparsebench.errors import SparsebenchError
from sparsebench.records.published.values import printed_as

__all__ = ["PAPERS", "PaperFigures", "paper_figures", "write_paper_page"]

PAPERS = {"gale2019": "Gale, Elsen and Hooker 2019, The State of Sparsity in Deep Neural Networks, arXiv:1902.09574"}
"""The papers whose figures can be drawn, and how they are cited."""

_METHODS = ("magnitude", "magnitude-global", "magnitude-erk", "magnitude-non-uniform", "variational-dropout", "l0", "random")
_VIEWS = {"near": "trade-off", "close": "trade-off close to the highest"}


@dataclass(frozen=True)
class PaperFigures:
    """What `sparsebench report --paper` draws of a results folder, and of a second one where there is one.

    Args:
        data: The study.
        panels: The figures.
        folders: What the columns of `rows` are called that hold values of runs: "here", and the name of the second folder.
        rows: The values that the paper prints for the workload, each beside those of the folders; none where it prints none.
    """

    data: StudyData
    panels: tuple[Panel, ...]
    folders: tuple[str, ...]
    rows: tuple[tuple[PublishedRow, ...], ...]

    def named(self) -> dict[str, go.Figure]:
        """Every figure by a name of its own."""
        return named_figures(self.panels)


def paper_figures(directory: Path, paper: str, beside: Path | None = None) -> PaperFigures:
    """Draw the counterparts of a paper's figures.

    Args:
        directory: A folder of own runs, or of imported ones.
        paper: One of `PAPERS`.
        beside: A second folder of the same workload and metric: own runs beside imported ones. It is drawn with dashed lines and
            open marks where lines and points are, by figures of its own elsewhere, and has a column in the table.

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
    layers, masks = layer_panel(own, data.layers), mask_panel(frontiers, data.metric, printed)
    columns = {"here": published_rows(printed, frontiers)}
    if beside is not None:
        second = _second(beside, data)
        found, name = find_frontiers(second), beside.resolve().name
        only = _only(found, _METHODS)
        _add_second(curves, scatter, only, second.metric, name)
        layers = _with_second(layers, layer_panel(only, second.layers), name)
        masks = _with_second(masks, mask_panel(found, second.metric), name)
        columns[name] = published_rows(printed, found)
    rows = tuple(zip(*columns.values(), strict=True))
    return PaperFigures(data, (curves, scatter, layers, masks), tuple(columns), rows)


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
        folders=figures.folders,
        rows=figures.rows,
        metric=metric_label(data.metric),
        figures={"panels": {panel.key: panel.as_json() for panel in figures.panels}},
    )
    return write_rendered(page, data.directory / f"{paper}.html" if out is None else out)


def _second(directory: Path, first: StudyData) -> StudyData:
    data = load_study(directory)
    names = zip(printed_as(first.note.workload, first.metric), printed_as(data.note.workload, data.metric), strict=True)
    for what, (here, there) in zip(("workload", "metric"), names, strict=True):
        if here != there:
            raise SparsebenchError(f"--beside {directory}: its {what} is {there}, that of {first.directory} is {here}")
    return data


def _add_second(curves: Panel, scatter: Panel, frontiers: Frontiers, metric: str, name: str) -> None:
    for method, chosen in frontiers.chosen.items():
        look, called = style(method), f"{method}, {name}"
        if any(chosen):
            for figure in curves.figures.values():
                line = {"color": look.colour, "width": 2, "dash": "dash"}
                figure.add_trace(
                    best_line(called, called, frontiers.sparsities, chosen, metric, look, error=half_widths(chosen), line=line)
                )
        own = [point for point in frontiers.points if point.method == method]
        for figure in scatter.figures.values():
            figure.add_trace(_marks(method, own, metric, called, marker={"symbol": f"{look.symbol}-open"}))
    for title, alone in _curves_panel(frontiers, metric, ()).figures.items():
        if title in curves.figures:
            layout = curves.figures[title].layout
            for axis, other in ((layout.xaxis, alone.layout.xaxis), (layout.yaxis, alone.layout.yaxis)):
                axis.range = (min(axis.range[0], other.range[0]), max(axis.range[1], other.range[1]))


def _with_second(panel: Panel, other: Panel, name: str) -> Panel:
    """A part of the page whose list goes on with the figures of a second folder."""
    return replace(panel, figures=panel.figures | {f"{title}, {name}": figure for title, figure in other.figures.items()})


def _only(frontiers: Frontiers, methods: Sequence[str]) -> Frontiers:
    return replace(
        frontiers,
        chosen={method: row for method, row in frontiers.chosen.items() if method in methods},
        points=tuple(point for point in frontiers.points if point.method in methods),
    )


def _curves_panel(frontiers: Frontiers, metric: str, printed: Sequence[PublishedCurve]) -> Panel:
    curves = trade_off(replace(frontiers, points=()), metric, printed)
    views = {_VIEWS[view]: values for view, values in curves.views.items() if view in _VIEWS}
    figures = {name: go.Figure(curves.figure).update_yaxes(range=list(values)) for name, values in views.items()}
    return Panel(
        key="curves",
        title="Sparsity and accuracy",
        label="Show",
        figures=figures if any(map(any, frontiers.chosen.values())) else {},
        caption="The best point of each technique with at least the sparsity of the axis, chosen on the validation split "
        "where there is one. Dotted lines with open marks are what the paper prints; bars are 95 % intervals over "
        "seeds.",
        absence="No technique of the paper has a point that is sparse enough, so this cannot be drawn.",
    )


def _scatter_panel(frontiers: Frontiers, metric: str) -> Panel:
    figure = go.Figure()
    for method in (DENSE, *frontiers.chosen):
        points = [point for point in frontiers.points if point.method == method]
        if points:
            figure.add_trace(_marks(method, points, metric))
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
        "the dashed line is the dense network. Touch or point at a mark for its settings.",
        absence="No technique of the paper was run here, so this cannot be drawn.",
    )


def _marks(method: str, points: Sequence[Point], metric: str, name: str = "", **more: Any) -> go.Scatter:
    return point_marks(method, points, metric, lambda sparsity: 100.0 * sparsity, name, **more)
