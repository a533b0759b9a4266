"""The value of a method at a sparsity: one rule, used by every figure and table.

The value of a method at sparsity s is that of its best point with sparsity at least s, chosen on the validation split,
reported on the test split, over seeds. A point is a configuration (all settings but the seed) and, where the method
has one, a threshold. Imported results have one split only, which both chooses their points and reports them, as their
authors did.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sparsebench.analysis.statistics import Estimate, estimate, mean
from sparsebench.analysis.study_data import StudyData, load_study
from sparsebench.errors import SparsebenchError
from sparsebench.records.choice import DENSE, TOLERANCE, best_candidate, sparse_enough
from sparsebench.records.schema import OWN_SOURCE

__all__ = [
    "DENSE",
    "TOLERANCE",
    "BestValues",
    "Frontiers",
    "Point",
    "best_values",
    "candidates",
    "find_frontiers",
    "find_points",
    "tabulate",
]


@dataclass(frozen=True)
class Point:
    """One configuration at one threshold, over all its seeds.

    Args:
        method: The method's name.
        configuration: The id of the settings without the seed.
        target_sparsity: The sparsity that was asked for, None where the method finds its own.
        threshold: The log-alpha threshold, None where there is none.
        seeds: The seeds that have both splits, ascending.
        sparsity: Measured sparsity, the mean over seeds.
        validation: The primary metric on the validation split, the mean over seeds: what points are chosen by.
        test: The primary metric on the test split over seeds: what is reported.
        config: The settings of one of its runs.
        values: The test value of each of `seeds`.
        inference_cost: Multiply-adds of the non-zero weights for one example, as a multiple of the dense network's; the mean over
            seeds, None where unknown.
        training_cost: Those of the training, likewise.
        file_bytes: The size of the network as a compressed checkpoint, the mean over seeds; None where no run kept this network.
        latency_ms: Milliseconds of a batch through it, run sparse, likewise; None where that was not measured.
    """

    method: str
    configuration: str
    target_sparsity: float | None
    threshold: float | None
    seeds: tuple[int, ...]
    sparsity: float
    validation: float
    test: Estimate
    config: Mapping[str, Any] = field(compare=False, repr=False)
    values: tuple[float, ...] = field(default=(), compare=False, repr=False)
    inference_cost: float | None = field(default=None, compare=False)
    training_cost: float | None = field(default=None, compare=False)
    file_bytes: float | None = field(default=None, compare=False)
    latency_ms: float | None = field(default=None, compare=False)

    @property
    def by_seed(self) -> dict[int, float]:
        """The test value by seed."""
        return dict(zip(self.seeds, self.values, strict=True))


@dataclass(frozen=True)
class Frontiers:
    """The chosen points of a study.

    Args:
        sparsities: The sparsities asked about, ascending.
        chosen: For every method but dense, in order of their names, one point per sparsity; None where no point is
            sparse enough.
        dense: The best configuration without sparsity, None where none was trained.
        points: All points, the dense ones included.
        incomplete: How many evaluations were left out because they lack the validation or the test split.
    """

    sparsities: tuple[float, ...]
    chosen: Mapping[str, tuple[Point | None, ...]]
    dense: Point | None
    points: tuple[Point, ...]
    incomplete: int


@dataclass(frozen=True)
class BestValues:
    """The table of best values as plain data.

    `rows[method][i]` belongs to `sparsities[i]`; it is None where nothing was sparse enough.
    """

    metric: str
    sparsities: tuple[float, ...]
    rows: dict[str, tuple[Estimate | None, ...]]
    dense: Estimate | None


class _Evaluation(NamedTuple):
    sparsity: float
    value: float
    inference_cost: float | None
    training_cost: float | None
    file_bytes: float | None
    latency_ms: float | None


_Key = tuple[str, str, float | None, float | None]


def find_points(data: StudyData) -> tuple[tuple[Point, ...], int]:
    """Average the evaluations of a study over seeds.

    Args:
        data: The study.

    Returns:
        The points in a fixed order, and the number of evaluations that lack the validation or the test split and were
        left out.

    Raises:
        SparsebenchError: Two runs have the same settings and the same seed, so that one would pass for a replicate of
            the other.
    """
    table = data.results
    table = table[table["primary_metric"] & table["split"].isin(["validation", "test"])]
    configs: dict[str, Mapping[str, Any]] = {}
    values: dict[_Key, dict[int, dict[str, _Evaluation]]] = defaultdict(lambda: defaultdict(dict))
    columns = (
        "method",
        "configuration",
        "target_sparsity",
        "threshold",
        "seed",
        "split",
        "sparsity",
        "value",
        "config",
        "run_id",
        "inference_cost",
        "training_cost",
        "file_bytes",
        "latency_ms",
    )
    for method, configuration, target, threshold, seed, split, sparsity, value, config, run_id, *costs in zip(
        *(table[column] for column in columns), strict=True
    ):
        if configuration not in configs:
            configs[configuration] = json.loads(config)
        splits = values[(method, configuration, _known(target), _known(threshold))][int(seed)]
        if split in splits:
            raise SparsebenchError(
                f"{data.directory} holds two evaluations of the same {method} settings, seed {seed} and split "
                f"(run {run_id}): remove the copy, it is no replicate"
            )
        splits[split] = _Evaluation(float(sparsity), float(value), *map(_known, costs))
        if data.source != OWN_SOURCE:
            splits["validation"] = splits["test"]
    points = []
    incomplete = 0
    for key in sorted(values, key=_sort_key):
        complete = {seed: splits for seed, splits in sorted(values[key].items()) if len(splits) == 2}
        incomplete += len(values[key]) - len(complete)
        if complete:
            points.append(
                Point(
                    *key,
                    seeds=tuple(complete),
                    sparsity=mean(splits["test"].sparsity for splits in complete.values()),
                    validation=mean(splits["validation"].value for splits in complete.values()),
                    test=estimate(splits["test"].value for splits in complete.values()),
                    config=configs[key[1]],
                    values=tuple(splits["test"].value for splits in complete.values()),
                    inference_cost=_mean_or_none(splits["test"].inference_cost for splits in complete.values()),
                    training_cost=_mean_or_none(splits["test"].training_cost for splits in complete.values()),
                    file_bytes=_mean_or_none(splits["test"].file_bytes for splits in complete.values()),
                    latency_ms=_mean_or_none(splits["test"].latency_ms for splits in complete.values()),
                )
            )
    return tuple(points), incomplete


def candidates(points: Iterable[Point], sparsity: float) -> list[Point]:
    """The points that are sparse enough: those whose mean sparsity over seeds is at least `sparsity` - `TOLERANCE`."""
    return [point for point in points if sparse_enough(point.sparsity, sparsity)]


def find_frontiers(data: StudyData) -> Frontiers:
    """Choose the best point of every method at every sparsity that the study asks about.

    Args:
        data: The study.

    Raises:
        SparsebenchError: Two runs have the same settings and the same seed.
    """
    points, incomplete = find_points(data)
    sparsities = tuple(sorted(set(data.note.sparsities)))
    by_method: dict[str, list[Point]] = {method: [] for method in sorted(set(data.results["method"]))}
    for point in points:
        by_method[point.method].append(point)
    dense = best_candidate(by_method.pop(DENSE, []))
    chosen = {method: tuple(best_candidate(own, sparsity) for sparsity in sparsities) for method, own in by_method.items()}
    return Frontiers(sparsities, chosen, dense, points, incomplete)


def best_values(directory: Path) -> BestValues:
    """The table of best values of a results folder.

    Args:
        directory: A folder written by `sparsebench study run` or `sparsebench train`.

    Returns:
        The mean of the primary metric on the test split, the half-width of its interval and the number of seeds, for
        every method at every sparsity asked about, and for the dense baseline.

    Raises:
        SparsebenchError: The folder holds no finished run, or its runs cannot be compared.
    """
    data = load_study(directory)
    return tabulate(data, find_frontiers(data))


def tabulate(data: StudyData, frontiers: Frontiers) -> BestValues:
    """The table of best values of a study that is read already."""
    return BestValues(
        metric=data.metric,
        sparsities=frontiers.sparsities,
        rows={method: tuple(_test(point) for point in row) for method, row in frontiers.chosen.items()},
        dense=_test(frontiers.dense),
    )


def _test(point: Point | None) -> Estimate | None:
    return None if point is None else point.test


def _mean_or_none(numbers: Iterable[float | None]) -> float | None:
    """The mean of numbers that are all known."""
    values = list(numbers)
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def _known(value: Any) -> float | None:
    number = float(value) if value is not None else None
    return None if number is None or number != number else number  # pandas shows a missing number as NaN


def _sort_key(key: _Key) -> tuple[str, str, float, float]:
    method, configuration, target, threshold = key
    below_all = float("-inf")
    return (
        method,
        configuration,
        below_all if target is None else target,
        below_all if threshold is None else threshold,
    )
