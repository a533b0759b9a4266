"""Which of two methods is better, by how much, and whether that is shown: every pair at every sparsity asked about.

The decision rule: a difference is *shown* where the p value of a two-sided t test over seeds, adjusted by Holm's procedure over
all pairs compared at that sparsity, is at most 0.05. Everything else is *no difference shown*, which is not "equal".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from sparsebench.analysis.frontiers import DENSE, Frontiers, Point
from sparsebench.analysis.sparsity_axis import position
from sparsebench.analysis.statistics import LEVEL, Difference, Estimate, area_under_curve, difference, estimate, holm
from sparsebench.analysis.wording import asked, listing, points_of

__all__ = ["ERROR_RATE", "Comparison", "areas", "compare", "in_words"]

ERROR_RATE = 1.0 - LEVEL


@dataclass(frozen=True)
class Comparison:
    """Two methods at one sparsity.

    Args:
        first: The method with the higher mean.
        second: The other one.
        sparsity: The sparsity asked about.
        difference: First minus second.
        adjusted_p: The p value after Holm's correction over all pairs at this sparsity; 1 where nothing could be tested.
    """

    first: str
    second: str
    sparsity: float
    difference: Difference
    adjusted_p: float

    @property
    def shown(self) -> bool:
        """Whether the difference is shown by the decision rule."""
        return self.adjusted_p <= ERROR_RATE


def compare(frontiers: Frontiers, *, paired: bool) -> list[Comparison]:
    """Compare the chosen points of every two methods, the dense network among them, at every sparsity asked about.

    Args:
        frontiers: The chosen points.
        paired: Whether runs of equal seed share initial weights and data, as those of one study do.
    """
    found = []
    for index, sparsity in enumerate(frontiers.sparsities):
        rows: dict[str, Point | None] = {method: chosen[index] for method, chosen in frontiers.chosen.items()}
        rows[DENSE] = frontiers.dense
        present = [point for point in rows.values() if point is not None]
        pairs = []
        for one, other in itertools.combinations(present, 2):
            first, second = (one, other) if one.test.mean >= other.test.mean else (other, one)
            pairs.append((first.method, second.method, difference(first.by_seed, second.by_seed, paired=paired)))
        tested = [apart.p_value() for _, _, apart in pairs if apart.testable]  # what cannot be tested costs the others nothing
        adjusted = iter(holm(tested))
        for name, lower, apart in pairs:
            found.append(Comparison(name, lower, sparsity, apart, next(adjusted) if apart.testable else 1.0))
    return found


def in_words(comparisons: Sequence[Comparison], workload: str, metric: str) -> list[str]:
    """A sentence for every two methods, over all sparsities; those without a shown difference come last.

    Args:
        comparisons: What `compare` found.
        workload: What was trained; every sentence begins with it.
        metric: The name of the metric, for its unit.
    """
    pairs: dict[frozenset[str], list[Comparison]] = {}
    for comparison in comparisons:
        pairs.setdefault(frozenset((comparison.first, comparison.second)), []).append(comparison)
    shown_first = sorted(pairs.values(), key=lambda own: not any(comparison.shown for comparison in own))
    return [f"On {workload} {_sentence(own, metric)}." for own in shown_first]


def _sentence(own: Sequence[Comparison], metric: str) -> str:
    first, second = sorted((own[0].first, own[0].second))
    parts = []
    for better, worse in ((first, second), (second, first)):
        wins = [comparison for comparison in own if comparison.shown and comparison.first == better]
        if wins:
            at = listing([f"{points_of(win.difference, metric)} at {asked(win.sparsity)}" for win in wins])
            parts.append(f"{better} beats {worse} by {at}")
    rest = [comparison for comparison in own if not comparison.shown]
    if rest:
        places = listing([asked(comparison.sparsity) for comparison in rest])
        parts.append(f"no difference {'' if parts else f'between {first} and {second} '}shown at {places}")
    return "; ".join(parts)


def areas(frontiers: Frontiers, *, paired: bool) -> dict[str, Estimate | None]:
    """The area under every method's trade-off curve: its mean height between the lowest and the highest sparsity asked about.

    Widths are those of the figure, where every tenfold reduction of the weights has the same room.

    Args:
        frontiers: The chosen points.
        paired: Whether runs of equal seed belong together; a curve then has an area for each seed that all its points have.

    Returns:
        The area by method; None where the method does not reach every sparsity, or fewer than two were asked about.
    """
    places = [position(sparsity) for sparsity in frontiers.sparsities]
    return {method: _area(places, chosen, paired) for method, chosen in frontiers.chosen.items()}


def _area(places: Sequence[float], chosen: Sequence[Point | None], paired: bool) -> Estimate | None:
    reached = [point for point in chosen if point is not None]
    if len(reached) < len(places) or len(set(places)) < 2:
        return None
    seeds = sorted(set.intersection(*(set(point.seeds) for point in reached)))
    if paired and len(seeds) >= 2:
        return estimate(area_under_curve(places, [point.by_seed[seed] for point in reached]) for seed in seeds)
    return Estimate(
        area_under_curve(places, [point.test.mean for point in reached]), None, min(point.test.n for point in reached)
    )
