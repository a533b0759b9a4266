"""A part of the page that shows one figure of several, which the reader picks from a list."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

__all__ = ["Panel", "as_json"]


@dataclass(frozen=True)
class Panel:
    """Figures that take turns in one place.

    Args:
        key: The id of the place.
        title: Its heading.
        label: What the list is called; nothing is shown of it where there is one figure.
        figures: The figures by what the list calls them; none where `absence` is to be read instead.
        caption: How to read them.
        absence: Why there is nothing to see.
        first: The figure shown first; by its place.
    """

    key: str
    title: str
    label: str
    figures: dict[str, go.Figure]
    caption: str
    absence: str
    first: int = 0

    def as_json(self) -> list[dict[str, Any]]:
        """The figures for the page's script."""
        return [as_json(figure) for figure in self.figures.values()]


def as_json(figure: go.Figure) -> dict[str, Any]:
    """A figure as Plotly's script takes it."""
    written: dict[str, Any] = json.loads(figure.to_json())
    return written
