"""Stages: the runs of each are a function of the finished results of an earlier one, and of nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pretended_runs import fail, finish, read, record, stages_of

from sparsebench.errors import SparsebenchError
from sparsebench.records.schema import RunRecord
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.stages import plan_stage
from sparsebench.studies.study_runs import StudyRuns
from sparsebench.training.child_config import keeping_weights, resolve_child
from sparsebench.training.config import RunConfig

HEAD = """\
study: mine
workload: digits
seeds: 1
sparsities: [0.5, 0.9]
methods:
  dense: {learning_rate: [0.001, 0.01]}
  magnitude: {begin: [0.0, 0.1], end: 0.5}
  variational-dropout: {penalty: [0.1, 1.0], thresholds: [3.0, 1.0]}
"""
BEST = """\
stages:
  best:
    seeds: [4, 0, 7]
"""
TICKETS = """\
  tickets:
    take: magnitude
    methods:
      lottery-ticket: {}
      scratch-b: {initialization: [ordinary, sparse], schedule: [stretched, constant-final-rate]}
"""
ROUNDS = """\
  rounds:
    of: best
    take: dense
    methods: {iterative-magnitude: {}}
"""


def describe(config: RunConfig) -> tuple[Any, ...]:
    given = config.parameters
    return (
        config.method,
        config.target_sparsity,
        given.get("begin"),
        given.get("penalty"),
        config.recipe.learning_rate,
        config.seed,
    )


def results(records: Iterable[RunRecord]) -> Callable[[str], RunRecord | None]:
    return {found.run_id: found for found in records}.get


# (method, target, begin, penalty, learning rate): points as (sparsity, validation), one for each threshold.
MAGNITUDE = {
    (0.5, 0): [(0.5, 90.0)],
    (0.5, 150): [(0.5, 91.0)],
    (0.9, 0): [(0.9, 91.0)],
    (0.9, 150): [(0.8994, 95.0)],  # not sparse enough for 0.9, and the best at 0.5
}
VARIATIONAL = {0.1: [(0.3, 99.0), (0.6, 80.0)], 1.0: [(0.6, 70.0), (0.95, 60.0)]}


def pretended(config: RunConfig) -> RunRecord:
    if config.method == "dense":
        points = [(0.0, 50.0 + config.recipe.learning_rate)]
    elif config.method == "magnitude":
        points = MAGNITUDE[config.parameters["sparsity"], config.parameters["begin"]]
    else:
        points = VARIATIONAL[config.parameters["penalty"]]
    thresholds = config.parameters.get("thresholds", [None])
    return record(
        config,
        [{"sparsity": s, "validation": v, "threshold": t} for (s, v), t in zip(points, thresholds, strict=True)],
    )


def test_best_of_every_method_at_every_sparsity_is_trained_with_the_seeds_of_the_stage(tmp_path: Path) -> None:
    study = read(tmp_path, HEAD + BEST)
    grid = plan_runs(study)
    planned = plan_stage(study, study.stages[0], grid, results(pretended(config) for config in grid))
    wanted = [
        ("dense", None, None, None, 0.01),
        ("magnitude", 0.9, 150, None, 0.006),  # the best at 0.5
        ("magnitude", 0.9, 0, None, 0.006),  # the best at 0.9
        ("variational-dropout", None, 0, 0.1, 0.006),  # its second threshold is the best at 0.5
        ("variational-dropout", None, 0, 1.0, 0.006),  # at 0.9
    ]
    assert Counter(map(describe, planned)) == Counter((*config, seed) for config in wanted for seed in (4, 0, 7))
    # The same configurations, so that the run of the grid is one of the replicates.
    assert len({config.run_id for config in planned} & {config.run_id for config in grid}) == len(wanted)
    assert [config.seed for config in planned] == [4] * 5 + [0] * 5 + [7] * 5


def test_equal_points_are_told_apart_by_sparsity_and_then_by_the_configuration(tmp_path: Path) -> None:
    study = read(tmp_path, HEAD.replace("[0.0, 0.1]", "[0.0, 0.1, 0.2]") + BEST.replace("[4, 0, 7]", "1"))
    grid = [config for config in plan_runs(study) if config.method == "magnitude"]
    assert len(grid) == 6

    def chosen(sparsity: Mapping[str, float]) -> set[str]:
        found = [record(config, [{"sparsity": sparsity[config.run_id], "validation": 1.0}]) for config in grid]
        return {config.run_id for config in plan_stage(study, study.stages[0], grid, results(found))}

    assert chosen({config.run_id: 0.95 for config in grid}) == {min(grid, key=lambda config: config.configuration).run_id}
    sparser = max(grid, key=lambda config: config.configuration).run_id
    assert chosen({config.run_id: 0.95 + 0.01 * (config.run_id == sparser) for config in grid}) == {sparser}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_choice_is_that_of_a_plain_search(tmp_path: Path, data: st.DataObject) -> None:
    study = read(tmp_path, HEAD + BEST)
    stage = study.stages[0]
    grid = [config.model_copy(update={"seed": seed}) for config in plan_runs(study) for seed in (0, 1)]
    few = st.sampled_from([0.2, 0.5, 0.8995, 0.95])
    found: dict[str, tuple[RunConfig, RunRecord]] = {}
    for config in grid:
        if data.draw(st.integers(0, 4)):  # one in five failed
            thresholds = config.parameters.get("thresholds", [None])
            found[config.run_id] = (
                config,
                record(
                    config,
                    [
                        {"sparsity": data.draw(few), "validation": data.draw(st.integers(0, 3)), "threshold": t}
                        for t in thresholds
                    ],
                ),
            )
    wanted = set()
    for method in ("dense", "magnitude", "variational-dropout"):
        for sparsity in (0.0,) if method == "dense" else (0.5, 0.9):
            best: dict[bool, list[tuple[Any, ...]]] = {True: [], False: []}
            for configuration in {config.configuration for config in grid if config.method == method}:
                own = [one for config, one in found.values() if config.configuration == configuration]
                for index in range(2 if method == "variational-dropout" else 1):
                    points = [one.points[index] for one in own]
                    if not points:
                        continue
                    mean = sum(point.sparsity for point in points) / len(points)
                    quality = sum(point.metrics["validation"]["accuracy"] for point in points) / len(points)
                    if mean >= sparsity - 0.0005 - 1e-9:
                        threshold = points[0].threshold or 0.0
                        best[len(own) > 1].append((-quality, -mean, configuration, threshold))
            chosen = sorted(best[True]) or sorted(best[False])
            if chosen:
                wanted.add(chosen[0][2])
    planned = plan_stage(study, stage, grid, results(one for _, one in found.values()))
    assert {config.configuration for config in planned} == wanted
    assert len(planned) == 3 * len(wanted)


def test_order_in_which_runs_ended_changes_nothing(tmp_path: Path) -> None:
    study = read(tmp_path, HEAD + BEST)
    grid = plan_runs(study)
    found = results(pretended(config) for config in grid)
    one, other = (plan_stage(study, study.stages[0], order, found) for order in (grid, grid[::-1]))
    assert {config.run_id for config in one} == {config.run_id for config in other}


def test_each_method_goes_on_from_every_replicate_of_the_best(tmp_path: Path) -> None:
    study = read(tmp_path, HEAD + BEST + TICKETS)
    found = stages_of(study, tmp_path / "results")
    tickets = found["tickets"]
    chosen = {config.parent.configuration for config in tickets if config.parent}
    parents = {config.run_id: config for config in found["best"] if config.configuration in chosen}
    assert {config.method for config in parents.values()} == {"magnitude"}
    assert Counter(config.seed for config in parents.values()) == dict.fromkeys((4, 0, 7), len(chosen))
    assert {config.parent.run_id for config in tickets if config.parent} == parents.keys()
    assert Counter(config.method for config in tickets) == {"lottery-ticket": len(parents), "scratch-b": 4 * len(parents)}
    for config in tickets:
        assert config.parent is not None
        parent = parents[config.parent.run_id]
        assert config.seed == parent.seed
        assert config.recipe.steps == (3000 if config.method == "scratch-b" else 1500)
        if config.kept_schedule:
            assert (config.kept_schedule.variant, config.kept_schedule.steps) == ("constant-final-rate", 1500)
    assert sum(config.kept_schedule is not None for config in tickets) == 2 * len(parents)


def test_length_of_scratch_b_is_the_same_for_all_replicates(tmp_path: Path) -> None:
    """Networks of several seeds cost differently; trainings of several lengths would be no replicates."""
    study = read(tmp_path, HEAD.replace("[0.5, 0.9]", "[0.5]") + BEST + TICKETS)
    (first, *_) = (config for config in plan_runs(study) if config.method == "magnitude")
    costs = {0: 700, 4: 800, 7: 900}
    replicates = [first.model_copy(update={"seed": seed}) for seed in costs]
    records = [record(config, [{"sparsity": 0.5, "validation": 1.0, "cost": costs[config.seed]}]) for config in replicates]
    planned = plan_stage(study, study.stages[1], replicates, results(records))
    long = [config for config in planned if config.method == "scratch-b"]
    assert {config.recipe.steps for config in long} == {int(1500 * 3000 / 2400 + 0.5)}
    assert len({config.configuration for config in long}) == 4
    assert len(long) == 12


def test_network_that_is_gone_on_from_is_the_one_that_the_run_left(tmp_path: Path) -> None:
    """Other thresholds were evaluated and not kept: the best of them is not what a child would get."""
    text = HEAD + BEST + "  tickets: {take: variational-dropout, methods: {lottery-ticket: {}}}\n"
    study = read(tmp_path, text)
    grid = [config for config in plan_runs(study) if config.method == "variational-dropout"]
    planned = plan_stage(study, study.stages[1], grid, results(pretended(config) for config in grid))
    (strong,) = (config for config in grid if config.parameters["penalty"] == 1.0)
    # At 0.5 a second threshold is the best of all points, and the first one of the other penalty the best network that is there.
    assert [config.parent.run_id for config in planned if config.parent] == [strong.run_id]


def test_rounds_go_on_from_each_other_through_the_sparsities(tmp_path: Path) -> None:
    study = read(tmp_path, HEAD + BEST + ROUNDS)
    found = stages_of(study, tmp_path / "results")
    dense = {config.run_id: config for config in found["best"] if config.method == "dense"}
    assert len(dense) == 3
    rounds = {config.run_id: config for config in found["rounds"]}
    assert len(rounds) == 6
    for config in rounds.values():
        assert config.parent is not None
        if config.parameters["sparsity"] == 0.5:
            assert config.parent.run_id in dense
        else:
            assert config.parameters["sparsity"] == 0.9
            assert rounds[config.parent.run_id].parameters["sparsity"] == 0.5
            assert rounds[config.parent.run_id].seed == config.seed


def test_weights_are_kept_by_the_stage_that_says_so_and_gone_back_to(tmp_path: Path) -> None:
    text = HEAD + "stages:\n  early: {take: dense, seeds: 2, keep_weights_at: 0.02}\n"
    text += "  rounds: {methods: {iterative-magnitude: {rewind_to: 30 steps}}}\n"
    found = stages_of(read(tmp_path, text), tmp_path / "results")
    grid = {config.run_id: config for config in found["grid"]}
    assert [config.keep_weights_at for config in found["early"]] == [30, 30]
    assert all(keeping_weights(grid[config.run_id], 0.02) for config in found["early"] if config.run_id in grid)
    assert {config.parameters["rewind_to"] for config in found["rounds"]} == {30}
    assert all(config.keep_weights_at is None for config in found["grid"] + found["rounds"])


# When a stage's turn comes.


def test_stage_waits_for_the_last_run_of_the_one_before(tmp_path: Path) -> None:
    study = read(tmp_path, HEAD + BEST + TICKETS)
    runs = StudyRuns(study, tmp_path, plan_runs(study))
    *most, last = runs.planned
    for config in most:
        finish(tmp_path, config)
    assert not runs.plan_further()
    assert runs.unplanned == ("best", "tickets")
    finish(tmp_path, last)
    assert runs.plan_further()
    assert runs.unplanned == ("tickets",)
    assert not runs.plan_further()


def test_failed_run_does_not_hold_up_a_stage_and_is_not_chosen(tmp_path: Path) -> None:
    study = read(tmp_path, HEAD + BEST)
    grid = plan_runs(study)
    best = {config.run_id for config in grid if describe(config) == ("dense", None, None, None, 0.01, 0)}
    for config in grid:
        if config.run_id in best:
            fail(tmp_path, config)
        else:
            finish(tmp_path, config, [{"sparsity": 0.95, "validation": 1.0}])
    runs = StudyRuns(study, tmp_path, grid)
    assert runs.plan_further()
    assert {config.recipe.learning_rate for config in runs.of_stage("best") if config.method == "dense"} == {0.001}


def test_what_goes_on_from_a_failed_run_never_runs_and_holds_nothing_up(tmp_path: Path) -> None:
    text = HEAD + BEST.replace("[4, 0, 7]", "2") + ROUNDS + "  again: {of: rounds, seeds: 3}\n"
    study = read(tmp_path, text)
    runs = StudyRuns(study, tmp_path, plan_runs(study))
    for config in runs.planned:
        finish(tmp_path, config)
    assert runs.plan_further()
    for config in runs.of_stage("best"):
        finish(tmp_path, config)
    assert runs.plan_further()
    rounds = runs.of_stage("rounds")
    assert len(rounds) == 4
    first, other = sorted((config for config in rounds if config.target_sparsity == 0.5), key=lambda config: config.seed)
    ready = runs.ready()
    assert {run_id for run_id in ready if ready[run_id].method == "iterative-magnitude"} == {first.run_id, other.run_id}
    fail(tmp_path, first)
    finish(tmp_path, other)
    assert not runs.plan_further()
    (after,) = (config for config in rounds if config.parent and config.parent.run_id == other.run_id)
    assert {config.run_id for config in rounds} & runs.ready().keys() == {first.run_id, other.run_id, after.run_id}
    finish(tmp_path, after)
    assert runs.plan_further()
    assert runs.unplanned == ()


def test_study_goes_on_from_what_lies_in_the_folder_and_from_nothing_else(tmp_path: Path) -> None:
    """Planned anew after every single run, as by a driver that is killed each time, a study comes to the same runs."""
    study = read(tmp_path, HEAD + BEST + TICKETS + ROUNDS)
    undisturbed = stages_of(study, tmp_path / "one")
    seen: set[str] = set()
    while True:
        runs = StudyRuns(study, tmp_path / "other", plan_runs(study)[::-1])
        while runs.plan_further():
            pass
        left = [config for run_id, config in runs.ready().items() if run_id not in seen]
        if not left:
            break
        for config in left[-3:]:
            finish(tmp_path / "other", config)
            seen.add(config.run_id)
    assert runs.unplanned == ()
    assert seen == {config.run_id for configs in undisturbed.values() for config in configs}


# What is wrong with stages is known before anything runs.

STAGES = HEAD + BEST + TICKETS + ROUNDS
MISTAKES = [
    # what is written instead of what, the line that is named, what the message says
    ("    seeds: [4, 0, 7]", "    of: tickets", 11, r"of='tickets': expected an earlier stage, one of grid$"),
    ("    seeds: [4, 0, 7]", "    of: [grid]", 11, r"of=\['grid'\]: expected a text"),
    ("    seeds: [4, 0, 7]", "    seeds: 2\n    take: 5", 12, r"take=5: expected a name, or a list of different names"),
    (
        "    seeds: [4, 0, 7]",
        "    seeds: 2\n    take: magnitud",
        12,
        r"stage 'best': take='magnitud': .* \(did you mean 'magnitude'",
    ),
    (
        "    seeds: [4, 0, 7]",
        "    seeds: 2\n    take: l0",
        12,
        r"stage 'best': take='l0': the stage 'grid' has no such method; it has",
    ),
    (
        "    seeds: [4, 0, 7]",
        "    seeds: 2\n    keep_weights_at: 0",
        12,
        r"stage 'best': keep_weights_at=0 is step 0: expected one",
    ),
    (
        "    seeds: [4, 0, 7]",
        "    seeds: 2\n    keep_weights_at: soon",
        12,
        r"stage 'best': keep_weights_at='soon': expected a fr",
    ),
    ("  best:\n    seeds: [4, 0, 7]", "  best: 5", 10, r"best: expected a mapping"),
    (
        "    take: magnitude\n",
        "",
        12,
        r"stage 'tickets': take: expected the method whose networks are gone on from, one of dense,",
    ),
    ("    take: magnitude\n", "    take: [magnitude, dense]\n", 13, r"stage 'tickets': take: expected the method whose"),
    (
        "    take: magnitude\n",
        "    take: magnitude\n    seeds: 2\n",
        14,
        r"seeds: methods of a stage go on from the runs that are there",
    ),
    ("      lottery-ticket: {}", "      lottery: {}", 15, r"unknown method 'lottery' \(did you mean"),
    (
        "      lottery-ticket: {}",
        "      rigl: {}",
        15,
        r"rigl does not go on from a finished run; expected one of lottery-ticket, ",
    ),
    ("      lottery-ticket: {}", "      lottery-ticket: 5", 15, r"lottery-ticket: expected a mapping"),
    ("      lottery-ticket: {}", "      lottery-ticket: []", 15, r"lottery-ticket: expected a mapping, or a list of mappings"),
    (
        "      lottery-ticket: {}",
        "      lottery-ticket: {rewind: 0.1}",
        15,
        r"unknown field 'rewind' .* \(did you mean 'rewind_to'",
    ),
    (
        "      lottery-ticket: {}",
        "      lottery-ticket: {steps: 100}",
        15,
        r"unknown field 'steps' of 'lottery-ticket'; known: rewi",
    ),
    (
        "      lottery-ticket: {}",
        "      lottery-ticket: {rewind_to: 0.02}",
        15,
        r"rewind_to=0\.02 is step 30, of which no weights are kept: give keep_weights_at=0\.02 to the stage whose networks are",
    ),
    ("[ordinary, sparse]", "[]", 16, r"initialization: expected at least one value"),
    (
        "{iterative-magnitude: {}}",
        "{iterative-magnitude: {sparsity: 0.5}}",
        20,
        r"sparsity: iterative-magnitude goes through the st",
    ),
    (
        "{iterative-magnitude: {}}",
        "{iterative-magnitude: {allocation: all}}",
        20,
        r"iterative-magnitude: allocation='all': input sh",
    ),
    (
        "    of: best\n    take: dense",
        "    of: tickets\n    take: scratch-b",
        20,
        r"goes back to earlier weights, which a run of 'scr",
    ),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES)
def test_mistake_in_a_stage_is_one_line_with_file_line_and_field(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    assert STAGES.count(old) == 1
    with pytest.raises(SparsebenchError, match=message) as caught:
        plan_runs(read(tmp_path, STAGES.replace(old, new)))
    assert str(caught.value).startswith(f"{tmp_path}/mine.yaml, line {line}: "), caught.value
    assert "\n" not in str(caught.value)


def test_stage_of_a_study_without_sparsities_can_choose_dense_runs_only(tmp_path: Path) -> None:
    text = HEAD.replace("sparsities: [0.5, 0.9]\n", "").replace("magnitude: {", "magnitude: {sparsity: 0.5, ")
    with pytest.raises(SparsebenchError, match=r"line 10: stage 'best': of: .* add the field 'sparsities'$"):
        plan_runs(read(tmp_path, text + BEST.replace("seeds", "of: grid\n    seeds")))
    plan_runs(read(tmp_path, text + BEST + "    take: dense\n"))
    with pytest.raises(SparsebenchError, match=r"iterative-magnitude needs sparsities; add the field 'sparsities'$"):
        plan_runs(read(tmp_path, text + BEST + "    take: dense\n" + ROUNDS))


def test_configurations_of_which_one_has_another_schedule_are_all_looked_at(tmp_path: Path) -> None:
    """Which of them will be the best is not known yet."""
    text = HEAD.replace("end: 0.5}", "end: 0.5, learning_rate_schedule: [constant, trapezoid]}")
    with pytest.raises(
        SparsebenchError, match=r"line 16: scratch-b: schedule='constant-final-rate': the schedule 'constant' has"
    ):
        plan_runs(read(tmp_path, text + BEST + TICKETS))


def test_children_of_a_plan_are_those_of_the_run_layer(tmp_path: Path) -> None:
    study = read(tmp_path, HEAD + "stages:\n  tickets: {take: magnitude, methods: {scratch-e: {initialization: sparse}}}\n")
    grid = plan_runs(study)
    planned = plan_stage(study, study.stages[0], grid, results(pretended(config) for config in grid))
    parents = {(0.9, 150), (0.9, 0)}
    wanted = [
        resolve_child(config, "scratch-e", {"initialization": "sparse"})
        for config in grid
        if config.method == "magnitude" and (config.parameters["sparsity"], config.parameters["begin"]) in parents
    ]
    assert {config.run_id for config in planned} == {config.run_id for config in wanted}
