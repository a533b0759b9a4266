"""All figures of a study, for its page and for papers."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from sparsebench.analysis.axes import count_weights
from sparsebench.analysis.budget_figures import budget_panel
from sparsebench.analysis.cost_figures import cost_panel
from sparsebench.analysis.distribution_figures import distribution_panel
from sparsebench.analysis.figures import TradeOff, trade_off
from sparsebench.analysis.frontiers import Frontiers
from sparsebench.analysis.head_figures import head_panel
from sparsebench.analysis.latencies import measured_latencies
from sparsebench.analysis.layer_figures import layer_panel
from sparsebench.analysis.mask_figures import mask_panel
from sparsebench.analysis.method_costs import method_costs
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.published_curves import published_curves
from sparsebench.analysis.sensitivity import sensitivity_panel
from sparsebench.analysis.study_data import StudyData
from sparsebench.analysis.training_curves import training_panel

__all__ = ["StudyFigures", "named_figures", "study_figures"]


@dataclass(frozen=True)
class StudyFigures:
    """The figures of a page: the trade-off, the parts in which one of several is shown, and that of costs."""

    trade_off: TradeOff
    panels: tuple[Panel, ...]
    cost: Panel

    def named(self) -> dict[str, go.Figure]:
        """Every figure by a name of its own, the trade-off once for each axis."""
        figures = {}
        for axis in self.trade_off.axes:
            figure = go.Figure(self.trade_off.figure)
            if not axis.is_sparsity:
                for trace in figure.data:
                    trace.x = trace.meta.get(axis.key) or []
                figure.update_layout(
                    {key.replace(".", "_"): setting for key, setting in self.trade_off.view(axis, "near").items()}
                )
            figures[f"trade-off {axis.key}"] = figure
        return figures | named_figures((*self.panels, self.cost))


def study_figures(data: StudyData, frontiers: Frontiers) -> StudyFigures:
    """Draw all figures of a study."""
    published = published_curves(data.note.workload, data.metric)
    panels = (
        layer_panel(frontiers, data.layers),
        head_panel(frontiers, data.layers),
        distribution_panel(frontiers, data.distributions),
        training_panel(data, frontiers),
        mask_panel(frontiers, data.metric, published),
        sensitivity_panel(frontiers, data.metric),
        budget_panel(frontiers, data.metric),
    )
    curves = trade_off(
        frontiers, data.metric, published, weights=count_weights(data.layers), latency=measured_latencies(data.results)
    )
    return StudyFigures(curves, tuple(panel for panel in panels if panel is not None), cost_panel(method_costs(data.results)))


def named_figures(panels: tuple[Panel, ...]) -> dict[str, go.Figure]:
    """The figures of parts of a page by names of their own."""
    return {f"{panel.key} {name}": figure for panel in panels for name, figure in panel.figures.items()}
