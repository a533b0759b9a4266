"""Ranges to the last digit, lists that are values, and budgets."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretended_runs import read

from sparsebench.errors import SparsebenchError
from sparsebench.studies.grids import _range
from sparsebench.studies.plan import plan_runs


def plan(folder: Path, methods: str) -> set[str]:
    """Ids of the runs of a study with these methods."""
    text = f"study: mine\nworkload: digits\nseeds: 1\nsparsities: [0.5, 0.9]\nmethods:\n{methods}"
    found = [config.run_id for config in plan_runs(read(folder, text))]
    assert len(set(found)) == len(found)
    return set(found)


@given(st.floats(1e-6, 1e3), st.floats(1.001, 1e6), st.integers(2, 50))
def test_log_range_has_equal_ratios_and_both_ends(first: float, factor: float, count: int) -> None:
    last = first * factor
    found = _range("penalty", {"from": first, "to": last, "values": count, "scale": "log"}, "here")
    assert len(found) == count
    assert found[0] == pytest.approx(first, rel=1e-11)
    assert found[-1] == pytest.approx(last, rel=1e-11)
    for one, other in itertools.pairwise(found):
        assert math.log(other / one) == pytest.approx(math.log(factor) / (count - 1), rel=1e-4, abs=1e-9)


@given(st.integers(-50, 50), st.integers(1, 20), st.integers(1, 30))
def test_range_by_tenths_has_the_numbers_that_one_would_write(first: int, by: int, count: int) -> None:
    last = first + by * count
    found = _range("x", {"from": first / 10, "to": last / 10, "by": by / 10}, "here")
    assert found == [number / 10 for number in range(first, last + 1, by)]


def test_list_is_one_value_of_an_argument_that_is_a_list(tmp_path: Path) -> None:
    assert len(plan(tmp_path, "  variational-dropout: {thresholds: [3.0, 1.0]}")) == 1
    assert len(plan(tmp_path, "  variational-dropout: {thresholds: [[3.0, 1.0], [2.0]]}")) == 2


def test_mapping_that_is_no_range_is_a_value(tmp_path: Path) -> None:
    assert len(plan(tmp_path, '  magnitude: {sparsity: 0.5, allocation: {"7": 0.8}}')) == 1


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("penalty: {from: 0.1, to: 1, by: 0.1, scale: log}", r"penalty=.*: expected a range such as"),
        ("penalty: {from: 0.1, to: 1, by: 0}", r"penalty=.*: expected a range"),
        ("penalty: {from: 0.1, to: 1, values: 2.5}", r"penalty=.*: expected a range"),
        ("penalty: {from: a, to: b, values: 3}", r"penalty=.*: expected a range"),
        ("penalty: {from: 0.1, too: 1, values: 3}", r"l0: penalty=.*: input should be a valid number"),
        ("penalty: []", r"penalty: expected at least one value"),
        ("ramp: 200 steps", r"l0: ramp='200 steps' with begin=0\.0: expected both"),
        ("ramp: -0.1", r"l0: ramp=-0\.1 with"),
        ("rampe: 0.2", r"unknown field 'rampe' of 'l0'"),
    ],
)
def test_mistake_is_one_line_with_file_line_and_field(tmp_path: Path, field: str, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message) as caught:
        plan(tmp_path, f"  dense: {{}}\n  l0: {{{field}}}")
    assert str(caught.value).startswith(f"{tmp_path}/mine.yaml, line 7: ")
    assert "\n" not in str(caught.value)


# Budgets.

LARGE = "  dense: {}\n  magnitude: {begin: [0.0, 0.1, 0.2, 0.3], end: [0.5, 0.6]}\n  l0: {penalty: {from: 1, to: 9, by: 1}}\n"


def drawn(folder: Path, budget: str, methods: str = LARGE) -> list[Any]:
    text = f"study: mine\nworkload: digits\nseeds: 2\nsparsities: [0.5, 0.9]\n{budget}methods:\n{methods}"
    return plan_runs(read(folder, text))


def test_budget_is_the_most_configurations_of_each_method_at_all_sparsities_alike(tmp_path: Path) -> None:
    everything, some = drawn(tmp_path, ""), drawn(tmp_path, "budget: 7\n")
    assert Counter(config.method for config in everything) == {"dense": 2, "magnitude": 32, "l0": 18}
    assert Counter(config.method for config in some) == {"dense": 2, "magnitude": 14, "l0": 14}
    assert Counter(config.target_sparsity for config in some if config.method == "magnitude") == {0.5: 8, 0.9: 6}
    ids = [config.run_id for config in everything]
    places = [ids.index(config.run_id) for config in some]
    assert places == sorted(places)  # in the order of the whole grid, seeds apart
    assert drawn(tmp_path, "budget: 100\n") == everything


def test_what_a_budget_draws_does_not_depend_on_how_the_grid_is_written(tmp_path: Path) -> None:
    turned = "  l0: {penalty: [9, 8, 7, 6, 5, 4, 3, 2, 1]}\n  magnitude:\n    - {end: 0.6, begin: [0.3, 0.2, 0.1, 0.0]}\n"
    turned += "    - {end: 0.5, begin: [0.0, 0.3, 0.1, 0.2]}\n  dense: {}\n"
    one, other = (drawn(tmp_path, "budget: 5\n", text) for text in (LARGE, turned))
    assert {config.run_id for config in one} == {config.run_id for config in other}


def test_smaller_budget_draws_among_what_a_larger_one_does(tmp_path: Path) -> None:
    """So that a study can be given more later, and nothing that was trained is in vain."""
    ids = [{config.run_id for config in drawn(tmp_path, f"budget: {budget}\n")} for budget in range(1, 17)]
    assert all(one <= other for one, other in itertools.pairwise(ids))


@pytest.mark.parametrize("budget", ["0", "-1", "2.5", "true", "many", "[1]", ""])
def test_budget_is_a_number_of_configurations(tmp_path: Path, budget: str) -> None:
    with pytest.raises(
        SparsebenchError, match=r"line 5: budget=.*: expected a number of configurations of each method, at least 1"
    ):
        drawn(tmp_path, f"budget: {budget}\n")
