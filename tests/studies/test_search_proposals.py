"""What a search proposes: the same number for every method, a function of results alone, and what plain Optuna would propose."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pretended_runs import fail, finish, lot, read, record

from sparsebench.records.run_folder import RunFolder, Status
from sparsebench.records.rungs import RungRecord
from sparsebench.records.schema import RunRecord, canonical_json, text_hash
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.search.method_search import MethodSearch
from sparsebench.studies.spaces import Space
from sparsebench.studies.study_file import Study
from sparsebench.studies.study_runs import StudyRuns
from sparsebench.training.config import RunConfig

optuna = pytest.importorskip("optuna")

STUDY = """
study: searched
workload: digits
seeds: 2
sparsities: [0.5, 0.8, 0.9]
budget: 14
search: {search}
methods:
  dense: {{}}
  magnitude: {{begin: {{from: 0.0, to: 0.4}}, ramp: [0.1, 0.2, 0.3, 0.4]}}
  l0: {{penalty: {{from: 0.1, to: 30, scale: log}}, shape: [linear, cubic]}}
  variational-dropout:
    - {{penalty: [0.1, 1.0], ramp: [0.2, 0.4], thresholds: [3.0, 1.0]}}
    - {{penalty: 0.3, shape: [linear, cubic]}}
"""
SEARCHES = ["tpe", "random", "nsga-2", "{sampler: tpe, generation: 5, seed: 3}"]


def study_of(folder: Path, search: str) -> Study:
    return read(folder, STUDY.format(search=search))


def is_left(runs: StudyRuns, config: RunConfig) -> bool:
    folder = runs.folder(config.run_id)
    paused = runs.pauses.get(config.run_id) in folder.read_rungs()
    return folder.status() in ("new", "started") and not paused and config.run_id not in runs.stops


def go_on(runs: StudyRuns, directory: Path, config: RunConfig) -> None:
    """Bring a run to its pause or its end; some fail, whoever runs them."""
    pause_at = runs.pauses.get(config.run_id)
    if lot(config.run_id, pause_at, "fails") < 0.03:
        fail(directory, config)
    elif pause_at is None:
        finish(directory, config)
    else:
        folder = RunFolder.of(directory, config.run_id)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_rung(RungRecord(step=pause_at, validation=lot(config.run_id, pause_at), sparsity=0.0))


def run_all(study: Study, directory: Path, order: random.Random | None = None, restart: bool = False) -> list[str]:
    """Finish run after run until nothing is left; ids in the order in which they were proposed."""
    runs = StudyRuns(study, directory, plan_runs(study))
    while True:
        todo = [config for config in runs.ready().values() if is_left(runs, config)]
        if order is not None:
            order.shuffle(todo)
            todo = todo[: order.randint(1, len(todo))] if todo else todo
        for config in todo:
            go_on(runs, directory, config)
        if restart:
            runs = replayed(study, directory)
            if not todo:
                return list(runs.ready())
        elif not todo and not runs.plan_further():
            return list(runs.ready())


def replayed(study: Study, directory: Path) -> StudyRuns:
    """What a new driver knows of a study."""
    runs = StudyRuns(study, directory, plan_runs(study))
    while runs.plan_further():
        pass
    return runs


@pytest.mark.parametrize("search", SEARCHES)
def test_every_method_gets_the_budget_or_all_that_it_has(tmp_path: Path, search: str) -> None:
    study = study_of(tmp_path, search)
    runs = StudyRuns(study, tmp_path / "results", plan_runs(study))
    expected = {"dense": 2 * 1, "magnitude": 2 * 14, "l0": 2 * 14, "variational-dropout": 2 * 6}
    known = Counter(config.method for config in runs.planned)
    assert {method: known[method] + runs.unproposed.get(method, 0) for method in known} == expected
    run_all(study, tmp_path / "results")
    runs = replayed(study, tmp_path / "results")
    assert Counter(config.method for config in runs.planned) == expected
    assert not runs.unproposed
    assert len({config.run_id for config in runs.planned}) == len(runs.planned)
    assert all(config.configuration for config in runs.planned)
    if "nsga" not in search:  # and at each sparsity as many, or one more
        at = Counter(config.target_sparsity for config in runs.planned if config.method == "magnitude")
        assert at == {0.5: 2 * 5, 0.8: 2 * 5, 0.9: 2 * 4}


@pytest.mark.parametrize("search", SEARCHES)
def test_values_are_those_of_the_grid(tmp_path: Path, search: str) -> None:
    study = study_of(tmp_path, search)
    run_all(study, tmp_path / "results")
    runs = replayed(study, tmp_path / "results")
    for config in runs.planned:
        given = config.parameters
        if config.method == "l0":
            assert 0.1 <= given["penalty"] <= 30
            assert len(f"{given['penalty']:.10g}".replace(".", "").lstrip("0")) <= 4
            assert given["shape"] in ("linear", "cubic")
        if config.method == "magnitude":
            assert 0 <= given["begin"] <= 0.4 * config.recipe.steps
            assert round((given["end"] - given["begin"]) / config.recipe.steps, 2) in (0.1, 0.2, 0.3, 0.4)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), search=st.sampled_from([*SEARCHES, "{sampler: tpe, generation: 14, stop: hyperband}"]))
def test_proposals_depend_neither_on_the_order_of_results_nor_on_restarts(
    tmp_path_factory: pytest.TempPathFactory, seed: int, search: str
) -> None:
    folder = tmp_path_factory.mktemp("study")
    study = study_of(folder, search)
    calm = run_all(study, folder / "calm")
    assert run_all(study, folder / "shuffled", random.Random(seed)) == calm
    assert run_all(study, folder / "restarted", random.Random(seed), restart=True) == calm
    stops = [replayed(study, folder / name).stops for name in ("calm", "shuffled", "restarted")]
    assert stops[0] == stops[1] == stops[2]
    assert bool(stops[0]) == ("hyperband" in search)


@pytest.mark.parametrize("search", [*SEARCHES, "{sampler: tpe, stop: hyperband}"])
def test_larger_budget_keeps_what_a_smaller_one_proposed(tmp_path: Path, search: str) -> None:
    small, large = (read(tmp_path, STUDY.format(search=search).replace("14", budget)) for budget in ("14", "30"))
    before = run_all(small, tmp_path / "results")
    stops = replayed(small, tmp_path / "results").stops
    after = run_all(large, tmp_path / "results")
    assert set(before) < set(after)
    later = replayed(large, tmp_path / "results").stops
    assert {run_id: stop for run_id, stop in later.items() if run_id in before} == stops


def test_stage_waits_until_the_search_is_over(tmp_path: Path) -> None:
    study = read(tmp_path, STUDY.format(search="tpe") + "stages:\n  best: {seeds: 4}\n")
    directory = tmp_path / "results"
    runs = StudyRuns(study, directory, plan_runs(study))
    while runs.unproposed:
        assert runs.unplanned == ("best",)
        for config in runs.ready().values():
            finish(directory, config)
        assert runs.plan_further()
    for config in runs.ready().values():
        finish(directory, config)
    assert runs.plan_further()
    assert runs.unplanned == ()
    best = runs.of_stage("best")
    assert {config.seed for config in best} == {0, 1, 2, 3}
    assert {config.method for config in best} == {"dense", "magnitude", "l0", "variational-dropout"}


# Against Optuna, asked and told by hand.


@dataclass
class Pretended:
    """Runs of a method whose results are a function of their configuration, finished when they are asked about."""

    value: Any
    rung_value: Any = None
    configs: dict[str, RunConfig] = field(default_factory=dict)

    def status(self, run_id: str) -> Status:
        return "finished"

    def record(self, run_id: str) -> RunRecord:
        config = self.configs[run_id]
        return record(config, [{"sparsity": 0.95, "validation": self.value(config)}])

    def rungs(self, run_id: str) -> Mapping[int, RungRecord]:
        config = self.configs[run_id]
        steps = config.recipe.steps
        if self.rung_value is None:
            return {}
        return {
            steps * part // 9: RungRecord(step=steps * part // 9, validation=self.rung_value(config, part), sparsity=0.0)
            for part in (1, 3)
        }


L0 = """
study: searched
workload: digits
seeds: 1
sparsities: [0.9]
budget: {budget}
search: {{sampler: {sampler}, generation: {generation}{more}}}
methods:
  l0:
    penalty: {{from: 0.1, to: 30, scale: log}}
    begin: {{from: 0.0, to: 0.35}}
    shape: [linear, cubic]
    initial_log_alpha: [1.0, 2.0, 3.0]
