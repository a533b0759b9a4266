"""What each of the paper's findings states about the runs of a study, in differences of test values and in measured costs.

The statements are the paper's, made exact. A difference counts from 1 % of the dense network's value on. "Magnitude
pruning" is the best by validation of its rules for spreading zeros over layers, as the paper's own best curve is; "uniform" is
`magnitude` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sparsebench.analysis.comparisons import ERROR_RATE
from sparsebench.analysis.frontiers import Frontiers, Point
from sparsebench.analysis.margins import AtLeast, MarginTest, Within
from sparsebench.analysis.method_costs import MethodCost
from sparsebench.analysis.statistics import difference, holm
from sparsebench.analysis.wording import NOTHING, asked, listing, measured, points_of, value
from sparsebench.records.choice import best_candidate, sparse_enough

__all__ = [
    "MARGIN",
    "Judged",
    "Statement",
    "StudyFacts",
    "close_but_dearer",
    "complex_techniques",
    "costs",
    "from_masks",
    "highest_sparsities",
    "l0_unusable",
]

MARGIN = 0.01
"""What counts as a difference, as a fraction of the dense network's value."""

_CLOSE = 3.0  # margins within which finding 2 calls methods close: the paper's own values lie within them up to 80 %
_CLOSE_UP_TO, _HIGH, _HIGHEST, _USEFUL = 0.8, 0.9, 0.95, 0.5
_CHEAP, _DEAR = 1.2, 1.5  # times the processor time of dense training

_NON_UNIFORM = ("magnitude-global", "magnitude-erk", "magnitude-non-uniform")
_MAGNITUDE = ("magnitude", *_NON_UNIFORM)
_COMPLEX = ("variational-dropout", "l0")
_FROM_MASKS = ("scratch-e", "scratch-b", "lottery-ticket")


@dataclass(frozen=True)
class Statement:
    """One thing that a finding says.

    Args:
        claim: It, in words.
        sparsity: The sparsity it is about, None where it is about none.
        numbers: What was measured.
        test: How it is tested; None where it is not a matter of seeds.
        holds: Whether it holds, where there is no test; None where that is open.
    """

    claim: str
    sparsity: float | None
    numbers: str
    test: MarginTest | None = None
    holds: bool | None = None


