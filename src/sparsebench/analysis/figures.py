"""The page's first figure: what accuracy each sparsity costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sparsebench.analysis import sparsity_axis
from sparsebench.analysis.axes import Axis, axes
from sparsebench.analysis.best_lines import half_widths, means
from sparsebench.analysis.frontiers import DENSE, Frontiers, Point
from sparsebench.analysis.latencies import Measured
from sparsebench.analysis.layout import as_plotly_text, base_layout, line_trace, metric_axis
from sparsebench.analysis.palette import style
from sparsebench.analysis.published_curves import PublishedCurve, published_traces
from sparsebench.analysis.settings import varying_settings
from sparsebench.analysis.statistics import Estimate
from sparsebench.analysis.wording import asked, count, listing, measured, metric_label, value

__all__ = ["TradeOff", "facts", "trade_off"]

_MOST_POINTS = 6000  # more would neither be told apart nor fit the page
_DODGE = 0.011  # between methods that stand at the same sparsity, in units of the axis
_CLOSE = 0.1  # of the highest value
_DIGITS = 5  # of the places of marks: more than a screen shows


@dataclass(frozen=True)
class TradeOff:
    """The figure of trade-off curves.

    Args:
        figure: The figure against sparsity, showing the best values. The `meta` of each trace has its places on the other axes.
        axes: What it can be drawn against, sparsity first.
        views: Ranges of values by name: "near" holds the best ones, "close" those of them that are within a tenth of the highest,
            "all" every value; "close" is left out where it would show the same as "near".
        outside: How many points the first view does not show.
        drawn: How many points are drawn.
        total: How many there are; more than `drawn` in a huge study only.
    """

    figure: go.Figure
    axes: tuple[Axis, ...]
    views: Mapping[str, tuple[float, float]]
    outside: int
    drawn: int
    total: int

    def view(self, axis: Axis, name: str) -> dict[str, Any]:
        """What Plotly's `relayout` needs to show an axis and one of the `views`."""
        kind = {f"xaxis.{name}": setting for name, setting in ({"tickvals": None, "ticktext": None} | axis.layout).items()}
        where = {"xaxis.range": list(axis.all if name == "all" else axis.near), "yaxis.range": list(self.views[name])}
        return kind | where | {"xaxis.title.text": axis.title}