"""


def height(config: RunConfig) -> float:
    """A hill whose top is at a penalty of 3, a begin of 0.2 and the cubic ramp."""
    given = config.parameters
    begin = given["begin"] / config.recipe.steps
    return (
        90.0 - abs(given["penalty"] - 3.0) - 40.0 * (begin - 0.2) ** 2 + (given["shape"] == "cubic") + given["initial_log_alpha"]
    )


def searched(folder: Path, results: Pretended, **given: Any) -> MethodSearch:
    study = read(folder, L0.format(**{"more": "", **given}))
    space = Space(study, study.methods[0])
    search = MethodSearch(study, "l0", [space], results)
    while True:
        moved = search.advance()
        results.configs |= {config.run_id: config for proposal in search.proposals for config in proposal.runs}
        if not moved:
            return search


def suggested(trial: Any) -> dict[str, Any]:
    """What the fields of the file mean to Optuna, in the order of the file."""
    penalty = float(f"{trial.suggest_float('penalty', 0.1, 30.0, log=True):.4g}")
    begin = float(f"{trial.suggest_float('begin', 0.0, 0.35):.4g}")
    shape = ["linear", "cubic"][trial.suggest_categorical("shape", [0, 1])]
    alpha = [1.0, 2.0, 3.0][trial.suggest_int("initial_log_alpha", 0, 2)]
    return {"penalty": penalty, "begin": begin, "shape": shape, "initial_log_alpha": alpha}


def seed_of(aim: float | None, seed: int = 0) -> int:
    return int(text_hash(canonical_json([seed, "l0", aim])), 16) % 2**32


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga-2"])
def test_proposals_are_those_of_plain_optuna(tmp_path: Path, sampler: str) -> None:
    generation = 6
    search = searched(tmp_path, Pretended(height), budget=30, sampler=sampler, generation=generation)
    two = sampler == "nsga-2"
    own = seed_of(None if two else 0.9)
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=own),
        "random": lambda: optuna.samplers.RandomSampler(seed=own),
        "nsga-2": lambda: optuna.samplers.NSGAIISampler(population_size=generation, seed=own),
    }
    plain = optuna.create_study(directions=["maximize"] * (2 if two else 1), sampler=samplers[sampler]())
    space = Space(
        study := read(tmp_path, L0.format(budget=30, sampler=sampler, generation=generation, more="")), study.methods[0]
    )
    expected: list[RunConfig] = []
    while len(expected) < 30:
        asked = []
        while len(asked) < generation:
            trial = plain.ask()
            config = space.config(suggested(trial))
            if config in expected:
                plain.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            expected.append(config)
            asked.append((trial, config))
        for trial, config in asked:
            plain.tell(trial, [height(config), 0.95] if two else height(config))
    assert [proposal.runs[0] for proposal in search.proposals] == expected


MAGNITUDE = """
study: searched
workload: digits
seeds: 1
sparsities: [0.5, 0.9]
budget: 60
search: {sampler: tpe, generation: 6}
methods:
  magnitude: {begin: {from: 0.0, to: 0.4}, end: 0.6}
