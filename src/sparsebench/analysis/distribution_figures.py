"""What became of the weights: how they are distributed in each layer before the training and after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go
from pyarrow.dataset import Dataset

from sparsebench.analysis.distributions import Histogram, LayerDistribution, distributions_of
from sparsebench.analysis.frontiers import DENSE, Frontiers, Point
from sparsebench.analysis.layout import as_plotly_text, base_layout, short_name
from sparsebench.analysis.palette import style
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.wording import asked, count, listing

__all__ = ["distribution_panel"]

_MOST_LAYERS = 8  # that a figure shows
_ROW_HEIGHT = 125  # pixels of a layer
_TITLE, _TICKS = 0.22, 0.22  # shares of a row: the layer's name above, the axis below
_BEFORE = "#808080"


def distribution_panel(frontiers: Frontiers, distributions: Dataset) -> Panel:
    """A figure for the dense network and for every chosen point: a row for each layer.

    Args:
        frontiers: The chosen points.
        distributions: The table `distributions`.
    """
    every = {name: (point, distributions_of(distributions, point)) for name, point in _named_points(frontiers)}
    found = {name: (point, layers) for name, (point, layers) in every.items() if layers}
    unknown = [name for name in every if name not in found]
    sparse = [place for place, (point, _) in enumerate(found.values()) if point.method != DENSE]
    left_out = any(len(layers) > _MOST_LAYERS for _, layers in found.values())
    return Panel(
        key="distributions",
        title="Weights before and after",
        label="Chosen point",
        figures={name: _figure(point.method, _evenly_picked(layers)) for name, (point, layers) in found.items()},
        caption="How the weights of each layer are distributed: dotted when the training begins, filled when it ends, without "
        "those that are zero then; the first seed of the chosen point. All curves have the same height, whatever number of "
        "weights they stand for, which is told beside the layer's name; pointing at one tells how many lie there. Every layer "
        "has its own scale."
        + (f" {_MOST_LAYERS} layers are drawn, evenly picked; the table has all of them." if left_out else "")
        + (f" Not recorded: {'; '.join(unknown)}." if unknown else ""),
        absence="The runs of the chosen points recorded no distributions of their weights, so there is nothing to see: imported "
        "runs and those of earlier releases have none.",
        first=sparse[len(sparse) // 2] if sparse else 0,
    )


def _named_points(frontiers: Frontiers) -> Iterator[tuple[str, Point]]:
    """Every point once, with the sparsities that it was chosen for."""
    if frontiers.dense is not None:
        yield DENSE, frontiers.dense
    for method, chosen in frontiers.chosen.items():
        places: dict[Point, list[str]] = {}
        for sparsity, point in zip(frontiers.sparsities, chosen, strict=True):
            if point is not None:
                places.setdefault(point, []).append(asked(sparsity))
        for point, sparsities in places.items():
            yield f"{method} ≥ {listing(sparsities)}", point


def _evenly_picked(layers: Sequence[LayerDistribution]) -> Sequence[LayerDistribution]:
    """The first, the last, and as many between them as there is room for."""
    number = min(len(layers), _MOST_LAYERS)
    return [layers[round(place * (len(layers) - 1) / max(number - 1, 1))] for place in range(number)]


def _figure(method: str, layers: Sequence[LayerDistribution]) -> go.Figure:
    figure = go.Figure()
    axes: dict[str, Any] = {}
    for row, layer in enumerate(layers):
        number = "" if row == 0 else str(row + 1)
        title = {"title": {"text": "weight", "standoff": 6}} if row == len(layers) - 1 else {}
        # Weights of a layer may lie close together: long numbers must not run into each other on a phone.
        axes[f"xaxis{number}"] = {"anchor": f"y{number}", "zeroline": False, "nticks": 6, "tickangle": 0} | title
        axes[f"yaxis{number}"] = {
            "anchor": f"x{number}",
            "domain": [1.0 - (row + 1 - _TICKS) / len(layers), 1.0 - (row + _TITLE) / len(layers)],
            "showticklabels": False,
            "showgrid": False,
            "zeroline": False,
            "rangemode": "tozero",
        }
        figure.add_traces([trace.update(xaxis=f"x{number}", yaxis=f"y{number}") for trace in _traces(method, layer, row == 0)])
    figure.update_layout(
        **base_layout(height=100 + _ROW_HEIGHT * len(layers)),
        **axes,
        annotations=[_row_title(layer, 1.0 - row / len(layers)) for row, layer in enumerate(layers)],
    )
    return figure.update_layout(margin={"l": 12})


def _traces(method: str, layer: LayerDistribution, named: bool) -> Iterator[go.Scatter]:
    if layer.before is not None:
        yield _steps(
            "at initialization", layer.before, named, line={"color": _BEFORE, "width": 1.5, "shape": "hvh", "dash": "dot"}
        )
    line = {"color": style(method).colour, "width": 2, "shape": "hvh"}
    yield _steps(f"{as_plotly_text(method)}, at the end", layer.after, named, line=line, fill="tozeroy")


def _steps(name: str, histogram: Histogram, named: bool, **look: Any) -> go.Scatter:
    """A histogram as a line of steps from zero to zero; places are a first one and a distance, which keeps pages small."""
    most = max(histogram.counts)
    counts = (0, *histogram.counts, 0) if most else ()
    return go.Scatter(
        x0=histogram.low - histogram.bin_width / 2.0,
        dx=histogram.bin_width,
        y=[round(number / most, 3) for number in counts],
        customdata=counts,
        hovertemplate=f"<b>{name}</b><br>%{{customdata:,}} weights around %{{x:.3g}}<extra></extra>",
        mode="lines",
        name=name,
        legendgroup=name,
        showlegend=named,
        **look,
    )


def _row_title(layer: LayerDistribution, top: float) -> dict[str, Any]:
    left = layer.after.weights
    numbers = f"{left:,} left" if layer.before is None else f"{left:,} of {count(layer.before.weights, 'weight')} left"
    return {
        "text": f"{as_plotly_text(short_name(layer.layer))} · {numbers}",
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "yref": "paper",
        "y": top,
        "yanchor": "top",
        "showarrow": False,
        "font": {"size": 12},
    }
