"""What a trade-off can be drawn against: sparsity, weights left, arithmetic of inference and training, bytes, latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sparsebench.analysis import sparsity_axis
from sparsebench.analysis.frontiers import DENSE, Frontiers, Point
from sparsebench.analysis.latencies import Measured

__all__ = ["Axis", "axes", "count_weights"]

_SPARSITY = "sparsity"


@dataclass(frozen=True)
class Axis:
    """A horizontal axis.

    Args:
        key: Its name in the page's data.
        title: Its title, which is also how a reader chooses it.
        place: Where a point lies on it; None where that is not known.
        layout: Type and ticks, for Plotly.
        near: The range that holds the chosen points.
        all: The range that holds every point.
    """

    key: str
    title: str
    place: Callable[[Point], float | None]
    layout: dict[str, Any]
    near: tuple[float, float]
    all: tuple[float, float]

    @property
    def is_sparsity(self) -> bool:
        """Whether it is that of sparsity, where lines stand at the sparsities asked about."""
        return self.key == _SPARSITY

    def ends(self, view: tuple[float, float]) -> tuple[float, float]:
        """The first and last place of a view: Plotly wants logarithms for the range of a logarithmic axis, not for its marks."""
        return (10.0 ** view[0], 10.0 ** view[1]) if self.layout["type"] == "log" else view


def axes(frontiers: Frontiers, weights: int | None, latency: Measured | None, printed: Sequence[float] = ()) -> tuple[Axis, ...]:
    """The axes on which the chosen points of a study have places, that of sparsity first.

    Args:
        frontiers: The chosen points.
        weights: How many weights the network has that can be made sparse; None where unknown.
        latency: How latencies were measured; None where they cannot be compared.
        printed: Sparsities of printed values that stand beside the points.
    """
    found = [_sparsity_axis(frontiers, printed)]
    others: list[tuple[str, str, Callable[[Point], float | None]]] = [
        ("inference", "multiply-adds of inference, 1 = dense", lambda point: point.inference_cost),
        ("training", "multiply-adds of training, 1 = dense", lambda point: point.training_cost),
        ("bytes", "bytes of the compressed checkpoint", lambda point: point.file_bytes),
    ]
    if latency is not None:
        others.append(("latency", latency.title, lambda point: point.latency_ms))
    if weights is not None:
        others.insert(0, ("weights", "non-zero weights", lambda point: _kept(point, weights)))
    chosen = [point for row in frontiers.chosen.values() for point in row if point is not None]
    for key, title, place in others:
        near, every = _log_range(chosen, place), _log_range(frontiers.points, place)
        if near is not None and every is not None:
            found.append(Axis(key, title, place, {"type": "log"}, near, every))
    return tuple(found)


def count_weights(layers: pd.DataFrame) -> int | None:
    """How many weights of the network can be made sparse; None where no run tells, or runs tell different numbers."""
    one = layers.drop_duplicates(["run_id", "layer"])
    totals = one.groupby("run_id")["weights"].sum().unique()
    return int(totals[0]) if len(totals) == 1 else None


def _kept(point: Point, weights: int) -> float | None:
    return weights * (1.0 - point.sparsity) or None  # an empty network has no place on a logarithmic axis


def _sparsity_axis(frontiers: Frontiers, printed: Sequence[float]) -> Axis:
    places = [sparsity_axis.position(sparsity) for sparsity in frontiers.sparsities]
    points = [sparsity_axis.position(point.sparsity) for point in frontiers.points if point.method != DENSE]
    beside = [sparsity_axis.position(sparsity) for sparsity in printed]
    every = (-0.05, max([*places, *points, *beside], default=1.0) + 0.1)
    margin = max(0.1, 0.06 * (max(places) - min(places))) if places else 0.0
    near = (min(places) - margin, max(places) + margin) if places and any(map(any, frontiers.chosen.values())) else every
    layout = {"type": "linear", **sparsity_axis.ticks(frontiers.sparsities)}
    return Axis(_SPARSITY, "sparsity", lambda point: sparsity_axis.position(point.sparsity), layout, near, every)


def _log_range(points: Iterable[Point], place: Callable[[Point], float | None]) -> tuple[float, float] | None:
    places: Sequence[float] = [math.log10(found) for point in points if (found := place(point)) is not None and found > 0.0]
    if not places:
        return None
    margin = max(0.05, 0.05 * (max(places) - min(places)))
    return min(places) - margin, max(places) + margin
