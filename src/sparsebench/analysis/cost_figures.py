"""What training takes with each method: processor time of a step, and memory."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from sparsebench.analysis.frontiers import DENSE
from sparsebench.analysis.layout import LEVEL_LINE, as_plotly_text, base_layout
from sparsebench.analysis.method_costs import MethodCost
from sparsebench.analysis.palette import style
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.wording import count

__all__ = ["cost_panel"]

_LONGEST_LABEL = 24  # letters that leave room for the figure on a phone


def cost_panel(costs: Mapping[str, MethodCost]) -> Panel:
    """Two figures: the time of a training step, and the memory that training takes."""
    time = {method: 1000.0 * cost.step_seconds for method, cost in costs.items()}
    memory = {method: cost.memory_bytes / 2**20 for method, cost in costs.items() if cost.memory_bytes is not None}
    figures = {}
    for name, unit, values in (("time of a step", "ms", time), ("peak memory", "MiB", memory)):
        if values:
            figures[name] = _figure(f"{name} ({unit})", unit, values, costs)
    return Panel(
        key="cost-figure",
        title="",
        label="Median over runs of",
        figures=figures,
        caption="The dashed line is dense training. Times are processor times, evaluation left out; memory is how far the "
        "process rose above its start, so that on small networks activations and the framework hide what the "
        "method adds.",
        absence="No run tells what it cost, so this cannot be drawn.",
    )


def _figure(title: str, unit: str, values: Mapping[str, float], costs: Mapping[str, MethodCost]) -> go.Figure:
    figure = go.Figure()
    dense = values.get(DENSE)
    ordered = sorted(values, key=lambda method: (-values[method], method))
    for row, method in enumerate(ordered):
        found, look = values[method], style(method)
        ratio = "" if dense is None or not dense else f", {found / dense:.2f} times dense"
        text = f"<b>{as_plotly_text(method)}</b><br>{found:.3g} {unit}{ratio}<br>{count(costs[method].runs, 'run')}"
        figure.add_trace(
            go.Scatter(
                x=[0.0, found],
                y=[row, row],
                text=["", text],
                hovertemplate="%{text}<extra></extra>",
                mode="lines+markers",
                name=as_plotly_text(method),
                line={"color": look.colour, "width": 3},
                marker={"color": look.colour, "symbol": look.symbol, "size": [0, 12]},
                showlegend=False,
            )
        )
    if dense is not None:
        figure.add_vline(x=dense, line=LEVEL_LINE)
    figure.update_layout(base_layout(height=90 + 34 * len(ordered)))
    figure.update_layout(
        xaxis={"title": {"text": title}, "range": [0.0, 1.08 * max([*values.values(), 1e-9])], "zeroline": False},
        yaxis={
            "tickvals": list(range(len(ordered))),
            "ticktext": [as_plotly_text(_shortened(method)) for method in ordered],
            "automargin": True,
            "zeroline": False,
        },
    )
    return figure


def _shortened(method: str) -> str:
    return method if len(method) <= _LONGEST_LABEL else f"{method[: _LONGEST_LABEL - 1]}…"
