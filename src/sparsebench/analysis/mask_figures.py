"""Scratch and lottery curves: what the masks of a pruned network are worth without the weights that they came with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import plotly.graph_objects as go

from sparsebench.analysis.best_lines import add_dense_level, best_line, half_widths, sparsity_layout
from sparsebench.analysis.frontiers import Frontiers, Point
from sparsebench.analysis.palette import style
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.published_curves import PublishedCurve, published_traces
from sparsebench.analysis.settings import flatten
from sparsebench.records.choice import best_candidate

__all__ = ["mask_panel"]

_FROM_MASKS = ("lottery-ticket", "scratch-b", "scratch-e")
_BESIDE = ("magnitude", "iterative-magnitude")
_VARIANTS = {  # settings that make a variant of a method, and how its name tells them
    "parameters.initialization": "{}",
    "kept_schedule.variant": "{}",
    "parameters.rewind_to": "from step {}",
}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def mask_panel(frontiers: Frontiers, metric: str, published: Sequence[PublishedCurve] = ()) -> Panel:
    """A figure with a line for every way of training again, beside pruning during training; none where there is none.

    Args:
        frontiers: The chosen points.
        metric: The primary metric.
        published: Printed curves of the same workload and metric; those of such methods are drawn.
    """
    present = [method for method in _FROM_MASKS if any(frontiers.chosen.get(method, ()))]
    printed = [curve for curve in published if curve.method in _FROM_MASKS]
    figure = go.Figure()
    for method in [*present, *(name for name in _BESIDE if any(frontiers.chosen.get(name, ())))]:
        _add_lines(figure, method, frontiers, metric)
    figure.add_traces(list(published_traces(printed)))
    add_dense_level(figure, frontiers)
    figure.update_layout(sparsity_layout(frontiers, metric, height=520))
    return Panel(
        key="from-masks",
        title="Scratch and lottery tickets",
        label="",
        figures={"masks": figure} if present or printed else {},
        caption="Networks that have the masks of a pruned one and were trained again: from their original weights "
        "(lottery ticket), or from new ones for as many steps (scratch-e) or for up to twice as many (scratch-b); "
        "a line for each variant: initialization, and what the schedule of the learning rate does with the longer "
        "training. Bars are intervals over seeds. The dashed line is the dense network"
        + ("; dotted lines with open marks are what papers print." if printed else "."),
        absence="No network was trained again from the masks of another here, so this cannot be shown.",
    )


def _add_lines(figure: go.Figure, method: str, frontiers: Frontiers, metric: str) -> None:
    variants: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for point in frontiers.points:
        if point.method == method:
            settings = flatten(point.config)
            variants[tuple(settings.get(key, "") for key in _VARIANTS) if method not in _BESIDE else ()].append(point)
    differing = [place for place in range(len(_VARIANTS)) if len({key[place : place + 1] for key in variants}) > 1]
    for index, (variant, points) in enumerate(sorted(variants.items())):
        told = [list(_VARIANTS.values())[place].format(variant[place]) for place in differing if variant[place]]
        name = ", ".join([method, *told])
        best = [best_candidate(points, sparsity) for sparsity in frontiers.sparsities]
        look = style(method)
        figure.add_trace(
            best_line(
                name,
                name,
                frontiers.sparsities,
                best,
                metric,
                look,
                error=half_widths(best),
                line={"color": look.colour, "width": 2, "dash": _DASHES[index % len(_DASHES)]},
            )
        )