def trade_off(
    frontiers: Frontiers,
    metric: str,
    published: Sequence[PublishedCurve] = (),
    *,
    weights: int | None = None,
    latency: Measured | None = None,
) -> TradeOff:
    """Draw the test metric against sparsity: the best values as lines, every point faintly, dense as a level.

    Args:
        frontiers: The chosen points.
        metric: The name of the primary metric.
        published: Printed curves of the same workload and metric to draw beside them.
        weights: How many weights of the network can be made sparse, where known.
        latency: How latencies were measured, where they can be compared.

    Returns:
        The figure and its views.
    """
    sparse = [point for point in frontiers.points if point.method != DENSE]
    drawn = sparse[:: max(1, -(-len(sparse) // _MOST_POINTS))]
    scales = axes(frontiers, weights, latency)
    every = _value_range([point.test for point in drawn], frontiers.dense)
    best = [point.test for chosen in frontiers.chosen.values() for point in chosen if point is not None]
    near = _value_range(best, frontiers.dense) if best else every
    views = {"near": near} | _close(best, frontiers.dense) | {"all": every}
    figure = go.Figure()
    if frontiers.dense is not None:
        figure.add_traces(list(_dense_traces(frontiers.dense, metric, scales)))
    for index, (method, chosen) in enumerate(frontiers.chosen.items()):
        own = [point for point in drawn if point.method == method]
        figure.add_trace(_point_trace(method, own, metric, scales, named=not any(chosen)))
        if any(chosen):
            shift = _DODGE * (index - (len(frontiers.chosen) - 1) / 2)
            figure.add_trace(_line_trace(method, frontiers.sparsities, chosen, metric, scales, shift))
    figure.add_traces([trace.update(meta={}) for trace in published_traces(published)])
    figure.update_layout(
        **base_layout(height=640 if published else 540),  # room for the longer legend
        xaxis={"title": {"text": "sparsity", "standoff": 8}, "range": scales[0].near, "tickangle": 0, "zeroline": False}
        | scales[0].layout,
        yaxis=metric_axis(metric) | {"range": near},
    )
    outside = sum(not _inside(point, scales[0].near, near) for point in drawn)
    return TradeOff(figure, scales, views, outside, len(drawn), len(sparse))


def _places(scales: Sequence[Axis], points: Sequence[Point | None]) -> dict[str, list[float | None]]:
    """Where points lie on every axis but the first."""
    return {scale.key: [_rounded(scale, point) for point in points] for scale in scales[1:]}


def _rounded(scale: Axis, point: Point | None) -> float | None:
    place = None if point is None else scale.place(point)
    return None if place is None else float(f"{place:.{_DIGITS}g}")


def _line_trace(
    method: str, sparsities: Sequence[float], chosen: Sequence[Point | None], metric: str, scales: Sequence[Axis], shift: float
) -> go.Scatter:
    best = [f"<b>{as_plotly_text(method)}</b>: best at {asked(sparsity)} or more<br>" for sparsity in sparsities]
    return line_trace(
        method,
        [round(sparsity_axis.position(sparsity) + shift, _DIGITS) for sparsity in sparsities],
        means(chosen),
        [title + facts(point, metric) if point else "" for title, point in zip(best, chosen, strict=True)],
        style(method),
        half_widths(chosen),
        meta=_places(scales, chosen),
    )


def _point_trace(method: str, points: Sequence[Point], metric: str, scales: Sequence[Axis], named: bool) -> go.Scatter:
    """Faint marks. What they say is put together by Plotly from a template and columns, or the labels would fill the page."""
    name, look = as_plotly_text(method), style(method)
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
    lines = [f"{label.replace('%{', '% {')} %{{customdata[{place}]}}" for place, label in enumerate(columns)]
    return go.Scatter(
        x=[round(sparsity_axis.position(point.sparsity), _DIGITS) for point in points],
        y=[round(point.test.mean, _DIGITS) for point in points],
        customdata=list(zip(*columns.values(), strict=True)),
        hovertemplate="<br>".join([f"<b>{name.replace('%{', '% {')}</b>", *lines]) + "<extra></extra>",
        meta=_places(scales, points),
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=named,
        marker={"color": look.colour, "symbol": look.symbol, "size": 6, "opacity": 0.45},
    )


def _dense_traces(dense: Point, metric: str, scales: Sequence[Axis]) -> Iterator[go.Scatter]:
    ends = {scale.key: scale.ends((min(scale.near[0], scale.all[0]), max(scale.near[1], scale.all[1]))) for scale in scales}
    first, middle = scales[0].key, dense.test.mean
    if dense.test.half_width is not None:
        bottom, top = middle - dense.test.half_width, middle + dense.test.half_width
        corners = {key: [low, high, high, low] for key, (low, high) in ends.items()}
        yield go.Scatter(
            x=corners.pop(first),
            y=[bottom, bottom, top, top],
            meta=corners,
            mode="lines",
            fill="toself",
            fillcolor="rgba(128,128,128,0.18)",
            line={"width": 0},
            hoverinfo="skip",
            legendgroup=DENSE,
            showlegend=False,
            name=DENSE,
        )
    # A line can be hovered at its vertices only.
    places = {key: _between(low, high, key == first) for key, (low, high) in ends.items()}
    text = f"<b>{DENSE}</b>: best configuration<br>{facts(dense, metric)}"
    yield go.Scatter(
        x=places.pop(first),
        y=[middle] * _VERTICES,
        meta=places,
        text=[text] * _VERTICES,
        hovertemplate="%{text}<extra></extra>",
        mode="lines",
        line={"color": style(DENSE).colour, "width": 2, "dash": "dash"},
        legendgroup=DENSE,
        name=DENSE,
    )


_VERTICES = 31


def _between(low: float, high: float, linear: bool) -> list[float]:
    shares = [index / (_VERTICES - 1) for index in range(_VERTICES)]
    return [low + (high - low) * share if linear else low * (high / low) ** share for share in shares]


def facts(point: Point, metric: str) -> str:
    """What is to be said of a point, in lines."""
    seeds = f"{count(point.test.n, 'seed')}: {listing([str(seed) for seed in point.seeds])}"
    lines = [
        f"test {as_plotly_text(metric_label(metric))} {value(point.test)}",
        f"measured sparsity {measured(point.sparsity)}",
        seeds,
    ]
    if point.threshold is not None:
        lines.append(f"threshold {point.threshold:g}")
    return "<br>".join(lines)


def _value_range(estimates: Sequence[Estimate], dense: Point | None) -> tuple[float, float]:
    known = [*estimates, *([] if dense is None else [dense.test])]
    if not known:
        return (0.0, 1.0)
    means = [estimate.mean for estimate in known]
    span = max(max(means) - min(means), 1e-3 * max(abs(mean) for mean in means), 1e-9)
    # Intervals of two seeds can be wider than everything else together; they may run out of the figure, the means may not.
    reach = [min(estimate.half_width or 0.0, span) for estimate in known]
    low = min(mean - width for mean, width in zip(means, reach, strict=True))
    high = max(mean + width for mean, width in zip(means, reach, strict=True))
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _close(best: Sequence[Estimate], dense: Point | None) -> dict[str, tuple[float, float]]:
    """The view of the best values that are near the highest: where one method collapses, the others cannot be told apart."""
    top = max((one.mean for one in [*best, *([] if dense is None else [dense.test])]), default=0.0)
    high = [one for one in best if one.mean >= top - _CLOSE * abs(top)]
    return {"close": _value_range(high, dense)} if 1 < len(high) < len(best) else {}


def _inside(point: Point, x: tuple[float, float], y: tuple[float, float]) -> bool:
    return x[0] <= sparsity_axis.position(point.sparsity) <= x[1] and y[0] <= point.test.mean <= y[1]