"""


def test_samplers_of_two_sparsities_hear_of_each_other(tmp_path: Path) -> None:
    """As plain Optuna does with trials added by hand: each so far below the best there as it is below its own."""

    def value(config: RunConfig) -> float:
        return 100.0 * (1.2 - (config.target_sparsity or 0.0)) - abs(config.parameters["begin"] / config.recipe.steps - 0.1)

    study = read(tmp_path, MAGNITUDE)
    space, results = Space(study, study.methods[0]), Pretended(value)
    search = MethodSearch(study, "magnitude", [space], results)
    while search.advance():
        results.configs |= {config.run_id: config for proposal in search.proposals for config in proposal.runs}
    own = {s: int(text_hash(canonical_json([0, "magnitude", s])), 16) % 2**32 for s in study.sparsities}
    plain = {s: optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=own[s])) for s in own}
    expected: list[RunConfig] = []
    best = dict.fromkeys(own, float("-inf"))
    while len(expected) < 60:
        asked = []
        while len(asked) < 6:
            sparsity = study.sparsities[len(expected) % 2]
            trial = plain[sparsity].ask()
            begin = float(f"{trial.suggest_float('begin', 0.0, 0.4):.4g}")
            config = space.config({"sparsity": sparsity, "begin": begin, "end": 0.6})
            if config in expected:
                plain[sparsity].tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            expected.append(config)
            asked.append((sparsity, trial, config))
        for sparsity, trial, config in asked:
            plain[sparsity].tell(trial, value(config))
            best[sparsity] = max(best[sparsity], value(config))
        for sparsity, trial, config in asked:
            (other,) = (s for s in own if s != sparsity)
            shifted = best[other] + value(config) - best[sparsity]
            plain[other].add_trial(
                optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=shifted)
            )
    assert [proposal.runs[0] for proposal in search.proposals] == expected


def test_tpe_climbs_the_hill_better_than_random_search(tmp_path: Path) -> None:
    """Medians over seeds of the sampler: the difference is many times the spread."""
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    for seed in range(7):
        for sampler, found in best.items():
            search = searched(tmp_path, Pretended(height), budget=60, sampler=sampler, generation=4, more=f", seed: {seed}")
            found.append(max(height(proposal.runs[0]) for proposal in search.proposals))
    assert sorted(best["tpe"])[3] > sorted(best["random"])[3] + 0.05


def test_sampler_its_seed_and_the_results_decide(tmp_path: Path) -> None:
    found = []
    for results in (height, lambda config: config.parameters["penalty"]):
        for sampler, more in (("tpe", ""), ("tpe", ", seed: 1"), ("random", ""), ("nsga-2", "")):
            search = searched(tmp_path, Pretended(results), budget=30, sampler=sampler, generation=5, more=more)
            found.append(tuple(proposal.runs[0].run_id for proposal in search.proposals))
    assert len(set(found)) == 7
    assert found[2] == found[6]  # random search alone does not look at results


def rung_height(config: RunConfig, part: int) -> float:
    return height(config) * (0.5 + part / 18.0) + lot(config.run_id, part)


def test_hyperband_stops_what_plain_optuna_would_prune(tmp_path: Path) -> None:
    search = searched(
        tmp_path, Pretended(height, rung_height), budget=48, sampler="random", generation=8, more=", stop: hyperband"
    )
    plain = optuna.create_study(
        direction="maximize",
        study_name="l0 0.9",
        sampler=optuna.samplers.RandomSampler(seed=seed_of(0.9)),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3),
    )
    study = read(tmp_path, L0.format(budget=48, sampler="random", generation=8, more=", stop: hyperband"))
    space = Space(study, study.methods[0])
    expected: list[tuple[str, int | None]] = []
    for _ in range(6):
        trials = [plain.ask() for _ in range(8)]
        configs = [space.config(suggested(trial)) for trial in trials]
        stopped: dict[int, int] = {}
        for part in (1, 3):
            for trial, config in zip(trials, configs, strict=True):
                if trial.number not in stopped:
                    trial.report(rung_height(config, part), part)
                    if trial.should_prune():
                        stopped[trial.number] = config.recipe.steps * part // 9
        for trial, config in zip(trials, configs, strict=True):
            if trial.number in stopped:
                plain.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                plain.tell(trial, height(config))
            expected.append((config.run_id, stopped.get(trial.number)))
    assert [(proposal.runs[0].run_id, proposal.pause_at) for proposal in search.proposals] == expected
    assert 8 < sum(step is not None for _, step in expected) < 40


def test_optuna_says_nothing_and_its_own_settings_stay(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sampler in ("tpe", "random", "nsga-2"):
            searched(tmp_path, Pretended(height), budget=20, sampler=sampler, generation=5)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


def test_folder_of_a_run_is_what_tells_of_it(tmp_path: Path) -> None:
    study = study_of(tmp_path, "{sampler: tpe, stop: hyperband}")
    directory = tmp_path / "results"
    runs = StudyRuns(study, directory, plan_runs(study))
    for config in runs.ready().values():
        folder = RunFolder.of(directory, config.run_id)
        folder.path.mkdir(parents=True)
        step = runs.pauses[config.run_id]
        assert step == config.recipe.steps // 9
        folder.write_rung(RungRecord(step=step, validation=100 * lot(config.run_id), sparsity=0.0))
    assert runs.plan_further()
    going = [run_id for run_id in runs.ready() if run_id not in runs.stops]
    assert {runs.pauses[run_id] for run_id in going} == {study_steps // 3 for study_steps in (1500,)}
    for run_id, stop in runs.stops.items():
        assert (stop.step, stop.steps) == (166, 1500)
        assert stop.validation == pytest.approx(100 * lot(run_id))
