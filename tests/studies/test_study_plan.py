"""What a study is said to take: sums against a plain loop, samples against what real runs took."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsebench import cli
from sparsebench.records.run_folder import RunFolder
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.studies.forecast import Cost, Forecast, forecast_runs
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.sample_runs import Sample, kind_of, sample_runs, shortened
from sparsebench.studies.study_file import read_study
from sparsebench.training.config import RunConfig, build_sparsifier, resolve
from sparsebench.training.run import train
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.workload import Split, Workload

STUDY = """
study: tiny
workload: digits
seeds: 2
sparsities: [0.5, 0.6, 0.9]
settings: {steps: 60}
methods:
  dense: {}
  magnitude: {begin: 0.2, end: 0.8, frequency: 0.2}
  l0: {penalty: [0.1, 1.0]}
"""
SCHEDULE = {"sparsity": 0.9, "begin": 0.2, "end": 0.8, "frequency": 0.1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunConfig]:
    file = tmp_path_factory.mktemp("plan") / "tiny.yaml"
    file.write_text(STUDY)
    return plan_runs(read_study(str(file)))


def test_sums_are_those_of_single_runs(runs: list[RunConfig], tmp_path: Path) -> None:
    """One run is finished, one has failed, one was begun; l0 was not measured; sparsity 0.6 lies a quarter of the way to 0.9."""
    magnitude = [run for run in runs if run.method == "magnitude"]
    finished, failed, begun = [run for run in magnitude if run.target_sparsity != 0.6][:3]
    for run, name in ((finished, "result.json"), (failed, "failure.txt"), (begun, "config.json")):
        (tmp_path / "runs" / run.run_id).mkdir(parents=True)
        (tmp_path / "runs" / run.run_id / name).write_text("")
    samples = {
        kind_of(magnitude[0]): (Sample(0.5, 0.01, 2.0, 1000.0, 500), Sample(0.9, 0.02, 4.0, 200.0, 100)),
        kind_of(next(run for run in runs if run.method == "dense")): (Sample(None, 0.005, 1.0, 3000.0, 700),),
    }
    found = forecast_runs(runs, tmp_path, samples)
    assert list(found) == ["dense", "magnitude", "l0"]
    assert found["dense"] == Forecast(2, 0, 0, Cost(2 * (0.005 * 60 + 1.0), 2 * 3000.0 * 60, 2 * 700))
    assert found["l0"] == Forecast(4, 0, 0, Cost(), 4)
    assert (found["magnitude"].runs, found["magnitude"].finished, found["magnitude"].failed) == (6, 1, 1)
    single = {0.5: (2.6, 60000.0, 500.0), 0.6: (0.0125 * 60 + 2.5, 48000.0, 400.0), 0.9: (5.2, 12000.0, 100.0)}
    todo = [single[float(run.target_sparsity or 0)] for run in magnitude if run not in (finished, failed)]
    cost = found["magnitude"].cost
    assert [cost.seconds, cost.flops, cost.file_bytes] == pytest.approx([sum(part) for part in zip(*todo, strict=True)])


def test_samples_tell_the_flops_and_the_disk_of_whole_runs(tmp_path: Path) -> None:
    """PEERS 2: FLOPs are counted, not timed; the dense ones are known to the last."""
    configs = [resolve("digits", "dense", {}, {"steps": 150}), resolve("digits", "magnitude", SCHEDULE, {"steps": 150})]
    samples = sample_runs(configs)
    for config, tolerance in zip(configs, (1e-12, 0.1), strict=True):
        record = train(config, RunFolder(tmp_path / config.run_id))
        (sample,) = samples[kind_of(config)]
        assert 150 * sample.step_flops == pytest.approx(2.0 * (record.training_multiply_adds or 0.0), rel=tolerance)
        there = sum(file.stat().st_size for file in (tmp_path / config.run_id).iterdir())
        assert sample.file_bytes == pytest.approx(there, rel=0.1)
        assert sample.step_seconds > 0.0
        assert sample.other_seconds > 0.0


def test_each_kind_is_sampled_at_its_ends(runs: list[RunConfig]) -> None:
    """l0 goes by two penalties, which are taken for alike."""
    samples = sample_runs(runs)
    assert {kind[1]: [sample.target_sparsity for sample in found] for kind, found in samples.items()} == {
        "dense": [None],
        "magnitude": [0.5, 0.9],
        "l0": [None],
    }


def test_evaluations_are_counted_in_every_sample_but_made_once(runs: list[RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten points of the training curve and the last one, in each of four shortened runs and one that is thrown away."""
    workload, made, todo, told = WORKLOADS.get("digits"), [], [], []
    evaluate = type(workload).evaluate

    def slowly(self: Workload, model: nn.Module, split: Split) -> dict[str, float]:
        made.append(split)
        time.sleep(0.1)
        return evaluate(self, model, split)

    monkeypatch.setattr(type(workload), "evaluate", slowly)
    samples = sample_runs(runs, begin=todo.append, done=lambda: told.append((len(told) + 1, *todo)))
    assert made == ["validation", "test"]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(1.2 <= sample.other_seconds < 12 for found in samples.values() for sample in found)


def test_kind_that_diverges_at_once_is_not_measured() -> None:
    config = resolve("digits", "dense", {}, {"steps": 150, "learning_rate": 1e30})
    assert sample_runs([config]) == {kind_of(config): ()}
    assert forecast_runs([config], Path("nowhere"), sample_runs([config]))["dense"].unmeasured == 1


@given(steps=st.integers(1, 200), begin=st.floats(0, 0.5), end=st.floats(0.5, 1), frequency=st.integers(1, 150))
def test_shortened_run_is_one_that_can_be_trained(steps: int, begin: float, end: float, frequency: int) -> None:
    parameters = {"sparsity": 0.9, "begin": begin, "end": end, "frequency": f"{frequency} steps"}
    config = resolve("digits", "magnitude", parameters, {"steps": 150, "warmup_steps": 15})
    short = shortened(config, steps)
    assert short.recipe.steps == min(steps, 150)
    assert 0 <= short.parameters["begin"] <= short.parameters["end"] <= short.recipe.steps
    assert 1 <= short.parameters["frequency"] <= max(short.recipe.steps, 1)
    assert short.recipe.warmup_steps <= short.recipe.steps
    build_sparsifier(short)


@pytest.mark.parametrize("method", ["variational-dropout", "l0", "rigl"])
def test_every_method_with_times_can_be_shortened(method: str) -> None:
    parameters = {} if "sparsity" not in METHODS.get(method).defaults and method != "rigl" else {"sparsity": 0.9}
    build_sparsifier(shortened(resolve("digits", method, parameters), 10))


def test_command_prints_a_line_for_each_method_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sparsebench", "study", "plan", "tiny.yaml", "--only", "method=dense,magnitude"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert not ended.value.code
    rows = [line.replace("│", " ").split() for line in out.splitlines() if line.startswith("│")]
    assert [row[:5] for row in rows] == [
        ["dense", "2", "0", "0", "2"],
        ["magnitude", "6", "0", "0", "6"],
        ["in", "all", "8", "0", "0"],
    ]
    assert "hours in one process" in out
    assert "results folder: runs/tiny" in out
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
