"""What a configuration is worth to a search: the rule of pages and stages, on the validation split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sparsebench.records.choice import best_candidate
from sparsebench.records.schema import PointRecord, RunRecord

__all__ = ["FAILED", "MeasuredPoint", "trade_off", "value_at"]

# Samplers look at the order of values only: all that is sparse enough comes before all that is not, and this before what failed.
_NOT_SPARSE_ENOUGH = -1e9
FAILED = -1e12
"""The value of a configuration of which a run failed."""


@dataclass(frozen=True)
class MeasuredPoint:
    """One threshold of a configuration over its seeds, as `records.choice` compares them."""

    configuration: str
    target_sparsity: float | None
    threshold: float | None
    seeds: tuple[int, ...]
    sparsity: float
    validation: float


def measured_points(records: Sequence[RunRecord]) -> list[MeasuredPoint]:
    """The evaluation points of a configuration, means over its runs.

    Args:
        records: Those of all its seeds.
    """
    groups: dict[tuple[float | None, float | None], list[tuple[RunRecord, PointRecord]]] = defaultdict(list)
    for record in records:
        for point in record.points:
            groups[point.target_sparsity, point.threshold].append((record, point))
    return [
        MeasuredPoint(
            configuration="",  # there is but one
            target_sparsity=target,
            threshold=threshold,
            seeds=tuple(record.seed for record, _ in own),
            sparsity=sum(point.sparsity for _, point in own) / len(own),
            validation=sum(point.metrics["validation"][record.metric] for record, point in own) / len(own),
        )
        for (target, threshold), own in groups.items()
    ]


def value_at(records: Sequence[RunRecord], sparsity: float) -> float:
    """The validation metric of a configuration's best point that is sparse enough.

    Where none is, a value below those of all that are, the lower the further its sparsest point is away: as a constraint would
    order them.

    Args:
        records: Those of all its seeds.
        sparsity: The sparsity asked about.
    """
    points = measured_points(records)
    best = best_candidate(points, sparsity)
    if best is not None:
        return best.validation
    return _NOT_SPARSE_ENOUGH * (1.0 + sparsity - max(point.sparsity for point in points))


def trade_off(records: Sequence[RunRecord]) -> tuple[float, float]:
    """Validation metric and sparsity of a configuration; of several points, of that with the largest product of the two.

    Args:
        records: Those of all its seeds.
    """
    best = max(measured_points(records), key=lambda point: (point.validation * point.sparsity, point.validation))
    return best.validation, best.sparsity
