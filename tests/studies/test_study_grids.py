from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import SparsebenchError
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.study_file import read_study
from sparsebench.training.config import RunConfig

HEAD = "study: mine\nworkload: digits\nseeds: 1\nsparsities: [0.5]\nsettings: {steps: 100}\nmethods:"


def plan(folder: Path, method: str, values: str) -> list[RunConfig]:
    file = folder / "mine.yaml"
    file.write_text(f"{HEAD}\n  {method}: {values}\n")
    return plan_runs(read_study(str(file)))


def penalties(folder: Path, values: str) -> list[float]:
    return [config.parameters["penalty"] for config in plan(folder, "l0", f"{{penalty: {values}}}")]


def test_range_by_steps_has_both_ends_and_the_numbers_that_were_meant(tmp_path: Path) -> None:
    assert penalties(tmp_path, "{from: 0.1, to: 0.7, by: 0.2}") == [0.1, 0.3, 0.5, 0.7]
    assert penalties(tmp_path, "{from: 0.1, to: 0.6, by: 0.2}") == [0.1, 0.3, 0.5]
    assert penalties(tmp_path, "{from: 0, to: 1, values: 5}") == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert penalties(tmp_path, "{from: 0.01, to: 10, values: 4, scale: log}") == [0.01, 0.1, 1.0, 10.0]
    with_list = [config.run_id for config in plan(tmp_path, "l0", "{penalty: [0.1, 0.3, 0.5, 0.7]}")]
    assert [config.run_id for config in plan(tmp_path, "l0", "{penalty: {from: 0.1, to: 0.7, by: 0.2}}")] == with_list


@given(st.floats(1e-3, 1.0), st.floats(1.5, 1e3), st.integers(2, 6))
def test_log_range_has_equal_ratios(tmp_path_factory: pytest.TempPathFactory, first: float, factor: float, count: int) -> None:
    last = first * factor
    found = penalties(tmp_path_factory.mktemp("grid"), f"{{from: {first!r}, to: {last!r}, values: {count}, scale: log}}")
    assert len(found) == count
    assert found[0] == pytest.approx(first)
    assert found[-1] == pytest.approx(last)
    ratios = [math.log(after / before) for before, after in itertools.pairwise(found)]
    assert ratios == pytest.approx([math.log(factor) / (count - 1)] * (count - 1))


def test_ramp_is_the_time_from_begin_to_end(tmp_path: Path) -> None:
    ramped = plan(tmp_path, "magnitude", "{begin: [0.1, 0.7], ramp: [0.2, 0.3]}")
    assert [(config.parameters["begin"], config.parameters["end"]) for config in ramped] == [
        (10, 30),
        (10, 40),
        (70, 90),
        (70, 100),
    ]
    by_hand = plan(tmp_path, "magnitude", "[{begin: 0.1, end: [0.3, 0.4]}, {begin: 0.7, end: [0.9, 1.0]}]")
    assert [config.run_id for config in ramped] == [config.run_id for config in by_hand]
    (default,) = plan(tmp_path, "magnitude", "{ramp: 0.2}")
    assert (default.parameters["begin"], default.parameters["end"]) == (0, 20)


def test_grids_of_one_method_are_added(tmp_path: Path) -> None:
    found = plan(tmp_path, "l0", "[{penalty: [1, 2]}, {penalty: [2, 3], begin: 0.0}, {penalty: 3, end: 0.5}]")
    assert [(config.parameters["penalty"], config.parameters["end"]) for config in found] == [(1, 40), (2, 40), (3, 40), (3, 50)]


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("l0", "{penalty: {from: 1, to: 0.1, by: 0.1}}", r"line 7: penalty=\{.*\}: expected a range such as"),
        ("l0", "{penalty: {from: 0, to: 1, values: 3, scale: log}}", r"line 7: penalty=.*expected a range"),
        ("l0", "{penalty: {from: 0, to: 1}}", r"line 7: penalty=.*expected a range"),
        ("l0", "{penalty: {from: 0, to: 1, values: 3, by: 0.5}}", r"line 7: penalty=.*expected a range"),
        ("l0", "{penalty: {from: 0, to: 1, values: 1}}", r"line 7: penalty=.*expected a range"),
        ("l0", "{penalty: {from: 0, to: 1, values: true}}", r"line 7: penalty=.*expected a range"),
        ("l0", "{penalty: {from: 0, to: .inf, values: 2}}", r"line 7: penalty=.*expected a range"),
        ("l0", "{penalty: {from: 0, to: 1, values: 2, scale: cubic}}", r"line 7: penalty=.*expected a range"),
        ("magnitude", "{begin: 0.1, end: 0.5, ramp: 0.1}", r"line 7: magnitude: expected either the field 'end' or 'ramp'"),
        (
            "magnitude",
            "{begin: 10 steps, ramp: 0.1}",
            r"line 7: magnitude: ramp=0.1 with begin='10 steps': expected both as fractions",
        ),
        ("magnitude", "{ramp: 1.5}", r"line 7: magnitude: ramp=1.5 .* expected both as fractions"),
        ("magnitude", "{begin: 0.8, ramp: 0.5}", r"line 7: magnitude: end=1.3: expected a fraction of training"),
        ("dense", "{ramp: 0.1}", r"line 7: unknown field 'ramp' of 'dense'"),
        ("l0", "[]", r"line 7: l0: expected a mapping, or a list of mappings"),
        ("l0", "[5]", r"line 7: l0: expected a mapping, or a list of mappings"),
        ("l0", "\n    - {penalty: 1}\n    - {penalt: 1}", r"line 9: unknown field 'penalt' of 'l0'"),
    ],
)
def test_mistake_in_a_grid_is_one_line(tmp_path: Path, method: str, values: str, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message) as caught:
        plan(tmp_path, method, values)
    assert "\n" not in str(caught.value)
