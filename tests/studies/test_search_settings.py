"""What a study file says of its search, and what is refused before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pretended_runs import read

from sparsebench.errors import SparsebenchError
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.run_study import run_study
from sparsebench.studies.search.settings import SearchSettings
from sparsebench.studies.study_runs import StudyRuns

STUDY = """
study: searched
workload: digits
seeds: 1
sparsities: [0.5, 0.9]
{fields}
methods:
  magnitude: {grid}
"""
GRID = "{begin: {from: 0.0, to: 0.4}, end: 0.6}"


def study_of(folder: Path, fields: str, grid: str = GRID) -> str:
    return STUDY.format(fields=fields, grid=grid)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("tpe", SearchSettings("tpe")),
        ("random", SearchSettings("random")),
        ("{sampler: nsga-2, seed: 7, generation: 20}", SearchSettings("nsga-2", 7, 20)),
        ("{sampler: tpe, stop: hyperband}", SearchSettings("tpe", stop="hyperband")),
    ],
)
def test_search_is_a_name_or_a_mapping(tmp_path: Path, field: str, expected: SearchSettings) -> None:
    assert read(tmp_path, study_of(tmp_path, f"budget: 5\nsearch: {field}")).search == expected


def test_study_without_the_field_has_no_search(tmp_path: Path) -> None:
    assert read(tmp_path, study_of(tmp_path, "budget: 5")).search is None


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("tpee", r"line 7: search='tpee': expected one of tpe, nsga-2, random.*tpe"),
        ("{seed: 3}", r"field 'sampler' is missing"),
        ("{sampler: grid}", r"line 7: sampler='grid': expected one of tpe, nsga-2, random"),
        ("{sampler: [tpe]}", r"line 7: sampler=\['tpe'\]: expected one of"),
        ("{sampler: tpe, runs: 60}", r"line 7: unknown field 'runs'; known: sampler, seed, generation, stop"),
        ("{sampler: tpe, seed: -1}", r"line 7: seed=-1: expected an integer from 0 to 4294967295"),
        ("{sampler: tpe, seed: true}", r"line 7: seed=True: expected an integer"),
        ("{sampler: tpe, generation: 0}", r"line 7: generation=0: expected an integer of at least 1"),
        ("{sampler: nsga-2, generation: 1}", r"line 7: generation=1: expected an integer of at least 2"),
        ("{sampler: tpe, stop: median}", r"line 7: stop='median': expected one of hyperband"),
        ("{sampler: nsga-2, stop: hyperband}", r"line 7: stop='hyperband': nsga-2 .*; choose the sampler tpe or random"),
        ("[tpe]", r"line 7: search: expected a mapping"),
    ],
)
def test_mistake_is_one_line_with_file_line_and_field(tmp_path: Path, field: str, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message) as caught:
        read(tmp_path, study_of(tmp_path, f"budget: 5\nsearch: {field}"))
    assert str(caught.value).startswith(f"{tmp_path}/mine.yaml")
    assert "\n" not in str(caught.value)


def test_search_without_a_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SparsebenchError, match=r"mine\.yaml, line 6: search: expected the field 'budget' too"):
        read(tmp_path, study_of(tmp_path, "search: tpe"))


@pytest.mark.parametrize(
    ("fields", "grid", "message"),
    [
        ("budget: 5", GRID, r"line 8: begin=\{from: 0, to: 0\.4\}: expected a range with 'by' or 'values'"),
        ("budget: 5\nsearch: tpe", "{begin: {from: 0.0, to: 0.7}, end: 0.6}", r"line 9: magnitude: end=\d+ is before begin=\d+"),
        ("budget: 5\nsearch: tpe", "{batch_size: {from: 16, to: 64}, end: 0.6}", r"line 9: magnitude: batch_size=.*integer"),
        (
            "budget: 5\nsearch: tpe",
            "{sparsity: {from: 0.1, to: 0.9}}",
            r"line 9: sparsity: expected a list, or a range with 'by'",
        ),
        ("budget: 5\nsearch: tpe", "{begin: {from: 0.4, to: 0.1}}", r"line 9: begin=.*: expected a range such as"),
    ],
)
def test_what_a_search_may_propose_is_looked_at_when_it_is_planned(tmp_path: Path, fields: str, grid: str, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message):
        plan_runs(read(tmp_path, study_of(tmp_path, fields, grid)))


def test_missing_optuna_is_one_line_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = read(tmp_path, study_of(tmp_path, "budget: 5\nsearch: tpe"))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SparsebenchError, match=r"needs optuna .*: pip install 'sparsebench\[search\]'$"):
        StudyRuns(study, tmp_path / "results", plan_runs(study))
    with pytest.raises(SparsebenchError, match="needs optuna"):
        run_study(study, tmp_path / "results", None)  # type: ignore[arg-type]
    assert not (tmp_path / "results").exists()
