"""Values that papers print for a workload, as curves beside ours and as a table against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from sparsebench.analysis import sparsity_axis
from sparsebench.analysis.frontiers import DENSE, Frontiers
from sparsebench.analysis.palette import style
from sparsebench.analysis.wording import NOTHING, asked, value
from sparsebench.records.choice import best_candidate
from sparsebench.records.published.values import PublishedValue, printed_as, published_values

__all__ = ["PublishedCurve", "PublishedRow", "published_curves", "published_rows", "published_traces"]


@dataclass(frozen=True)
class PublishedCurve:
    """The values of one method as one paper prints them under one set of conditions, by ascending sparsity."""

    reference: str
    method: str
    citation: str
    note: str
    values: tuple[PublishedValue, ...]

    @property
    def name(self) -> str:
        """How the legend calls it."""
        return f"{self.method} ({self.reference})"


@dataclass(frozen=True)
class PublishedRow:
    """A row of the table of published values: what is printed, and what the runs of this page give by its rule."""

    method: str
    sparsity: str
    printed: str
    ours: str
    source: str


def published_curves(workload: str, metric: str) -> tuple[PublishedCurve, ...]:
    """The printed curves of a workload, in the order of the file of published values; none where nobody printed any.

    Example:
        >>> [curve.name for curve in published_curves("wmt14-ende/transformer-base", "bleu")][:2]
        ['dense (gale2019)', 'magnitude (gale2019)']
    """
    names = printed_as(workload, metric)
    found: dict[tuple[str, str, str], list[PublishedValue]] = {}
    for printed in published_values():
        if (printed.workload, printed.metric) == names:
            found.setdefault((printed.reference, printed.method, printed.note), []).append(printed)
    return tuple(
        PublishedCurve(reference, method, own[0].citation, note, tuple(sorted(own, key=lambda printed: printed.sparsity)))
        for (reference, method, note), own in found.items()
    )


def published_traces(curves: Sequence[PublishedCurve]) -> Iterator[go.Scatter]:
    """Dotted lines with open marks, in the colour of the method; a printed range is an error bar.

    The legend has one entry for each paper, which shows and hides all its curves: a phone has no room for each of them.
    """
    methods: dict[str, list[str]] = {}
    for curve in curves:
        if curve.method != DENSE and curve.method not in methods.setdefault(curve.reference, []):
            methods[curve.reference].append(curve.method)
    named: set[str] = set()
    for curve in curves:
        if curve.method == DENSE:
            continue
        look = style(curve.method)
        own = methods[curve.reference]
        middles = [(printed.low + printed.high) / 2.0 for printed in curve.values]
        yield go.Scatter(
            x=[round(sparsity_axis.position(printed.sparsity), 5) for printed in curve.values],
            y=middles,
            error_y={"array": [printed.high - middle for printed, middle in zip(curve.values, middles, strict=True)]},
            text=[
                f"<b>{curve.method}</b>, printed in {curve.reference}<br>{_printed(printed)} at {asked(printed.sparsity)}"
                + (f"<br>{curve.note}" if curve.note else "")
                for printed in curve.values
            ],
            hovertemplate="%{text}<extra></extra>",
            mode="lines+markers",
            name=f"{curve.reference}{f': {own[0]}' if len(own) == 1 else ''}, printed",
            legendgroup=f"printed {curve.reference}",
            showlegend=curve.reference not in named,
            line={"color": look.colour, "width": 1.5, "dash": "dot"},
            marker={"color": look.colour, "symbol": f"{look.symbol}-open", "size": 9},
        )
        named.add(curve.reference)


def published_rows(curves: Sequence[PublishedCurve], frontiers: Frontiers) -> list[PublishedRow]:
    """The table of printed values, each beside the value that this page's rule gives for the same method and sparsity."""
    rows = []
    for curve in curves:
        own = [point for point in frontiers.points if point.method == curve.method]
        for printed in curve.values:
            best = best_candidate(own, printed.sparsity)
            source = f"{curve.citation}; {curve.note}" if curve.note else curve.citation
            rows.append(
                PublishedRow(
                    method=curve.method,
                    sparsity=NOTHING if curve.method == DENSE else asked(printed.sparsity),
                    printed=_printed(printed),
                    ours=value(None if best is None else best.test),
                    source=source,
                )
            )
    return rows


def _printed(printed: PublishedValue) -> str:
    if printed.low == printed.high:
        return f"{printed.low:.2f}"
    return f"{printed.low:.2f}\N{EN DASH}{printed.high:.2f}"
