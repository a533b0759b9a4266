"""Configurations as marks: which are drawn where there are too many, and what a mark says when it is pointed at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import plotly.graph_objects as go

from sparsebench.analysis.frontiers import Point
from sparsebench.analysis.layout import PLACE_DIGITS, as_plotly_text
from sparsebench.analysis.palette import style
from sparsebench.analysis.settings import varying_settings
from sparsebench.analysis.wording import listing, measured, metric_label, value

__all__ = ["MOST_POINTS", "point_marks", "thin_out"]

MOST_POINTS = 6000
"""How many marks a figure has: more would neither be told apart nor fit the page."""

T = TypeVar("T")


def thin_out(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """So many points at most, thresholds before configurations.

    Every configuration keeps a mark as long as there are not more of them than marks: of those with many thresholds evenly picked
    ones are left, the first and the last among them. Of more configurations than marks evenly picked ones are left, each with the
    point that validation likes best.

    Args:
        points: Points, those of a configuration by ascending threshold.
        most: How many may be left.

    Returns:
        Some of the points, in their order.
    """
    if len(points) <= most:
        return list(points)
    own: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, point in enumerate(points):
        own[point.method, point.configuration].append(place)
    groups = list(own.values())
    if len(groups) >= most:
        kept = [max(group, key=lambda place: points[place].validation) for group in _evenly(groups, most)]
    else:
        share = max(share for share in range(1, max(map(len, groups))) if sum(min(share, len(group)) for group in groups) <= most)
        kept = [place for group in groups for place in _evenly(group, share)]
    return [points[place] for place in sorted(kept)]


def _evenly(items: Sequence[T], count: int) -> list[T]:
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def point_marks(
    method: str, points: Sequence[Point], metric: str, place: Callable[[float], float], name: str = "", **more: Any
) -> go.Scatter:
    """Faint marks, one for each point, which tell its values and the settings in which the method's configurations differ.

    What they say is put together by Plotly from a template and columns, or the labels would fill the page.

    Args:
        method: The method of the points.
        points: The points.
        metric: The primary metric.
        place: Where a sparsity lies on the horizontal axis.
        name: What the legend calls them; the method's name if empty.
        **more: What else `plotly.graph_objects.Scatter` takes.
    """
    name, look = as_plotly_text(name or method), style(method)
    columns = _columns(points, metric)
    lines = [f"{_literal(label)} %{{customdata[{number}]}}" for number, label in enumerate(columns)]
    marker = {"color": look.colour, "symbol": look.symbol, "size": 6, "opacity": 0.45} | more.pop("marker", {})
    return go.Scatter(
        x=[round(place(point.sparsity), PLACE_DIGITS) for point in points],
        y=[round(point.test.mean, PLACE_DIGITS) for point in points],
        customdata=list(zip(*columns.values(), strict=True)),
        hovertemplate="<br>".join([f"<b>{_literal(name)}</b>", *lines]) + "<extra></extra>",
        mode="markers",
        name=name,
        legendgroup=name,
        marker=marker,
        **more,
    )


def _columns(points: Sequence[Point], metric: str) -> dict[str, list[str]]:
    configs: dict[str, Mapping[str, Any]] = {point.configuration: point.config for point in points}
    settings = varying_settings(configs)
    columns: dict[str, list[str]] = {
        f"test {as_plotly_text(metric_label(metric))}": [value(point.test) for point in points],
        "measured sparsity": [measured(point.sparsity) for point in points],
        "seeds": [listing([str(seed) for seed in point.seeds]) for point in points],
    }
    if any(point.threshold is not None for point in points):
        columns["threshold"] = ["" if point.threshold is None else f"{point.threshold:g}" for point in points]
    for setting in next(iter(settings.values()), {}):
        columns[as_plotly_text(setting)] = [as_plotly_text(settings[point.configuration][setting]) for point in points]
    return columns


def _literal(text: str) -> str:
    """Text that Plotly does not take for a place of a template."""
    return text.replace("%{", "% {")
