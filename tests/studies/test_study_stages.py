"""Stages: which runs follow from which results, and what they begin with."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_runs import record

from sparsebench.errors import SparsebenchError
from sparsebench.records.query import query
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import RunRecord
from sparsebench.sparsifiers.rewinding import reinitialize
from sparsebench.storage import load_compressed
from sparsebench.studies.executors.executor import run_one
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.run_study import run_study
from sparsebench.studies.stages import plan_stage
from sparsebench.studies.study_file import Study, read_study
from sparsebench.training.config import RunConfig
from sparsebench.workloads.images.digits import DIGITS
from sparsebench.workloads.registry import WORKLOADS

STAGED = """\
study: staged
workload: digits
seeds: 1
sparsities: [0.5, 0.8]
settings: {steps: 40}
methods:
  dense: {learning_rate: [0.001, 0.003]}
  magnitude: {begin: [0.0, 0.2], frequency: 5 steps}
  variational-dropout: {penalty: 1.0, thresholds: [3.0, -6.0]}
stages:
  best: {seeds: [0, 4], keep_weights_at: 10 steps}
  masks:
    take: magnitude
    methods:
      lottery-ticket: {rewind_to: [0, 10 steps]}
      scratch-e: {initialization: [ordinary, sparse]}
      scratch-b: {schedule: [stretched, continued-decay]}
  iterative:
    of: best
    take: dense
    methods: {iterative-magnitude: {rewind_to: 10 steps}}
"""


def read(folder: Path, text: str = STAGED) -> Study:
    file = folder / "staged.yaml"
    file.write_text(text)
    return read_study(str(file))


def record_of(config: RunConfig, points: Mapping[float | None, tuple[float, float]]) -> RunRecord:
    """A made-up result: sparsity and validation by threshold."""
    return record(
        config,
        [{"threshold": threshold, "sparsity": sparsity, "validation": value} for threshold, (sparsity, value) in points.items()],
    )


SPARSITY = st.sampled_from([0.3, 0.4996, 0.5, 0.6, 0.8, 0.9])
VALUE = st.sampled_from([10.0, 20.0, 30.0])


@given(st.data())
@settings(max_examples=60)
def test_best_stage_is_the_best_configuration_at_each_sparsity_by_validation(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Against a plain reading of the rule, over all finished runs."""
    study = read(tmp_path_factory.mktemp("study"))
    grid = plan_runs(study)
    results: dict[str, RunRecord] = {}
    for config in grid:
        thresholds = config.parameters.get("thresholds", [None])
        if data.draw(st.integers(0, 4)):
            points = {
                threshold: (0.0 if config.method == "dense" else data.draw(SPARSITY), data.draw(VALUE))
                for threshold in thresholds
            }
            results[config.run_id] = record_of(config, points)
    expected = set()
    for method, sparsity in itertools.product(("dense", "magnitude", "variational-dropout"), (0.5, 0.8)):
        enough = [
            (-point.metrics["validation"]["accuracy"], -point.sparsity, config.configuration, config)
            for config in grid
            if config.method == method and config.run_id in results
            for point in results[config.run_id].points
            if point.sparsity >= (0.0 if method == "dense" else sparsity - 0.0005)
        ]
        if enough:
            config = min(enough, key=lambda each: each[:3])[3]
            expected |= {(config.configuration, 0), (config.configuration, 4)}
    planned = plan_stage(study, study.stages[0], grid, results.get)
    assert all(config.keep_weights_at == 10 for config in planned)
    plain = [config.model_copy(update={"keep_weights_at": None}) for config in planned]
    assert {(config.configuration, config.seed) for config in plain} == expected
    assert len(plain) == len(expected)
    assert planned == plan_stage(study, study.stages[0], grid, results.get)


def test_choice_among_replicates_is_by_their_mean(tmp_path: Path) -> None:
    study = read(tmp_path)
    grid = plan_runs(study)
    several = [
        config.model_copy(update={"seed": seed, "keep_weights_at": 10})
        for config in grid
        for seed in (0, 4)
        if config.target_sparsity == 0.8
    ]
    luck = {several[0].run_id: 50.0, several[1].run_id: 10.0, several[2].run_id: 31.0, several[3].run_id: 31.0}
    results = {config.run_id: record_of(config, {None: (0.8, luck[config.run_id])}) for config in several}
    children = plan_stage(study, study.stages[1], several, results.get)
    parents = {config.parent.run_id for config in children if config.parent}
    assert parents == {several[2].run_id, several[3].run_id}