@dataclass(frozen=True)
class Judged:
    """What a finding states on a study, and what would be needed and is missing."""

    statements: tuple[Statement, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyFacts:
    """What the findings are judged by: chosen points, the metric, measured costs, whether equal seeds are pairs."""

    frontiers: Frontiers
    metric: str
    costs: Mapping[str, MethodCost]
    paired: bool

    @property
    def margin(self) -> float:
        """What counts as a difference, in units of the metric; 0 without a dense network, where nothing is judged."""
        return 0.0 if self.frontiers.dense is None else MARGIN * self.frontiers.dense.test.mean

    def best(self, methods: Sequence[str], sparsity: float) -> Point | None:
        """The best by validation of the points that stand for some methods at a sparsity."""
        index = self.frontiers.sparsities.index(sparsity)
        chosen = (self.frontiers.chosen[method][index] for method in methods if method in self.frontiers.chosen)
        return best_candidate(point for point in chosen if point is not None)

    def without(self, *groups: Sequence[str]) -> list[str]:
        """What is missing of the dense network and of groups of methods any of which would do."""
        lacks = [group for group in groups if not any(method in self.frontiers.chosen for method in group)]
        dense = [] if self.frontiers.dense is not None else ["no runs of dense"]
        return dense + [f"no runs of {' or '.join(group)}" for group in lacks]


def _compared(
    facts: StudyFacts,
    firsts: Sequence[str],
    second: str,
    claim: str,
    make: Callable[..., MarginTest],
    limit: float,
    lowest: float,
) -> Iterator[Statement]:
    """A statement on the difference of the best of some methods and another one, at every sparsity from the lowest on."""
    for sparsity in facts.frontiers.sparsities:
        first, other = facts.best(firsts, sparsity), facts.best((second,), sparsity)
        if first is None or other is None or not sparse_enough(sparsity, lowest):
            continue
        apart = difference(first.by_seed, other.by_seed, paired=facts.paired)
        sign = "±" if make is Within else ""
        numbers = f"{first.method} {value(first.test)}, {other.method} {value(other.test)}: {points_of(apart, facts.metric)}"
        yield Statement(claim, sparsity, f"{numbers} (limit {sign}{limit:.2f})", make(apart, limit))


def _judged(claims: Mapping[str, Iterable[Statement]], missing: Sequence[str]) -> Judged:
    """What is stated; a claim on which nothing can be is missing, so that no verdict leaves it out in silence."""
    found = {claim: tuple(statements) for claim, statements in claims.items()}
    silent = [f"nothing here tells whether {claim}" for claim, statements in found.items() if not statements]
    return Judged(tuple(one for statements in found.values() for one in statements), tuple(missing or silent))


def _no_sparsity(facts: StudyFacts, lowest: float) -> list[str]:
    if any(sparse_enough(sparsity, lowest) for sparsity in facts.frontiers.sparsities):
        return []
    return [f"no sparsity of {asked(lowest)} or more was asked about"]


def complex_techniques(facts: StudyFacts) -> Judged:
    """Finding 1."""
    missing = facts.without(_MAGNITUDE, *((method,) for method in (*_COMPLEX, "random"))) + _no_sparsity(facts, 0.0)
    if facts.frontiers.dense is None:
        return Judged((), tuple(missing))
    claims: dict[str, Iterable[Statement]] = {}
    for method in _COMPLEX:
        claim = f"magnitude pruning matches or beats {method}"
        claims[claim] = _compared(facts, _MAGNITUDE, method, claim, AtLeast, -facts.margin, 0.0)
    for firsts, name in ((_MAGNITUDE, "magnitude pruning"), *(((method,), method) for method in _COMPLEX)):
        claim = f"{name} beats random"
        claims[claim] = _compared(facts, firsts, "random", claim, AtLeast, facts.margin, 0.0)
    return _judged(claims, missing)


def close_but_dearer(facts: StudyFacts) -> Judged:
    """Finding 2."""
    missing = facts.without(*((method,) for method in ("magnitude", *_COMPLEX))) + _no_sparsity(facts, 0.0)
    if facts.frontiers.dense is None:
        return Judged((), tuple(missing))
    claims: dict[str, Iterable[Statement]] = {}
    for first, second in (("magnitude", _COMPLEX[0]), ("magnitude", _COMPLEX[1]), _COMPLEX):
        claim = f"{first} and {second} are close"
        close = _compared(facts, (first,), second, claim, Within, _CLOSE * facts.margin, 0.0)
        claims[claim] = [own for own in close if own.sparsity is not None and own.sparsity <= _CLOSE_UP_TO]
    for method in _COMPLEX:
        if "magnitude" in facts.frontiers.chosen and method in facts.frontiers.chosen:
            price = _price(facts, method)
            claims[price.claim] = (price,)
    return _judged(claims, missing)


def _price(facts: StudyFacts, method: str) -> Statement:
    """Whether a method falls behind magnitude pruning at a high sparsity, or takes longer."""
    behind = list(_compared(facts, ("magnitude",), method, "", AtLeast, facts.margin, _HIGH))
    tested = [one for one in behind if one.test is not None and one.test.difference.testable]
    adjusted = holm([one.test.p_holds for one in tested if one.test is not None])
    ground = [one for one, p_value in zip(tested, adjusted, strict=True) if p_value <= ERROR_RATE]
    kept = bool(behind) and all(one.test is not None and one.test.p_fails <= ERROR_RATE for one in behind)
    parts = [f"at {asked(one.sparsity)} {one.numbers}" for one in behind if one.sparsity is not None]
    own, plain = facts.costs.get(method), facts.costs.get("magnitude")
    ratio = None if own is None or plain is None else own.step_seconds / plain.step_seconds
    parts += [] if ratio is None else [f"{ratio:.2f} times the processor time of magnitude"]
    holds = True if ground or (ratio or 0.0) >= _CHEAP else False if kept and ratio is not None else None
    claim = f"{method} falls behind at {asked(_HIGH)} or more, or costs more"
    return Statement(claim, None, "; ".join(parts) or NOTHING, holds=holds)


def highest_sparsities(facts: StudyFacts) -> Judged:
    """Finding 3."""
    missing = facts.without(("magnitude",), _NON_UNIFORM, ("variational-dropout",)) + _no_sparsity(facts, _HIGHEST)
    if facts.frontiers.dense is None:
        return Judged((), tuple(missing))
    variational = "variational-dropout"
    wins = f"{variational} beats uniform magnitude"
    closes = f"non-uniform magnitude pruning matches or beats {variational}"
    claims = {
        wins: _compared(facts, (variational,), "magnitude", wins, AtLeast, facts.margin, _HIGHEST),
        closes: _compared(facts, _NON_UNIFORM, variational, closes, AtLeast, -facts.margin, _HIGHEST),
    }
    return _judged(claims, missing)


def l0_unusable(facts: StudyFacts) -> Judged:
    """Finding 4."""
    missing = facts.without(("l0",))
    sparse = [point for point in facts.frontiers.points if point.method == "l0" and sparse_enough(point.sparsity, _USEFUL)]
    if facts.frontiers.dense is None or not sparse:
        return Judged((), tuple(missing or [f"no network of l0 is at least {asked(_USEFUL)} sparse"]))
    best = max(sparse, key=lambda point: point.test.mean)
    half = facts.frontiers.dense.test.mean / 2.0
    numbers = f"best of {len(sparse):,}: {value(best.test)} at {measured(best.sparsity)}; half of dense is {half:.2f}"
    claim = f"no network of l0 that is at least {asked(_USEFUL)} sparse keeps half of the dense value"
    return Judged((Statement(claim, None, numbers, holds=best.test.mean < half),), tuple(missing))


def from_masks(facts: StudyFacts) -> Judged:
    """Finding 5."""
    missing = facts.without(("magnitude",), ("lottery-ticket",), ("scratch-e", "scratch-b")) + _no_sparsity(facts, 0.0)
    if facts.frontiers.dense is None:
        return Judged((), tuple(missing))
    claims: dict[str, Iterable[Statement]] = {}
    for method in [method for method in _FROM_MASKS if method in facts.frontiers.chosen]:
        claim = f"{method} stays below magnitude, whose masks it has"
        claims[claim] = _compared(facts, ("magnitude",), method, claim, AtLeast, facts.margin, 0.0)
    return _judged(claims, missing)


def costs(facts: StudyFacts) -> Judged:
    """Finding 6."""
    needed = ("dense", "magnitude", *_COMPLEX)
    untimed = [method for method in needed if method not in facts.costs]
    missing = [f"no runs of {listing(untimed)} with known processor time"] if untimed else []
    statements = []
    for method in needed[1:]:
        cost = facts.costs.get(method)
        if cost is None or cost.time_ratio is None:
            continue
        memory = "" if cost.memory_ratio is None else f"; memory {cost.memory_ratio:.2f} times"
        cheap = method == "magnitude"
        holds = cost.time_ratio <= _CHEAP if cheap else cost.time_ratio >= _DEAR
        fails = cost.time_ratio > _DEAR if cheap else cost.time_ratio < _CHEAP
        bound = f"at most {_CHEAP:g}" if cheap else f"at least {_DEAR:g}"
        claim = f"{method} takes {bound} times the processor time of dense training"
        numbers = f"{cost.time_ratio:.2f} times (median of {cost.runs:,} runs){memory}"
        statements.append(Statement(claim, None, numbers, holds=True if holds else False if fails else None))
    return Judged(tuple(statements), tuple(missing))
