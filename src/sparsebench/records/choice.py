"""The value of a method at a sparsity is that of its best point: one rule, for pages and for stages of studies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

__all__ = ["DENSE", "TOLERANCE", "Candidate", "best_candidate", "best_of_all", "choice_order", "sparse_enough"]

DENSE = "dense"
"""The method that drops nothing, which no sparsity is asked of."""

TOLERANCE = 0.0005
"""How far the mean sparsity of a point may stay below the sparsity asked for.

Masks hold whole weights: rounding their number in every tensor leaves a network asked for 90 % at, say, 89.98 %, and that network
is what was asked for.
"""

_ROUNDING = 1e-12  # 0.8995 counts as within 0.0005 of 0.9 although binary fractions say it is a hair less


class Candidate(Protocol):
    """One configuration of a method at one threshold, over its seeds."""

    @property
    def configuration(self) -> str:
        """Id of the settings without the seed."""

    @property
    def target_sparsity(self) -> float | None:
        """The sparsity that was asked for; None where the method finds its own."""

    @property
    def threshold(self) -> float | None:
        """The threshold; None where there is none."""

    @property
    def seeds(self) -> Sequence[int]:
        """Its seeds."""

    @property
    def sparsity(self) -> float:
        """Measured, the mean over seeds."""

    @property
    def validation(self) -> float:
        """The primary metric on the validation split, the mean over seeds."""


C = TypeVar("C", bound=Candidate)


def sparse_enough(sparsity: float, asked: float) -> bool:
    """Whether a sparsity is at least `asked` - `TOLERANCE`.

    Example:
        >>> sparse_enough(0.8998, 0.9), sparse_enough(0.899, 0.9)
        (True, False)
    """
    return sparsity - asked >= -(TOLERANCE + _ROUNDING)


def best_candidate(points: Iterable[C], sparsity: float = 0.0) -> C | None:
    """Choose the best point at or above a sparsity, by the validation split alone.

    Where points of several seeds are sparse enough, those of a single one are passed over: the best of many single runs is a
    lucky one, and a grid of single runs is there to say which configurations are worth several.

    Args:
        points: The points of one method.
        sparsity: The sparsity asked about.

    Returns:
        The point with the highest validation mean; of equal ones the sparser, then the one whose configuration's id comes first,
        then that of the lower target, then of the lower threshold. None where no point is sparse enough.
    """
    enough = [point for point in points if sparse_enough(point.sparsity, sparsity)]
    return best_of_all([point for point in enough if len(point.seeds) > 1] or enough)


def best_of_all(points: Iterable[C], sparsity: float = 0.0) -> C | None:
    """Choose among all points likewise, however many seeds they have.

    It compares groups of configurations of which some were given several seeds, here and there.

    Args:
        points: The points of one method.
        sparsity: The sparsity asked about.
    """
    return min((point for point in points if sparse_enough(point.sparsity, sparsity)), key=choice_order, default=None)


def choice_order(point: Candidate) -> tuple[float, float, str, float, float]:
    """What sorts points so that the one which would be chosen first comes first."""
    below_all = float("-inf")
    return (
        -point.validation,
        -point.sparsity,
        point.configuration,
        below_all if point.target_sparsity is None else point.target_sparsity,
        below_all if point.threshold is None else point.threshold,
    )
