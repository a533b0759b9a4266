"""What a configuration is worth to a search, against the rule of the page and a naive reading of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretended_runs import record

from sparsebench.records.schema import RunRecord
from sparsebench.studies.search.values import FAILED, trade_off, value_at
from sparsebench.training.config import resolve

CONFIG = resolve("digits", "l0", {})
SPARSITIES = st.floats(0.0, 1.0)
POINTS = st.lists(
    st.fixed_dictionaries({"sparsity": SPARSITIES, "validation": st.floats(0.0, 100.0)}), min_size=1, max_size=6
).map(lambda points: [{**point, "threshold": float(number)} for number, point in enumerate(points)])


def records_of(*seeds: list[dict[str, float]]) -> list[RunRecord]:
    return [record(CONFIG.model_copy(update={"seed": seed}), points) for seed, points in enumerate(seeds)]


@given(POINTS, SPARSITIES)
def test_value_is_that_of_the_best_point_that_is_sparse_enough(points: list[dict[str, float]], sparsity: float) -> None:
    enough = [point["validation"] for point in points if point["sparsity"] >= sparsity - 0.0005]
    value = value_at(records_of(points), sparsity)
    if enough:
        assert value == max(enough)
    else:
        assert FAILED < value < 0.0


@given(POINTS, POINTS, SPARSITIES)
def test_of_two_that_are_not_sparse_enough_the_nearer_is_better(
    one: list[dict[str, float]], other: list[dict[str, float]], sparsity: float
) -> None:
    lacks = [sparsity - max(point["sparsity"] for point in points) for points in (one, other)]
    values = [value_at(records_of(points), sparsity) for points in (one, other)]
    if lacks[0] > 0.0005 + 1e-9 and lacks[1] < lacks[0] - 1e-9:
        assert values[0] < values[1]


def test_value_is_a_mean_over_seeds_threshold_by_threshold() -> None:
    first = [{"sparsity": 0.9, "validation": 90.0, "threshold": 1.0}, {"sparsity": 0.5, "validation": 99.0, "threshold": 3.0}]
    second = [{"sparsity": 0.88, "validation": 80.0, "threshold": 1.0}, {"sparsity": 0.6, "validation": 97.0, "threshold": 3.0}]
    records = records_of(first, second)
    assert value_at(records, 0.5) == pytest.approx(98.0)
    assert value_at(records, 0.89) == pytest.approx(85.0)  # the second alone is not sparse enough
    assert value_at(records, 0.9) < 0.0


@given(POINTS)
def test_trade_off_is_a_point_of_the_run_with_the_largest_product(points: list[dict[str, float]]) -> None:
    validation, sparsity = trade_off(records_of(points))
    assert any((point["validation"], point["sparsity"]) == (validation, sparsity) for point in points)
    assert validation * sparsity == max(point["validation"] * point["sparsity"] for point in points)
