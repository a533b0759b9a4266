"""Where in the network the zeros are: the sparsity of every layer in the chosen points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from sparsebench.analysis import sparsity_axis
from sparsebench.analysis.frontiers import Frontiers, Point
from sparsebench.analysis.layout import LEVEL_LINE, as_plotly_text, base_layout, short_name
from sparsebench.analysis.palette import style
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.wording import asked, count, measured

__all__ = ["LayerSparsity", "layer_figures", "layer_panel", "layer_sparsities", "rows_of"]

_LABEL_HEIGHT = 22  # pixels of a row's label
_MARK_HEIGHT = 10  # pixels that each method takes in a row


@dataclass(frozen=True)
class LayerSparsity:
    """One layer of a point: its name, its number of weights and its mean sparsity over the point's seeds."""

    layer: str
    weights: int
    sparsity: float


def rows_of(layers: pd.DataFrame, point: Point) -> pd.DataFrame:
    """The rows of the table `layers` that are a point's, of all its seeds."""
    own: pd.DataFrame = layers[(layers["configuration"] == point.configuration) & (layers["method"] == point.method)]
    own = own[own["seed"].isin(point.seeds)]
    for column, wanted in (("threshold", point.threshold), ("target_sparsity", point.target_sparsity)):
        own = own[own[column].isna() if wanted is None else own[column] == wanted]
    return own


def layer_sparsities(layers: pd.DataFrame, point: Point) -> tuple[LayerSparsity, ...]:
    """The layers of a point, in the order of the network.

    Args:
        layers: The table `layers`.
        point: The point.

    Returns:
        Its layers; empty where the runs left no layer table.
    """
    own = rows_of(layers, point)
    means = own.groupby(["position", "layer"], sort=True).agg(weights=("weights", "first"), sparsity=("sparsity", "mean"))
    return tuple(
        LayerSparsity(str(layer), int(weights), float(sparsity))
        for (_, layer), weights, sparsity in zip(means.index, means["weights"], means["sparsity"], strict=True)
    )


def layer_figures(frontiers: Frontiers, layers: pd.DataFrame) -> dict[float, go.Figure]:
    """One figure for each sparsity asked about: a row per layer, in it a marker per method.

    Args:
        frontiers: The chosen points.
        layers: The table `layers`.

    Returns:
        The figures by sparsity, all with the same horizontal axis; sparsities at which no chosen point has a layer table are left
        out.
    """
    found: dict[float, dict[str, tuple[LayerSparsity, ...]]] = {}
    for index, sparsity in enumerate(frontiers.sparsities):
        for method, chosen in frontiers.chosen.items():
            point = chosen[index]
            own = layer_sparsities(layers, point) if point is not None else ()
            if own:
                found.setdefault(sparsity, {})[method] = own
    places = [
        sparsity_axis.position(value)
        for sparsity, methods in found.items()
        for value in (sparsity, *(layer.sparsity for own in methods.values() for layer in own))
    ]
    end = max(places, default=0.0) + 0.12
    return {sparsity: _figure(methods, sparsity, end) for sparsity, methods in found.items()}


def layer_panel(frontiers: Frontiers, layers: pd.DataFrame) -> Panel:
    """The figures of layers as a part of the page."""
    figures = {f"≥ {asked(sparsity)}": figure for sparsity, figure in layer_figures(frontiers, layers).items()}
    return Panel(
        key="layers",
        title="Where the zeros are",
        label="Chosen points at",
        figures=figures,
        caption="The same sparsity can be spread over the layers in different ways, and that often decides how well a "
        "very sparse network works. Each row is a layer, from the network's input at the top to its output; each "
        "mark the layer's mean sparsity over seeds in the point that the method is represented by. The dashed "
        "line is the sparsity asked about.",
        absence="No chosen point has a table of its layers, so this cannot be shown.",
        first=len(figures) // 2,
    )


def _figure(found: Mapping[str, tuple[LayerSparsity, ...]], sparsity: float, end: float) -> go.Figure:
    # Methods prune the same network, but one that leaves a layer out must not shift the others' rows.
    weights = {layer.layer: layer.weights for own in found.values() for layer in own}
    rows = {layer: row for row, layer in enumerate(weights)}
    row_height = _LABEL_HEIGHT + _MARK_HEIGHT * (len(found) + 0.5)
    figure = go.Figure()
    for place, (method, own) in enumerate(found.items()):
        shift = (_LABEL_HEIGHT + _MARK_HEIGHT * (place + 0.5)) / row_height - 0.5
        figure.add_trace(
            go.Scatter(
                x=[sparsity_axis.position(layer.sparsity) for layer in own],
                y=[rows[layer.layer] + shift for layer in own],
                text=[
                    f"<b>{as_plotly_text(method)}</b><br>{as_plotly_text(layer.layer)}<br>"
                    f"{count(layer.weights, 'weight')}, sparsity {measured(layer.sparsity)}"
                    for layer in own
                ],
                hovertemplate="%{text}<extra></extra>",
                mode="markers",
                name=as_plotly_text(method),
                marker={"color": style(method).colour, "symbol": style(method).symbol, "size": 9},
            )
        )
    figure.update_layout(
        **base_layout(height=round(130 + row_height * len(rows))),
        xaxis={
            "title": {"text": "sparsity of the layer", "standoff": 8},
            "range": [-0.08, end],
            **sparsity_axis.ticks([]),
            "tickangle": 0,
            "zeroline": False,
        },
        yaxis={"range": [len(rows) - 0.5, -0.5], "showticklabels": False, "zeroline": False, "showgrid": False},
        shapes=[_stripe(row) for row in rows.values() if row % 2 == 0],
        # Names stand above their marks, not beside them: on a phone they would leave no room for the figure.
        annotations=[_row_label(row, layer, weights[layer]) for layer, row in rows.items()],
    )
    figure.update_layout(margin={"l": 10})
    figure.add_vline(x=sparsity_axis.position(sparsity), line=LEVEL_LINE, layer="below")
    return figure


def _row_label(row: int, layer: str, weights: int) -> dict[str, object]:
    return {
        "text": f"{as_plotly_text(short_name(layer))} · {count(weights, 'weight')}",
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "y": row - 0.5,
        "yanchor": "top",
        "showarrow": False,
        "font": {"size": 12},
    }


def _stripe(row: int) -> dict[str, object]:
    return {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": row - 0.5,
        "y1": row + 0.5,
        "line": {"width": 0},
        "fillcolor": "rgba(128,128,128,0.10)",
        "layer": "below",
    }
