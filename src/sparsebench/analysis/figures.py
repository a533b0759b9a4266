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
from sparsebench.analysis.layout import PLACE_DIGITS, as_plotly_text, base_layout, line_trace, metric_axis
from sparsebench.analysis.palette import style
from sparsebench.analysis.point_marks import point_marks, thin_out
from sparsebench.analysis.published_curves import PublishedCurve, published_traces
from sparsebench.analysis.statistics import Estimate
from sparsebench.analysis.wording import asked, count, listing, measured, metric_label, value
from sparsebench.records.published.values import PublishedValue

__all__ = ["TradeOff", "facts", "trade_off"]

_DODGE = 0.011  # between methods that stand at the same sparsity, in units of the axis
_CLOSE = 0.1  # of the highest value


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
    drawn = thin_out(frontiers.points)
    printed = [one for curve in published if curve.method != DENSE for one in curve.values]
    scales = axes(frontiers, weights, latency, [one.sparsity for one in printed])
    best = [point.test for chosen in frontiers.chosen.values() for point in chosen if point is not None]
    every = _value_range([*best, *(point.test for point in drawn)], frontiers.dense, printed)
    shown = [one for one in printed if _lies_in(sparsity_axis.position(one.sparsity), scales[0].near)]
    near = _value_range(best, frontiers.dense, shown) if best else every
    views = {"near": near} | _close(best, frontiers.dense) | {"all": every}
    figure = go.Figure()
    if frontiers.dense is not None:
        figure.add_traces(list(_dense_traces(frontiers.dense, metric, scales)))
        figure.add_trace(_faint(DENSE, drawn, metric, scales, named=False))
    for index, (method, chosen) in enumerate(frontiers.chosen.items()):
        figure.add_trace(_faint(method, drawn, metric, scales, named=not any(chosen)))
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
    return TradeOff(figure, scales, views, outside, len(drawn), len(frontiers.points))


def _places(scales: Sequence[Axis], points: Sequence[Point | None]) -> dict[str, list[float | None]]:
    """Where points lie on every axis but the first."""
    return {scale.key: [_rounded(scale, point) for point in points] for scale in scales[1:]}


def _rounded(scale: Axis, point: Point | None) -> float | None:
    place = None if point is None else scale.place(point)
    return None if place is None else float(f"{place:.{PLACE_DIGITS}g}")


def _line_trace(
    method: str, sparsities: Sequence[float], chosen: Sequence[Point | None], metric: str, scales: Sequence[Axis], shift: float
) -> go.Scatter:
    best = [f"<b>{as_plotly_text(method)}</b>: best at {asked(sparsity)} or more<br>" for sparsity in sparsities]
    return line_trace(
        method,
        [round(sparsity_axis.position(sparsity) + shift, PLACE_DIGITS) for sparsity in sparsities],
        means(chosen),
        [title + facts(point, metric) if point else "" for title, point in zip(best, chosen, strict=True)],
        style(method),
        half_widths(chosen),
        meta=_places(scales, chosen),
    )


def _faint(method: str, drawn: Sequence[Point], metric: str, scales: Sequence[Axis], named: bool) -> go.Scatter:
    own = [point for point in drawn if point.method == method]
    return point_marks(method, own, metric, sparsity_axis.position, meta=_places(scales, own), showlegend=named)


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
    places = {key: _evenly_between(low, high, key == first) for key, (low, high) in ends.items()}
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


def _evenly_between(low: float, high: float, linear: bool) -> list[float]:
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


def _value_range(
    estimates: Sequence[Estimate], dense: Point | None, printed: Sequence[PublishedValue] = ()
) -> tuple[float, float]:
    known = [*estimates, *([] if dense is None else [dense.test])]
    ends = [end for one in printed for end in (one.low, one.high)]
    means = [*ends, *(estimate.mean for estimate in known)]
    if not means:
        return (0.0, 1.0)
    span = max(max(means) - min(means), 1e-3 * max(abs(mean) for mean in means), 1e-9)
    # Intervals of two seeds can be wider than everything else together; they may run out of the figure, the means may not.
    reach = [min(estimate.half_width or 0.0, span) for estimate in known]
    low = min([*ends, *(estimate.mean - width for estimate, width in zip(known, reach, strict=True))])
    high = max([*ends, *(estimate.mean + width for estimate, width in zip(known, reach, strict=True))])
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _close(best: Sequence[Estimate], dense: Point | None) -> dict[str, tuple[float, float]]:
    """The view of the best values that are near the highest: where one method collapses, the others cannot be told apart."""
    top = max((one.mean for one in [*best, *([] if dense is None else [dense.test])]), default=0.0)
    high = [one for one in best if one.mean >= top - _CLOSE * abs(top)]
    return {"close": _value_range(high, dense)} if 1 < len(high) < len(best) else {}


def _inside(point: Point, x: tuple[float, float], y: tuple[float, float]) -> bool:
    return _lies_in(sparsity_axis.position(point.sparsity), x) and _lies_in(point.test.mean, y)


def _lies_in(place: float, view: tuple[float, float]) -> bool:
    return view[0] <= place <= view[1]
