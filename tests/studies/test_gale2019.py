"""The studies gale2019 and gale2019-small are what they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pretended_runs import stages_of

from sparsebench.errors import SparsebenchError
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.study_file import Study, each_workload, read_study
from sparsebench.training.config import resolve

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def study(name: str, workload: str) -> Study:
    (chosen,) = each_workload(read_study(name), workload)
    return chosen


def test_grid_is_that_of_the_paper_in_fractions_of_training() -> None:
    """Written out in plain loops."""
    wanted = set()

    def add(method: str, **parameters: object) -> None:
        for smoothing in (0.0, 0.1):
            wanted.add(resolve("digits", method, parameters, {"label_smoothing": smoothing}).run_id)

    add("dense")
    for method in ("magnitude", "magnitude-global", "magnitude-erk", "random"):
        for sparsity in SPARSITIES:
            for begin in (0.0, 0.2, 0.4):
                for end in (0.6, 0.8, 1.0):
                    for frequency in (0.002, 0.02):
                        add(method, sparsity=sparsity, begin=begin, end=end, frequency=frequency)
    for shape in ("linear", "cubic"):
        for begin in (0.0, 0.2, 0.4, 0.6):
            for end in (round(begin + 0.2, 1), round(begin + 0.4, 1)):
                for penalty in (0.01, 0.03, 0.1, 0.3, 1, 3):
                    thresholds = [3.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.5, 4.0, 4.5, 5.0]
                    add("variational-dropout", penalty=penalty, shape=shape, begin=begin, end=end, thresholds=thresholds)
                for penalty in (0.03, 0.1, 0.3, 1, 3):
                    add("l0", penalty=penalty, shape=shape, begin=begin, end=end)
    assert {config.run_id for config in plan_runs(study("gale2019", "digits"))} == wanted


def test_whole_study_has_as_many_runs_as_it_says(tmp_path: Path) -> None:
    found = stages_of(study("gale2019", "digits"), tmp_path)
    assert set(found) == {"grid", "best", "early", "from-masks", "iterative", "iterative-from-early"}
    # No more than one configuration of each of six techniques at each of seven sparsities, and a dense one.
    assert len({config.configuration for config in found["best"]}) <= 43
    assert {config.seed for config in found["best"]} == {0, 1, 2, 3, 4}
    masks = {config.configuration for config in found["best"] if config.method == "magnitude"}
    tickets = [config for config in found["from-masks"] if config.method == "lottery-ticket"]
    assert {config.parent.configuration for config in tickets if config.parent} <= masks
    chosen = len(tickets)
    assert chosen % 5 == 0
    assert Counter(config.method for config in found["from-masks"]) == {
        "lottery-ticket": chosen,
        "scratch-e": 2 * chosen,
        "scratch-b": 6 * chosen,
    }
    variants = Counter(config.kept_schedule.variant if config.kept_schedule else "stretched" for config in found["from-masks"])
    assert set(variants) == {"stretched", "constant-final-rate", "constant-decay-points", "continued-decay"}
    for name in ("iterative", "iterative-from-early"):
        assert Counter(config.target_sparsity for config in found[name]) == dict.fromkeys(SPARSITIES, 5)
    assert {config.parameters["rewind_to"] for config in found["iterative"]} == {0}
    assert {config.parameters["rewind_to"] for config in found["iterative-from-early"]} == {30}
    everything = {config.run_id for configs in found.values() for config in configs}
    assert 1500 <= len(everything) <= 1930


def test_small_study_is_small(tmp_path: Path) -> None:
    found = stages_of(study("gale2019-small", "digits"), tmp_path)
    everything = {config.run_id: config for configs in found.values() for config in configs}
    assert 150 <= len(everything) <= 250
    assert {config.method for config in everything.values()} >= {
        "dense",
        "random",
        "magnitude",
        "magnitude-global",
        "magnitude-erk",
        "variational-dropout",
        "l0",
        "lottery-ticket",
        "scratch-e",
        "scratch-b",
        "iterative-magnitude",
    }


@pytest.mark.parametrize("name", ["gale2019", "gale2019-small"])
def test_study_of_several_workloads_is_one_study_for_each(name: str) -> None:
    everywhere = read_study(name)
    each = each_workload(everywhere)
    assert [one.workload for one in each] == list(everywhere.workloads)
    assert [one.name for one in each] == [f"{name}-{workload}" for workload in everywhere.workloads]
    for one in each:
        assert {config.workload for config in plan_runs(one)} == {one.workload}


def test_workload_that_the_file_does_not_name_can_be_given_and_must_exist() -> None:
    (other,) = each_workload(read_study("quickstart"), "cldr-ende")
    assert other.name == "quickstart-cldr-ende"
    with pytest.raises(SparsebenchError, match=r"^quickstart\.yaml: unknown workload 'digts' \(did you mean 'digits'\?\)"):
        plan_runs(study("quickstart", "digts"))
