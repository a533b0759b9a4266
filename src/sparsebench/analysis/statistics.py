"""The mean of replicates and how far it may be off, differences between two methods, and many tests at once.

Intervals are Student's t, at any number of seeds. A bootstrap over three seeds has three values to draw from and calls a quarter
of all equal methods different.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import scipy.stats

__all__ = ["LEVEL", "Difference", "Estimate", "area_under_curve", "difference", "estimate", "holm", "mean"]

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
    return Estimate(centre, _quantile(level, n - 1) * math.sqrt(_variance(numbers)) / math.sqrt(n), n)


@dataclass(frozen=True)
class Difference:
    """How much higher one method's values are than another's, over replicates.

    Args:
        mean: The difference of the means.
        standard_error: Its standard error, None where there are too few replicates for one.
        freedom: The degrees of freedom of that error; a whole number where replicates are paired.
        n: The number of pairs, or of replicates of the method that has fewer.
        paired: Whether replicates were paired by their seed.
        effect_size: Hedges' g, the difference in units of the pooled standard deviation of both methods; None where there is
            no spread to compare with.
    """

    mean: float
    standard_error: float | None
    freedom: float
    n: int
    paired: bool
    effect_size: float | None

    @property
    def testable(self) -> bool:
        """Whether replicates vary: without spread (one seed, or the same values again and again) no test means anything."""
        return bool(self.standard_error)

    def half_width(self, level: float = LEVEL) -> float | None:
        """Half the width of the t interval around the difference; None where there is no spread to tell it from."""
        if not self.standard_error:
            return None
        return _quantile(level, self.freedom) * self.standard_error

    def p_above(self, limit: float = 0.0) -> float:
        """How probable so high a difference, or a higher one, would be if the true one were `limit`; 1 where nothing varies."""
        if not self.standard_error:
            return 1.0
        return float(scipy.stats.t.sf((self.mean - limit) / self.standard_error, self.freedom))

    def p_below(self, limit: float = 0.0) -> float:
        """How probable so low a difference, or a lower one, would be if the true one were `limit`; 1 where nothing varies."""
        if not self.standard_error:
            return 1.0
        return float(scipy.stats.t.cdf((self.mean - limit) / self.standard_error, self.freedom))

    def p_value(self) -> float:
        """The two-sided p value of no difference; 1 where nothing varies."""
        return min(1.0, 2.0 * min(self.p_above(), self.p_below()))


def difference(first: Mapping[int, float], second: Mapping[int, float], *, paired: bool) -> Difference:
    """Compare the replicates of two methods.

    Paired replicates share initial weights and the order of the data: their differences vary less than they do. Others are
    compared by Welch's test, which does not ask for equal variances.

    Args:
        first: A value for every seed, at least one.
        second: The same of the other method.
        paired: Whether equal seeds mean equal initial weights and data. Only seeds that both have are then compared, if there are
            at least two of them.

    Raises:
        ValueError: One of them has no values.

    References:
        Student 1908, as above; Welch, "The generalization of 'Student's' problem when several different population variances are
        involved", Biometrika 34, 1947; Hedges, "Distribution theory for Glass's estimator of effect size", Journal of Educational
        Statistics 6, 1981.

    Example:
        >>> found = difference({0: 3.0, 1: 4.0, 2: 5.5}, {0: 2.0, 1: 2.5, 2: 4.0}, paired=True)
        >>> round(found.mean, 3), found.freedom, round(found.p_value(), 3)
        (1.333, 2.0, 0.015)
    """
    common = sorted(first.keys() & second.keys())
    if paired and len(common) >= 2:
        first, second = {seed: first[seed] for seed in common}, {seed: second[seed] for seed in common}
        apart = [first[seed] - second[seed] for seed in common]
        error = math.sqrt(_variance(apart) / len(apart))
        return Difference(
            mean(apart), _spread_or_none(error, apart), len(apart) - 1.0, len(apart), True, _hedges_g(first, second)
        )
    centre = mean(first.values()) - mean(second.values())
    fewer = min(len(first), len(second))
    if fewer < 2:
        return Difference(centre, None, 0.0, fewer, False, None)
    parts = [_variance(tuple(own.values())) / len(own) for own in (first, second)]
    error = math.sqrt(sum(parts))
    shares = sum(part**2 / (len(own) - 1) for part, own in zip(parts, (first, second), strict=True))
    freedom = sum(parts) ** 2 / shares if shares else 0.0
    spread = _spread_or_none(error, [*first.values(), *second.values()])
    return Difference(centre, spread, freedom, fewer, False, _hedges_g(first, second))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust the p values of a family of tests, so that all of them together err with the probability of one.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        (0.03, 0.06, 0.06)
    """
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = reached
    return tuple(adjusted)


def area_under_curve(places: Sequence[float], values: Sequence[float]) -> float:
    """The mean height of a curve of straight pieces: its area divided by its width.

    Args:
        places: Ascending horizontal positions, at least two.
        values: A height at each.

    Raises:
        ValueError: There are fewer than two places, or they do not ascend.

    Example:
        >>> area_under_curve([0.0, 1.0, 3.0], [2.0, 4.0, 4.0])
        3.6666666666666665
    """
    if len(places) < 2 or any(after <= before for before, after in itertools.pairwise(places)):
        raise ValueError(f"expected at least two ascending places, not {list(places)}")
    pieces = zip(itertools.pairwise(places), itertools.pairwise(values), strict=True)
    area = math.fsum((right - left) * (before + after) / 2.0 for (left, right), (before, after) in pieces)
    return area / (places[-1] - places[0])


def _quantile(level: float, freedom: float) -> float:
    """How many standard errors the t interval of a level reaches to either side."""
    return float(scipy.stats.t.ppf((1.0 + level) / 2.0, freedom))


def _variance(values: Sequence[float]) -> float:
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)


def _spread_or_none(error: float, values: Sequence[float]) -> float | None:
    # What remains of equal differences after rounding is no spread.
    return error if error > 1e-9 * max(abs(value) for value in values) else None


def _hedges_g(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    freedom = len(first) + len(second) - 2
    squares = sum((len(own) - 1) * _variance(tuple(own.values())) for own in (first, second))
    pooled = _spread_or_none(math.sqrt(squares / freedom), [*first.values(), *second.values()])
    if pooled is None:
        return None
    return (mean(first.values()) - mean(second.values())) / pooled * (1.0 - 3.0 / (4.0 * freedom - 1.0))
