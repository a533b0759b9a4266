"""Which runs of a study are chosen; `Selection` against a plain loop over all configurations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import SparsebenchError
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.selection import Selection
from sparsebench.studies.study_file import read_study
from sparsebench.training.config import RunConfig

RUNS = plan_runs(read_study("quickstart"))


def ids(configs: list[RunConfig]) -> list[str]:
    return [config.run_id for config in configs]


@given(shares=st.integers(1, 12))
def test_shares_have_every_run_once(shares: int) -> None:
    found = [ids(Selection(shard=f"{number}/{shares}").choose(RUNS)) for number in range(1, shares + 1)]
    assert sorted(run_id for share in found for run_id in share) == sorted(ids(RUNS))


@given(shares=st.integers(1, 12), known=st.sets(st.integers(0, len(RUNS) - 1)))
def test_share_of_a_run_stays_when_the_study_grows(shares: int, known: set[int]) -> None:
    some = [RUNS[index] for index in sorted(known)]
    for number in range(1, shares + 1):
        chosen = set(ids(Selection(shard=f"{number}/{shares}").choose(RUNS)))
        assert ids(Selection(shard=f"{number}/{shares}").choose(some)) == [run.run_id for run in some if run.run_id in chosen]


@pytest.mark.parametrize(
    ("only", "meets"),
    [
        (["method=magnitude"], lambda run: run.method == "magnitude"),
        (["method=magnitude, dense"], lambda run: run.method in ("magnitude", "dense")),
        (["seed=0,2"], lambda run: run.seed in (0, 2)),
        (["sparsity=0.90"], lambda run: run.target_sparsity == 0.9),
        (["sparsity=9e-1", "seed=1"], lambda run: run.target_sparsity == 0.9 and run.seed == 1),
        (["threads=1.0"], lambda run: True),
        (["optimizer=adamw"], lambda run: run.recipe.optimizer == "adamw"),
        (["sparsity=none"], lambda run: run.target_sparsity is None),
    ],
)
def test_conditions_choose_what_meets_them_all(only: list[str], meets: Any) -> None:
    selection = Selection(only=tuple(only))
    selection.check(RUNS, complete=True)
    assert ids(selection.choose(RUNS)) == [run.run_id for run in RUNS if meets(run)]
    assert selection.choose(RUNS)


def test_limit_counts_what_was_trained() -> None:
    assert Selection(limit=3).within_limit(RUNS, 1) == RUNS[:2]
    assert Selection(limit=3).within_limit(RUNS, 5) == []
    assert Selection().within_limit(RUNS, 5) == RUNS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shard": "0/2"}, "--shard '0/2': expected I/N"),
        ({"shard": "3/2"}, "--shard '3/2': expected I/N"),
        ({"limit": 0}, "--limit 0: expected at least 1"),
        ({"only": ("method",)}, "--only 'method': expected FIELD=VALUE"),
        ({"only": ("sparsety=0.5",)}, r"there is no field 'sparsety'.*did you mean 'sparsity'"),
        ({"only": ("method=magnitud",)}, r"unknown method 'magnitud'.*did you mean 'magnitude'"),
    ],
)
def test_selection_that_means_nothing_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SparsebenchError, match=message):
        Selection(**given)


def test_condition_that_no_run_meets_is_refused_where_no_others_will_come() -> None:
    selection = Selection(only=("method=magnitude", "seed=77"))
    selection.check(RUNS, complete=False)
    with pytest.raises(SparsebenchError, match=r"^--only 'seed=77': no run of the study meets this; seed is 0, 1, 2$"):
        selection.check(RUNS, complete=True)
