"""The page's figures: what accuracy each sparsity costs, and where in the network the zeros are."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sparsebench.analysis import sparsity_axis
from sparsebench.analysis.frontiers import DENSE, Frontiers, Point
from sparsebench.analysis.palette import Style, styles
from sparsebench.analysis.published_curves import PublishedCurve, published_traces
from sparsebench.analysis.settings import varying_settings
from sparsebench.analysis.statistics import Estimate
from sparsebench.analysis.wording import asked, count, listing, measured, metric_label, value

__all__ = ["TradeOff", "View", "as_plotly_text", "base_layout", "trade_off"]

_MOST_POINTS = 6000  # more would neither be told apart nor fit the page
_LONGEST = 90  # letters of one line in a hover label
_DODGE = 0.011  # between methods that stand at the same sparsity, in units of the axis


@dataclass(frozen=True)
class View:
    """The ranges of both axes of a figure."""

    x: tuple[float, float]
    y: tuple[float, float]


@dataclass(frozen=True)
class TradeOff:
    """The figure of trade-off curves.

    Args:
        figure: The figure, showing `near`.
        near: A view of the sparsities asked about and the best values.
        all: A view of every point.
        outside: How many points `near` does not show.
        drawn: How many points are drawn.
        total: How many there are; more than `drawn` in a huge study only.
    """

    figure: go.Figure
    near: View
    all: View
    outside: int
    drawn: int
    total: int


def as_plotly_text(text: str) -> str:
    """Text that Plotly shows as it is, although it takes some tags and entities for markup.

    Example:
        >>> as_plotly_text("<b>&")
        '&lt;b&gt;&amp;'
    """
    text = " ".join(text.split())
    return html.escape(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…", quote=False)


def trade_off(frontiers: Frontiers, metric: str, published: Sequence[PublishedCurve] = ()) -> TradeOff:
    """Draw the test metric against sparsity: the best values as lines, every point faintly, dense as a level.

    Args:
        frontiers: The chosen points.
        metric: The name of the primary metric.
        published: Printed curves of the same workload and metric to draw beside them.

    Returns:
        The figure and its two views.
    """
    look = styles([*frontiers.chosen, DENSE, *(curve.method for curve in published)])
    sparse = [point for point in frontiers.points if point.method != DENSE]
    step = max(1, -(-len(sparse) // _MOST_POINTS))
    drawn = sparse[::step]
    far = _far_view(frontiers, drawn)
    near = _near_view(frontiers) or far
    figure = go.Figure()
    if frontiers.dense is not None:
        figure.add_traces(list(_dense_traces(frontiers.dense, look[DENSE], metric, far)))
    hover = _hover_texts(drawn, metric)
    for index, (method, chosen) in enumerate(frontiers.chosen.items()):
        shift = _DODGE * (index - (len(frontiers.chosen) - 1) / 2)
        own = [point for point in drawn if point.method == method]
        has_line = any(chosen)
        figure.add_trace(_point_trace(method, own, hover, look[method], named=not has_line))
        if has_line:
            figure.add_trace(_line_trace(method, frontiers.sparsities, chosen, look[method], shift, metric))
    figure.add_traces(list(published_traces(published, look)))
    figure.update_layout(
        **base_layout(height=700 if published else 540),  # room for the longer legend
        showlegend=True,
        xaxis={
            "title": {"text": "sparsity", "standoff": 8},
            "range": near.x,
            **sparsity_axis.ticks(frontiers.sparsities),
            "tickangle": 0,
            "zeroline": False,
        },
        yaxis={
            "title": {"text": as_plotly_text(f"test {metric_label(metric)}")},
            "range": near.y,
            "zeroline": False,
            "automargin": True,
        },
    )
    outside = sum(not _inside(point, near) for point in drawn)
    return TradeOff(figure, near, far, outside, len(drawn), len(sparse))


def base_layout(height: int) -> dict[str, Any]:
    """What all figures share: no background of their own, a legend below that wraps on a phone."""
    return {
        "template": None,
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        # Mid-grey shows on light and dark alike; the page's script then takes the exact colours from its style sheet.
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#808080"},
        "margin": {"l": 55, "r": 12, "t": 12, "b": 50},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        # Above the plot: below it, a legend that wraps on a phone would run into the title of the axis.
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "left", "x": 0.0},
    }


def _line_trace(
    method: str, sparsities: Sequence[float], chosen: Sequence[Point | None], style: Style, shift: float, metric: str
) -> go.Scatter:
    name = as_plotly_text(method)
    x, y, error, text = [], [], [], []
    for sparsity, point in zip(sparsities, chosen, strict=True):
        x.append(sparsity_axis.position(sparsity) + shift)
        y.append(point.test.mean if point else None)
        error.append((point.test.half_width or 0.0) if point else 0.0)
        text.append(f"<b>{name}</b>: best at {asked(sparsity)} or more<br>{_facts(point, metric)}" if point else "")
    return go.Scatter(
        x=x,
        y=y,
        error_y={"array": error, "thickness": 1.5, "width": 4, "color": style.colour},
        text=text,
        hovertemplate="%{text}<extra></extra>",
        mode="lines+markers",
        connectgaps=False,
        name=name,
        legendgroup=name,
        line={"color": style.colour, "width": 2},
        marker={"color": style.colour, "symbol": style.symbol, "size": 10},
    )


def _point_trace(method: str, points: Sequence[Point], hover: Mapping[Point, str], style: Style, named: bool) -> go.Scatter:
    name = as_plotly_text(method)
    return go.Scatter(
        x=[round(sparsity_axis.position(point.sparsity), 5) for point in points],
        y=[round(point.test.mean, 5) for point in points],
        text=[hover[point] for point in points],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=named,
        marker={"color": style.colour, "symbol": style.symbol, "size": 6, "opacity": 0.45},
    )


def _dense_traces(dense: Point, style: Style, metric: str, view: View) -> Iterator[go.Scatter]:
    low, high = view.x
    middle = dense.test.mean
    if dense.test.half_width is not None:
        bottom, top = middle - dense.test.half_width, middle + dense.test.half_width
        yield go.Scatter(
            x=[low, high, high, low],
            y=[bottom, bottom, top, top],
            mode="lines",
            fill="toself",
            fillcolor="rgba(128,128,128,0.18)",
            line={"width": 0},
            hoverinfo="skip",
            legendgroup=DENSE,
            showlegend=False,
            name=DENSE,
        )
    places = [low + (high - low) * index / 60 for index in range(61)]  # a line can be hovered at its vertices only
    text = f"<b>{DENSE}</b>: best configuration<br>{_facts(dense, metric)}"
    yield go.Scatter(
        x=places,
        y=[middle] * len(places),
        text=[text] * len(places),
        hovertemplate="%{text}<extra></extra>",
        mode="lines",
        line={"color": style.colour, "width": 2, "dash": "dash"},
        legendgroup=DENSE,
        name=DENSE,
    )


def _facts(point: Point, metric: str) -> str:
    seeds = f"{count(point.test.n, 'seed')}: {listing([str(seed) for seed in point.seeds])}"
    lines = [
        f"test {as_plotly_text(metric_label(metric))} {value(point.test)}",
        f"measured sparsity {measured(point.sparsity)}",
        seeds,
    ]
    if point.threshold is not None:
        lines.append(f"threshold {point.threshold:g}")
    return "<br>".join(lines)


def _hover_texts(points: Sequence[Point], metric: str) -> dict[Point, str]:
    configs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for point in points:
        configs.setdefault(point.method, {})[point.configuration] = point.config
    settings = {method: varying_settings(own) for method, own in configs.items()}
    texts = {}
    for point in points:
        varying = settings[point.method][point.configuration]
        lines = [f"{as_plotly_text(name)} {as_plotly_text(text)}" for name, text in varying.items()]
        texts[point] = "<br>".join([f"<b>{as_plotly_text(point.method)}</b>", _facts(point, metric), *lines])
    return texts


def _near_view(frontiers: Frontiers) -> View | None:
    estimates = [point.test for chosen in frontiers.chosen.values() for point in chosen if point is not None]
    if not estimates:
        return None
    if frontiers.dense is not None:
        estimates.append(frontiers.dense.test)
    places = [sparsity_axis.position(sparsity) for sparsity in frontiers.sparsities]
    margin = max(0.1, 0.06 * (max(places) - min(places)))
    return View((min(places) - margin, max(places) + margin), _value_range(estimates))


def _far_view(frontiers: Frontiers, drawn: Sequence[Point]) -> View:
    estimates = [point.test for point in drawn]
    if frontiers.dense is not None:
        estimates.append(frontiers.dense.test)
    places = [sparsity_axis.position(sparsity) for sparsity in frontiers.sparsities]
    places += [sparsity_axis.position(point.sparsity) for point in drawn]
    return View((-0.05, max(places, default=1.0) + 0.1), _value_range(estimates) if estimates else (0.0, 1.0))


def _value_range(estimates: Sequence[Estimate]) -> tuple[float, float]:
    means = [estimate.mean for estimate in estimates]
    span = max(max(means) - min(means), 1e-3 * max(abs(mean) for mean in means), 1e-9)
    # Intervals of two seeds can be wider than everything else together; they may run out of the figure, the means may
    # not.
    reach = [min(estimate.half_width or 0.0, span) for estimate in estimates]
    low = min(mean - width for mean, width in zip(means, reach, strict=True))
    high = max(mean + width for mean, width in zip(means, reach, strict=True))
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _inside(point: Point, view: View) -> bool:
    x = sparsity_axis.position(point.sparsity)
    return view.x[0] <= x <= view.x[1] and view.y[0] <= point.test.mean <= view.y[1]