def test_scratch_b_trains_for_the_arithmetic_of_a_dense_training_at_most_twice_as_long(tmp_path: Path) -> None:
    study = read(tmp_path)
    for sparsity, steps in ((0.5, 80), (0.2, 50), (0.9, 80), (0.0, 40)):
        run = next(config for config in plan_runs(study) if config.target_sparsity == 0.5)
        run = run.model_copy(update={"keep_weights_at": 10})
        study_at_0 = read(tmp_path, STAGED.replace("[0.5, 0.8]", "[0.0]"))
        children = plan_stage(study_at_0, study.stages[1], [run], {run.run_id: record_of(run, {None: (sparsity, 1.0)})}.get)
        lengths = {config.method: config.recipe.steps for config in children}
        assert lengths == {"scratch-e": 40, "lottery-ticket": 40, "scratch-b": steps}


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    """Runs in processes of their own have tests of their own."""

    def run(self: LocalProcesses, configs: Any, directory: Path, done: Any, pauses: object) -> None:
        for config in configs:
            done(run_one(config.model_dump(mode="json"), str(directory), self.checkpoint_seconds, self.claims))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalProcesses, "run", run)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """The study, done in one go."""
    folder = tmp_path_factory.mktemp("staged")
    study = read(folder)
    summary = run_study(study, folder / "results", LocalProcesses(workers=1))
    assert summary.failed == {}
    assert summary.unplanned == ()
    return study, folder / "results"


def runs_of(directory: Path, method: str) -> list[tuple[RunConfig, RunFolder]]:
    found = []
    for path in sorted((directory / "runs").iterdir()):
        if path.is_dir():
            config = RunConfig.model_validate(RunFolder(path).read_result().config)
            if config.method == method:
                found.append((config, RunFolder(path)))
    return found


def parent_of(config: RunConfig, directory: Path) -> RunFolder:
    assert config.parent is not None
    return RunFolder(directory / "runs" / config.parent.run_id)


def prunable(weights: Mapping[str, torch.Tensor]) -> list[str]:
    return [name for name, value in weights.items() if value.dim() > 1]


@pytest.mark.parametrize("method", ["lottery-ticket", "scratch-e", "scratch-b"])
def test_child_has_the_masks_of_its_parent(finished: tuple[Study, Path], method: str) -> None:
    _, directory = finished
    runs = runs_of(directory, method)
    assert {config.seed for config, _ in runs} == {0, 4}
    for config, folder in runs:
        parent = parent_of(config, directory)
        theirs, own = load_compressed(parent.model_path), load_compressed(folder.model_path)
        for name in prunable(theirs):
            assert torch.equal(theirs[name] != 0, own[name] != 0)
        assert parent.read_result().config["keep_weights_at"] == 10
        assert config.recipe.steps == (80 if method == "scratch-b" else 40)
        assert folder.read_result().points[0].sparsity == parent.read_result().points[0].sparsity


