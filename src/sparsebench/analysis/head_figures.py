"""How sparse each attention head is in the chosen points: heads are what a network could do without as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsebench.analysis.frontiers import Frontiers, Point
from sparsebench.analysis.layer_figures import rows_of
from sparsebench.analysis.layout import as_plotly_text, base_layout
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.wording import asked, measured

__all__ = ["head_figures", "head_panel", "head_sparsities"]

_ROW_HEIGHT = 24  # pixels, of a label and of the cells below it alike


def head_sparsities(layers: pd.DataFrame, point: Point) -> dict[str, tuple[float, ...]]:
    """The sparsity of each head over all projections of its attention, mean over the point's seeds.

    Args:
        layers: The table `layers`.
        point: The point.

    Returns:
        For each attention, by the name that its projections share and in the order of the network, the sparsity of its heads;
        empty where no layer has heads.
    """
    own = rows_of(layers, point)
    own = own[own["head_zeros"].notna()].sort_values(["position", "seed"], kind="stable")
    zeros: dict[str, np.ndarray] = {}
    weights: dict[str, int] = {}
    for layer, size, text in zip(own["layer"], own["weights"], own["head_zeros"], strict=True):
        attention = str(layer).rpartition(".")[0].rpartition(".")[0] or str(layer)  # without "query.weight"
        found = np.array(json.loads(text), dtype=np.float64)
        zeros[attention] = zeros.get(attention, np.zeros_like(found)) + found
        weights[attention] = weights.get(attention, 0) + int(size)
    return {name: tuple((found * len(found) / weights[name]).tolist()) for name, found in zeros.items()}


def head_figures(frontiers: Frontiers, layers: pd.DataFrame) -> dict[str, go.Figure]:
    """One figure for each sparsity asked about and each method: a row of cells for each attention, a cell for each head.

    Args:
        frontiers: The chosen points.
        layers: The table `layers`.

    Returns:
        The figures by what they show; none where the network has no heads.
    """
    figures = {}
    for index, sparsity in enumerate(frontiers.sparsities):
        for method, chosen in frontiers.chosen.items():
            point = chosen[index]
            if point is not None and (found := head_sparsities(layers, point)):
                figures[f"{method} ≥ {asked(sparsity)}"] = _figure(found)
    return figures


def head_panel(frontiers: Frontiers, layers: pd.DataFrame) -> Panel | None:
    """The figures of heads as a part of the page; None where the network has no heads."""
    figures = head_figures(frontiers, layers)
    if not figures:
        return None
    return Panel(
        key="heads",
        title="Attention heads",
        label="Chosen point of",
        figures=figures,
        caption="The zeros of each head in the query, key, value and output projections of its attention, in per cent of its "
        "weights there: the mean over seeds in the point that the method is represented by. Each row is an attention, each cell "
        "a head; a head at 100 could be taken out of the network.",
        absence="No chosen point has attention heads.",
        first=len(figures) // 2,
    )


def _figure(found: Mapping[str, tuple[float, ...]]) -> go.Figure:
    heads = max(len(own) for own in found.values())
    # A row without cells above each row of cells has room for its name: beside the cells, names would leave a phone no room.
    cells: list[list[float | None]] = []
    hover: list[list[str]] = []
    for name, own in found.items():
        filled = [*own, *[None] * (heads - len(own))]
        cells += [[None] * heads, [None if value is None else 100.0 * value for value in filled]]
        hover += [
            [""] * heads,
            [
                "" if value is None else f"{as_plotly_text(name)}<br>head {head}, sparsity {measured(value)}"
                for head, value in enumerate(filled)
            ],
        ]
    figure = go.Figure(
        go.Heatmap(
            z=cells,
            x=list(range(heads)),
            text=hover,
            texttemplate="%{z:.1f}" if heads <= 8 else "",  # no room for more on a phone
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            # Evenly brighter, and told apart with any colour vision.
            colorscale="Cividis",
            zmin=0.0,
            zmax=100.0,
            xgap=2,
            colorbar={"title": {"text": "%"}, "thickness": 12, "outlinewidth": 0},
        )
    )
    figure.update_layout(
        **(base_layout(height=round(90 + 2 * _ROW_HEIGHT * len(found))) | {"showlegend": False}),
        xaxis={"title": {"text": "head"}, "dtick": 1, "showgrid": False, "zeroline": False},
        yaxis={"range": [2 * len(found) - 0.5, -0.5], "showticklabels": False, "showgrid": False, "zeroline": False},
        annotations=[
            {
                "text": as_plotly_text(name),
                "xref": "paper",
                "x": 0,
                "xanchor": "left",
                "y": 2 * row,
                "yanchor": "middle",
                "showarrow": False,
                "font": {"size": 12},
            }
            for row, name in enumerate(found)
        ],
    )
    figure.update_layout(margin={"l": 10})
    return figure
