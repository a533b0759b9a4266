"""The page's tables, row by row, every number already as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sparsebench.analysis.comparisons import Comparison
from sparsebench.analysis.frontiers import DENSE, Frontiers, Point, candidates
from sparsebench.analysis.settings import varying_settings
from sparsebench.analysis.statistics import mean
from sparsebench.analysis.study_data import Failure, StudyData, known_steps
from sparsebench.analysis.wording import NOTHING, asked, count, duration, measured, memory, points_of, spread, value

__all__ = [
    "BestCell",
    "Choice",
    "ComparisonRow",
    "Cost",
    "FailedRun",
    "best_rows",
    "choices",
    "comparison_rows",
    "configurations",
    "costs",
    "failed_runs",
]


@dataclass(frozen=True)
class BestCell:
    """A cell of the table of best values: its text, how many seeds it rests on, whether it is the highest of its column."""

    text: str
    seeds: str
    best: bool


@dataclass(frozen=True)
class Choice:
    """A row of the table of chosen points."""

    method: str
    asked: str
    measured: str
    threshold: str
    validation: str
    test: str
    seeds: str
    candidates: str
    settings: str
    configuration: str


@dataclass(frozen=True)
class Cost:
    """A row of the table of costs."""

    method: str
    runs: str
    failed: str
    configurations: str
    points: str
    seeds: str
    steps: str
    total: str
    mean: str
    memory: str


@dataclass(frozen=True)
class ComparisonRow:
    """A row of the table of comparisons."""

    first: str
    second: str
    asked: str
    difference: str
    effect: str
    p: str
    replicates: str
    verdict: str


@dataclass(frozen=True)
class FailedRun:
    """A row of the table of failed runs."""

    run_id: str
    method: str
    settings: str
    reason: str


def best_rows(frontiers: Frontiers) -> dict[str, list[BestCell]]:
    """The table of best values: for every method a cell per sparsity asked about.

    Where only one method reaches a sparsity, nothing is marked: there was no comparison.
    """
    highest: list[float | None] = []
    for index in range(len(frontiers.sparsities)):
        column = [row[index] for row in frontiers.chosen.values()]
        means = [point.test.mean for point in column if point is not None]
        highest.append(max(means) if len(means) > 1 else None)
    return {
        method: [
            BestCell(value(point.test), count(point.test.n, "seed"), point.test.mean == top)
            if point is not None
            else BestCell(NOTHING, "", False)
            for point, top in zip(row, highest, strict=True)
        ]
        for method, row in frontiers.chosen.items()
    }


def configurations(data: StudyData, frontiers: Frontiers) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The configurations of every method that has points, by their ids."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {method: {} for method in sorted(set(data.results["method"]))}
    for point in frontiers.points:
        found[point.method][point.configuration] = point.config
    return found


def choices(data: StudyData, frontiers: Frontiers) -> list[Choice]:
    """The table of chosen points: dense first, then every method at every sparsity it reaches."""
    settings = {method: varying_settings(own) for method, own in configurations(data, frontiers).items()}
    by_method: dict[str, list[Point]] = {}
    for point in frontiers.points:
        by_method.setdefault(point.method, []).append(point)
    rows = []
    if frontiers.dense is not None:
        rows.append(_choice(frontiers.dense, NOTHING, len(by_method[DENSE]), settings))
    for method, chosen in frontiers.chosen.items():
        for sparsity, best in zip(frontiers.sparsities, chosen, strict=True):
            if best is not None:
                rows.append(_choice(best, asked(sparsity), len(candidates(by_method[method], sparsity)), settings))
    return rows


def _choice(point: Point, sparsity: str, tried: int, settings: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Choice:
    return Choice(
        method=point.method,
        asked=sparsity,
        measured=measured(point.sparsity),
        threshold=NOTHING if point.threshold is None else f"{point.threshold:g}",
        validation=f"{point.validation:.2f}",
        test=value(point.test),
        seeds=f"{point.test.n:,}",
        candidates=f"{tried:,}",
        settings=_together(settings[point.method][point.configuration]) or "the only configuration",
        configuration=point.configuration,
    )


def comparison_rows(comparisons: Iterable[Comparison], metric: str) -> list[ComparisonRow]:
    """The table of comparisons: every two methods at every sparsity, the higher mean first."""
    rows = []
    for comparison in comparisons:
        apart = comparison.difference
        rows.append(
            ComparisonRow(
                first=comparison.first,
                second=comparison.second,
                asked=asked(comparison.sparsity),
                difference=points_of(apart, metric),
                effect=NOTHING if apart.effect_size is None else f"{apart.effect_size:.1f}",
                p=f"{comparison.adjusted_p:.4f}" if apart.testable else NOTHING,
                replicates=count(apart.n, "pair" if apart.paired else "seed"),
                verdict=_verdict(comparison),
            )
        )
    return rows


def _verdict(comparison: Comparison) -> str:
    if comparison.shown:
        return f"{comparison.first} is better"
    return "no difference shown" if comparison.difference.testable else "cannot be tested"


def costs(data: StudyData) -> list[Cost]:
    """The table of costs: what every method was given to tune with, and what its runs took."""
    failed = pd.Series([failure.method for failure in data.failures], dtype="object")
    rows = []
    methods = {str(method) for method in data.results["method"].unique()} | {method for method in failed if method}
    for method in sorted(methods):
        own = data.results[data.results["method"] == method]
        runs = own.drop_duplicates("run_id")
        points = own[["configuration", "target_sparsity", "threshold"]].drop_duplicates()
        known = runs["peak_memory_bytes"].dropna()
        rows.append(
            Cost(
                method=method,
                runs=f"{len(runs):,}",
                # Folders of runs that failed are not passed on with the tables.
                failed=NOTHING if data.tables_alone else f"{int((failed == method).sum()):,}",
                configurations=f"{runs['configuration'].nunique():,}",
                points=f"{len(points):,}",
                seeds=_or_nothing(spread, runs.groupby("configuration")["seed"].nunique()),
                steps=_or_nothing(spread, known_steps(runs)),
                total=_or_nothing(lambda seconds: duration(sum(seconds)), runs["seconds"].dropna()),
                mean=_or_nothing(lambda seconds: duration(mean(seconds)), runs["seconds"].dropna()),
                memory=memory(mean(float(size) for size in known) if len(known) else None),
            )
        )
    return rows


def failed_runs(failures: Sequence[Failure], results: pd.DataFrame) -> list[FailedRun]:
    """The table of failed runs, with the settings in which they differ from the other runs of their method.

    Args:
        failures: The runs that failed.
        results: The table `results` of those that did not.
    """
    configs: dict[str, dict[str, Mapping[str, Any]]] = {}
    finished = results.drop_duplicates("configuration")
    for method, configuration, config in zip(finished["method"], finished["configuration"], finished["config"], strict=True):
        configs.setdefault(method, {})[configuration] = json.loads(config)
    for failure in failures:
        configs.setdefault(failure.method, {})[failure.run_id] = failure.config
    settings = {method: varying_settings(own) for method, own in configs.items()}
    return [
        FailedRun(
            run_id=failure.run_id,
            method=failure.method or "unknown",
            settings=_together(_with_seed(failure, settings[failure.method][failure.run_id])),
            reason=failure.reason,
        )
        for failure in failures
    ]


def _with_seed(failure: Failure, settings: Mapping[str, str]) -> dict[str, str]:
    known = {name: text for name, text in settings.items() if text != NOTHING}
    return known | ({"seed": str(failure.config["seed"])} if "seed" in failure.config else {})


def _together(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in settings.items())


def _or_nothing(write: Any, numbers: Iterable[Any]) -> str:
    known = list(numbers)
    return str(write(known)) if known else NOTHING
