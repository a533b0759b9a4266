"""Lines through the best points at the sparsities asked about, and what figures of such lines share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from sparsebench.analysis import sparsity_axis
from sparsebench.analysis.frontiers import Frontiers, Point
from sparsebench.analysis.layout import LEVEL_LINE, PLACE_DIGITS, as_plotly_text, base_layout, line_trace, metric_axis
from sparsebench.analysis.palette import Style
from sparsebench.analysis.wording import asked, count, metric_label, value

__all__ = ["add_dense_level", "best_line", "half_widths", "means", "sparsity_layout"]


def means(best: Sequence[Point | None]) -> list[float | None]:
    """The test values of points; None where there is no point."""
    return [None if point is None else point.test.mean for point in best]


def half_widths(best: Sequence[Point | None]) -> list[float]:
    """The half-widths of their intervals; 0 where there is no point or no interval."""
    return [0.0 if point is None else point.test.half_width or 0.0 for point in best]


def best_line(
    name: str, title: str, sparsities: Sequence[float], best: Sequence[Point | None], metric: str, look: Style, **more: Any
) -> go.Scatter:
    """A line through the best point at each sparsity.

    Args:
        name: Its name in the legend.
        title: What a mark says it is.
        sparsities: The sparsities asked about.
        best: The point at each, None where nothing is sparse enough.
        metric: The primary metric.
        look: Colour and marker.
        **more: What else `line_trace` takes.
    """
    texts = [
        f"<b>{as_plotly_text(title)}</b>: best at {asked(sparsity)} or more<br>test {as_plotly_text(metric_label(metric))} "
        f"{value(point.test)}<br>{count(point.test.n, 'seed')}"
        if point is not None
        else ""
        for sparsity, point in zip(sparsities, best, strict=True)
    ]
    places = [round(sparsity_axis.position(sparsity), PLACE_DIGITS) for sparsity in sparsities]
    return line_trace(name, places, means(best), texts, look, **more)


def add_dense_level(figure: go.Figure, frontiers: Frontiers) -> None:
    """The value of the dense network as a dashed level, where one was trained."""
    if frontiers.dense is not None:
        figure.add_hline(y=frontiers.dense.test.mean, line=LEVEL_LINE)


def sparsity_layout(frontiers: Frontiers, metric: str, height: int) -> dict[str, Any]:
    """The layout of a figure of the test metric against sparsity."""
    return base_layout(height) | {
        "xaxis": {"title": {"text": "sparsity"}, "tickangle": 0, "zeroline": False, **sparsity_axis.ticks(frontiers.sparsities)},
        "yaxis": metric_axis(metric),
    }
