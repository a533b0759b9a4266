"""How much a setting matters: what a method still reaches where one of its settings is held at a value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from sparsebench.analysis.best_lines import add_dense_level, best_line, sparsity_layout
from sparsebench.analysis.frontiers import Frontiers, Point
from sparsebench.analysis.palette import Style
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.settings import varying_settings
from sparsebench.records.choice import best_of_all

__all__ = ["sensitivity_panel", "value_groups"]

_MOST_GROUPS = 6
# Light to dark of "cividis" (Nunez, Anderton and Renslow 2018), which is read alike with any colour vision.
_RAMP = ("#c9b35c", "#a59c74", "#84807b", "#6c7894", "#4d6aa8", "#2b5fd0")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
_NOT_TUNED = ("sparsity", "parent")


def value_groups(values: Sequence[str]) -> dict[str, str] | None:
    """What each value of a setting is called in a figure: itself, or the range it lies in where there are more than six numbers.

    Args:
        values: The values, as texts.

    Returns:
        The names by value, in their order; None where so many values are no numbers.

    Example:
        >>> value_groups(["linear", "cubic", "linear"])
        {'cubic': 'cubic', 'linear': 'linear'}
        >>> value_groups([str(number) for number in range(12)])["1"]
        '0 to 1'
    """
    try:
        distinct = sorted(set(values), key=float)
    except ValueError:
        distinct = sorted(set(values))
        return {name: name for name in distinct} if len(distinct) <= _MOST_GROUPS else None
    if len(distinct) <= _MOST_GROUPS:
        return {name: name for name in distinct}
    groups: dict[str, str] = {}
    for index in range(_MOST_GROUPS):
        own = distinct[index * len(distinct) // _MOST_GROUPS : (index + 1) * len(distinct) // _MOST_GROUPS]
        groups |= dict.fromkeys(own, f"{own[0]} to {own[-1]}" if len(own) > 1 else own[0])
    return groups


def sensitivity_panel(frontiers: Frontiers, metric: str) -> Panel:
    """A figure for every setting that a method was tried with several values of."""
    figures: dict[str, go.Figure] = {}
    for method, chosen in frontiers.chosen.items():
        own = [point for point in frontiers.points if point.method == method]
        if not any(chosen):
            continue
        settings = varying_settings({point.configuration: point.config for point in own})
        for setting in next(iter(settings.values()), {}):
            figure = None if setting in _NOT_TUNED else _figure(setting, own, settings, frontiers, metric)
            if figure is not None:
                figures[f"{method}: {setting}"] = figure
    names = list(figures)
    return Panel(
        key="sensitivity",
        title="How much the settings matter",
        label="Setting",
        figures=figures,
        caption="A line joins the best points by validation, also those of a single seed, of the configurations that have one "
        "value of the setting. Lines that lie together: the setting hardly matters, as long as the others are chosen well. "
        "Settings with more than six values are grouped.",
        absence="No method was tried with several values of a setting, so this cannot be shown.",
        first=next((place for place, name in enumerate(names) if name.startswith("magnitude:")), 0),
    )


def _figure(
    setting: str, points: Sequence[Point], settings: Mapping[str, Mapping[str, str]], frontiers: Frontiers, metric: str
) -> go.Figure | None:
    names = value_groups([own[setting] for own in settings.values()])
    if names is None:
        return None
    groups: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        groups[names[settings[point.configuration][setting]]].append(point)
    ordered = list(dict.fromkeys(names.values()))
    figure = go.Figure()
    for index, name in enumerate(ordered):
        best = [best_of_all(groups[name], sparsity) for sparsity in frontiers.sparsities]
        look = Style(_RAMP[index * len(_RAMP) // len(ordered)], _SYMBOLS[index % len(_SYMBOLS)])
        figure.add_trace(best_line(name, f"{setting} {name}", frontiers.sparsities, best, metric, look))
    add_dense_level(figure, frontiers)
    return figure.update_layout(sparsity_layout(frontiers, metric, height=420))
