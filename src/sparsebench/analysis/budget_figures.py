"""What tuning buys: the value to expect of the best of so many configurations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import plotly.graph_objects as go

from sparsebench.analysis.frontiers import Frontiers, Point, candidates
from sparsebench.analysis.layout import as_plotly_text, base_layout, line_trace, metric_axis
from sparsebench.analysis.palette import style
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.wording import asked, count
from sparsebench.records.choice import best_candidate, choice_order

__all__ = ["budget_panel", "expected_best"]

_MOST_PLACES = 24


def expected_best(ranked: Sequence[float], tries: int) -> float:
    """The mean of the best of some configurations drawn by lot, none twice.

    Args:
        ranked: What each configuration is worth, the one that would be chosen first before the others.
        tries: How many are drawn, from 1 to all of them.

    References:
        Dodge et al., "Show Your Work: Improved Reporting of Experimental Results", EMNLP 2019, there for draws with replacement.

    Example:
        >>> expected_best([3.0, 2.0, 1.0], 1), expected_best([3.0, 2.0, 1.0], 3)
        (2.0, 3.0)
    """
    ways = math.comb(len(ranked), tries)
    return math.fsum(math.comb(len(ranked) - place - 1, tries - 1) / ways * worth for place, worth in enumerate(ranked))


def budget_panel(frontiers: Frontiers, metric: str) -> Panel:
    """A figure for every sparsity: expected test value against the number of configurations tried."""
    figures = {}
    for sparsity in frontiers.sparsities:
        figure = _figure(frontiers, sparsity, metric)
        if figure.data:
            figures[f"≥ {asked(sparsity)}"] = figure
    return Panel(
        key="budget",
        title="What tuning buys",
        label="Configurations that reach",
        figures=figures,
        caption="The test value to expect if so many configurations, drawn by lot from those here that are sparse enough, "
        "had been tried and the best by validation taken. A line that still rises says that more tries would find "
        "better; methods are compared fairly at the same place on the axis. Each configuration counts with its "
        "best point, however many seeds it has; the best values above pass over single seeds where there are points of "
        "several, so a line need not end at them.",
        absence="No method has a configuration that is sparse enough, so this cannot be shown.",
        first=len(figures) // 2,
    )


def _figure(frontiers: Frontiers, sparsity: float, metric: str) -> go.Figure:
    figure = go.Figure()
    for method in frontiers.chosen:
        found: dict[str, list[Point]] = defaultdict(list)
        for point in candidates((point for point in frontiers.points if point.method == method), sparsity):
            found[point.configuration].append(point)
        best = [one for own in found.values() if (one := best_candidate(own, sparsity)) is not None]
        ranked = [one.test.mean for one in sorted(best, key=choice_order)]
        if not ranked:
            continue
        steps = {round(len(ranked) ** (index / (_MOST_PLACES - 1))) for index in range(_MOST_PLACES)}
        places = sorted(steps)
        values = [expected_best(ranked, tries) for tries in places]
        texts = [
            f"<b>{as_plotly_text(method)}</b><br>best of {count(tries, 'configuration')}: {expected:.2f} to expect"
            for tries, expected in zip(places, values, strict=True)
        ]
        look = style(method)
        figure.add_trace(
            line_trace(method, places, values, texts, look, marker={"color": look.colour, "symbol": look.symbol, "size": 7})
        )
    figure.update_layout(
        **base_layout(height=460),
        xaxis={"title": {"text": "configurations tried"}, "type": "log", "zeroline": False, "dtick": "D2"},
        yaxis=metric_axis(metric),
    )
    return figure
