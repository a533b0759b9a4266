"""What all figures of the page share: their frame, their texts, and lines with bars."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from sparsebench.analysis.palette import Style
from sparsebench.analysis.wording import metric_label

__all__ = ["LEVEL_LINE", "PLACE_DIGITS", "as_plotly_text", "base_layout", "line_trace", "metric_axis", "short_name"]

LEVEL_LINE = {"color": "#808080", "width": 1.5, "dash": "dash"}
"""The look of a line that marks a level: the dense network, the sparsity asked about."""

PLACE_DIGITS = 5
"""Of the places of marks: more than a screen shows."""

_LONGEST = 90  # letters of one line in a hover label
_LONGEST_NAME = 34  # letters of a layer's name that a phone has room for


def as_plotly_text(text: str) -> str:
    """Text that Plotly shows as it is, although it takes some tags and entities for markup.

    Example:
        >>> as_plotly_text("<b>&")
        '&lt;b&gt;&amp;'
    """
    text = " ".join(text.split())
    return html.escape(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…", quote=False)


def short_name(layer: str) -> str:
    """A layer's name without its middle where it is long.

    Example:
        >>> short_name("conv.weight"), short_name("encoder.layers.11.self_attention.in_proj_weight")
        ('conv.weight', 'encoder.layers.1…on.in_proj_weight')
    """
    half = _LONGEST_NAME // 2
    return layer if len(layer) <= _LONGEST_NAME else f"{layer[: half - 1]}…{layer[-half:]}"


def base_layout(height: int) -> dict[str, Any]:
    """What all figures share: no background of their own, a legend above that wraps on a phone."""
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
        "showlegend": True,
    }


def metric_axis(metric: str) -> dict[str, Any]:
    """The vertical axis of figures of the test metric."""
    return {"title": {"text": as_plotly_text(f"test {metric_label(metric)}")}, "zeroline": False, "automargin": True}


def line_trace(
    name: str,
    x: Sequence[float | None],
    y: Sequence[float | None],
    text: Sequence[str],
    style: Style,
    error: Sequence[float] | None = None,
    **more: Any,
) -> go.Scatter:
    """A line with marks, and bars where `error` gives half of their lengths; `text` is what a mark says when pointed at."""
    bars = {} if error is None else {"error_y": {"array": list(error), "thickness": 1.5, "width": 4, "color": style.colour}}
    look = {
        "mode": "lines+markers",
        "line": {"color": style.colour, "width": 2},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 10},
    }
    return go.Scatter(
        x=list(x),
        y=list(y),
        text=list(text),
        hovertemplate="%{text}<extra></extra>",
        connectgaps=False,
        name=as_plotly_text(name),
        legendgroup=as_plotly_text(name),
        **(bars | look | more),
    )
