"""The histograms of weights that runs wrote down, before their training and after it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from pyarrow.dataset import Dataset

from sparsebench.analysis.frontiers import Point

__all__ = ["Histogram", "LayerDistribution", "distributions_of"]


@dataclass(frozen=True)
class Histogram:
    """How many weights lie in each of equally wide bins from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]

    @property
    def bin_width(self) -> float:
        """The width of a bin; 0 where there is no weight."""
        return (self.high - self.low) / len(self.counts)

    @property
    def weights(self) -> int:
        """How many there are in all bins."""
        return sum(self.counts)


@dataclass(frozen=True)
class LayerDistribution:
    """A layer of one run: the weights it began with (None where unknown), and those that are not zero at the end."""

    layer: str
    before: Histogram | None
    after: Histogram


def distributions_of(distributions: Dataset, point: Point) -> tuple[LayerDistribution, ...]:
    """The layers of a point's first seed, in the order of the network.

    Args:
        distributions: The table `distributions`.
        point: The point.

    Returns:
        Its layers; empty where that run wrote no histograms down.
    """
    run = (
        (pc.field("configuration") == point.configuration)
        & (pc.field("method") == point.method)
        & (pc.field("seed") == point.seeds[0])
    )
    before: dict[str, Histogram] = {}
    after: dict[int, tuple[str, Histogram]] = {}
    for row in distributions.to_table(filter=run).to_pylist():
        if row["moment"] == "initialization":
            before[row["layer"]] = _histogram(row)
        elif (row["threshold"], row["target_sparsity"]) == (point.threshold, point.target_sparsity):
            after[row["position"]] = row["layer"], _histogram(row)
    return tuple(LayerDistribution(layer, before.get(layer), own) for _, (layer, own) in sorted(after.items()))


def _histogram(row: dict[str, Any]) -> Histogram:
    return Histogram(row["low"], row["high"], tuple(json.loads(row["counts"])))