def first_weights(config: RunConfig, directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """What the network of a run holds before its first step, read where the training begins."""
    from sparsebench.training import run

    class BegunError(Exception):
        pass

    seen: dict[str, torch.Tensor] = {}

    def begin(config: Any, workload: Any, state: Any, *rest: Any) -> None:
        seen.update({name: value.clone() for name, value in state.model.state_dict().items()})
        raise BegunError

    monkeypatch.setattr(run, "run_steps", begin)
    folder = RunFolder(directory / "runs" / config.run_id)
    training = run.prepare_training(config, folder, run.devices(), WORKLOADS.get(config.workload))
    with pytest.raises(BegunError):
        run._train(config, folder, run.devices(), training, 60.0, None)
    return seen


def drawn(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(DIGITS.build_model().state_dict())


def test_children_begin_where_their_method_says(
    finished: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, directory = finished
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    seen = {}
    for method in ("lottery-ticket", "scratch-e", "scratch-b"):
        for config, _ in runs_of(directory, method):
            weights = load_compressed(parent_of(config, copy).model_path)
            (copy / "runs" / config.run_id / "result.json").unlink()
            begun = first_weights(config, copy, monkeypatch)
            masks = {name: weights[name] != 0 for name in prunable(weights)}
            back_to = config.parameters.get("rewind_to")
            expected = load_compressed(parent_of(config, copy).kept_weights_path) if back_to == 10 else drawn(config.seed)
            for name, mask in masks.items():
                assert torch.equal(begun[name] != 0, mask & (begun[name] != 0))
                if back_to is not None:
                    assert torch.equal(begun[name], expected[name] * mask)
                else:  # nothing of the first training is left
                    kept = mask & (begun[name] != 0)
                    assert (begun[name][kept] != expected[name][kept]).float().mean() > 0.99
            seen[config.run_id] = begun
            if config.parameters.get("initialization") == "sparse":
                network = DIGITS.build_model()
                reinitialize(network, masks, seed=config.seed)
                assert all(torch.equal(begun[name], network.state_dict()[name]) for name in masks)
    firsts = [begun["0.weight"] for begun in seen.values()]
    assert len(firsts) == 2 * 2 * (2 + 2 + 2)


def test_rounds_go_on_from_each_other_and_back_to_the_same_weights(finished: tuple[Study, Path]) -> None:
    _, directory = finished
    runs = runs_of(directory, "iterative-magnitude")
    assert len(runs) == 2 * 2
    for config, folder in runs:
        parent = parent_of(config, directory)
        record, before = folder.read_result(), parent.read_result()
        assert before.method == ("dense" if config.target_sparsity == 0.5 else "iterative-magnitude")
        assert record.points[0].sparsity == pytest.approx(config.target_sparsity, abs=1e-3)
        theirs, own = load_compressed(parent.model_path), load_compressed(folder.model_path)
        names = prunable(theirs)
        # The smallest weights of the round before, over all layers, and what it had dropped.
        magnitudes = torch.cat([theirs[name].abs().flatten() for name in names])
        kept = torch.cat([(own[name] != 0).flatten() for name in names])
        assert magnitudes[kept].min() >= magnitudes[~kept].max()


def test_resumed_study_ends_with_the_table_of_an_undisturbed_one(finished: tuple[Study, Path], tmp_path: Path) -> None:
    """Runs of three stages taken away, as by a kill between writing a folder and its result."""
    study, directory = finished
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    shutil.rmtree(copy / "runs" / runs_of(copy, "dense")[0][0].run_id)
    for method in ("scratch-b", "iterative-magnitude", "magnitude"):
        shutil.rmtree(runs_of(copy, method)[-1][1].path)
    summary = run_study(study, copy, LocalProcesses(workers=1))
    assert (summary.finished, summary.failed) == (4, {})
    question = "select run_id, split, metric, value, threshold, sparsity from results order by all"
    assert query(copy, question).equals(query(directory, question))
    assert run_study(study, copy, LocalProcesses(workers=1)).finished == 0


def test_what_goes_on_from_a_failed_run_never_begins(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, directory = finished
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    first = next(folder for config, folder in runs_of(copy, "iterative-magnitude") if config.target_sparsity == 0.5)
    second = next(
        folder
        for config, folder in runs_of(copy, "iterative-magnitude")
        if config.parent is not None and config.parent.run_id == first.path.name
    )
    for folder in (first, second):
        shutil.rmtree(folder.path)
    first.create({})
    first.write_failure("it was too hot", "")
    summary = run_study(study, copy, LocalProcesses(workers=1))
    assert summary.failed == {first.path.name: "it was too hot"}
    assert summary.finished == 0
    assert second.status() == "new"
    assert summary.unplanned == ()


BEST = "best: {seeds: [0, 4], keep_weights_at: 10 steps}"
INITIALIZATION = "initialization: [ordinary, sparse]"
SCRATCH_E = f"scratch-e: {{{INITIALIZATION}}}"
TAKE = "    take: magnitude\n"
FIRST = "  dense: {learning_rate: [0.001, 0.003]}\n"
MISTAKES = [
    # what stands in the file, what instead, the line that is named, what the message says
    (BEST, "best: {sedes: 4}", 11, r"unknown field 'sedes' \(did you mean 'seeds'\?\)"),
    (BEST, "grid: {}", 11, r"grid: the runs of the study's methods have this name"),
    ("seeds: [0, 4]", "seeds: 0", 11, r"seeds=0: expected a number of seeds"),
    ("keep_weights_at: 10", "keep_weights_at: 50", 11, r"stage 'best': keep_weights_at='50 steps' is step 50: expected one"),
    ("keep_weights_at: 10 steps", "keep_weights_at: 0", 11, r"stage 'best': keep_weights_at=0 is step 0: expected one of the 40"),
    ("of: best", "of: bset", 19, r"of='bset': expected an earlier stage, one of grid, best, masks"),
    (TAKE, "    take: mangitude\n", 13, r"take='mangitude': the stage 'best' has no such method \(did you mean 'magn"),
    (TAKE, "", 12, r"stage 'masks': take: expected the method whose networks are gone on from"),
    (TAKE, f"{TAKE}    seeds: 3\n", 14, r"seeds: methods of a stage go on from the runs"),
    (SCRATCH_E, "magnitude: {}", 16, r"magnitude does not go on from a finished run; expected one of lottery-ticket"),
    (INITIALIZATION, "initialization: odd", 16, r"scratch-e: initialization='odd': input should be 'ordinary' or 'sparse'"),
    (INITIALIZATION, "schedule: stretched", 16, r"unknown field 'schedule' of 'scratch-e'"),
    (
        "schedule: [stretched, continued-decay]",
        "schedule: longer",
        17,
        r"scratch-b: schedule='longer': expected one of stretched",
    ),
    ("rewind_to: [0, 10 steps]", "rewind_to: 5 steps", 15, r"rewind_to='5 steps' is step 5, of which no weights are kept"),
    ("{rewind_to: 10", "{sparsity: 0.5, rewind_to: 10", 21, r"sparsity: iterative-magnitude goes through the study's"),
    (FIRST, f"{FIRST}  lottery-ticket: {{}}\n", 8, r"lottery-ticket: method 'lottery-ticket' goes on from a finished run"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES)
def test_mistake_in_a_stage_is_found_before_anything_runs(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert STAGED.count(old) == 1
    with pytest.raises(SparsebenchError, match=message) as caught:
        plan_runs(read(tmp_path, STAGED.replace(old, new)))
    assert str(caught.value).startswith(f"{tmp_path}/staged.yaml, line {line}: ")
    assert "\n" not in str(caught.value)
