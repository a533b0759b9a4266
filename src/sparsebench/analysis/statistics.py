"""The mean of replicates, and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import scipy.stats

__all__ = ["LEVEL", "Estimate", "estimate", "mean"]

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over replicates.

    Args:
        mean: The arithmetic mean.
        half_width: Half the width of the t interval around it, None where a single replicate tells nothing about
            spread.
        n: The number of replicates.
    """

    mean: float
    half_width: float | None
    n: int


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean, the same to the last bit in whatever order the values come.

    Raises:
        ValueError: There are no values.

    Example:
        >>> mean([0.1, 0.2, 0.3]) == mean([0.3, 0.2, 0.1])
        True
    """
    numbers = tuple(values)
    if not numbers:
        raise ValueError("the mean of no values is undefined")
    return math.fsum(numbers) / len(numbers)


def estimate(values: Iterable[float], level: float = LEVEL) -> Estimate:
    """The mean of replicates and its two-sided interval by Student's t distribution.

    Args:
        values: One number per replicate, at least one.
        level: The probability that the interval covers the true mean if replicates are normally distributed, between 0
            and 1.

    Returns:
        The estimate; its `half_width` is None for a single replicate.

    Raises:
        ValueError: There are no values, or `level` is not between 0 and 1.

    References:
        Student, "The Probable Error of a Mean", Biometrika 6, 1908.

    Example:
        >>> result = estimate([1.0, 3.0])
        >>> result.mean, round(result.half_width, 3), result.n
        (2.0, 12.706, 2)
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    numbers = tuple(values)
    centre = mean(numbers)
    n = len(numbers)
    if n < 2:
        return Estimate(centre, None, n)
    deviation = math.sqrt(math.fsum((number - centre) ** 2 for number in numbers) / (n - 1))
    quantile = float(scipy.stats.t.ppf((1.0 + level) / 2.0, n - 1))
    return Estimate(centre, quantile * deviation / math.sqrt(n), n)
