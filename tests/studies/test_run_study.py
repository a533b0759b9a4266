from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies import run_study as module
from sparsebench.studies import sharing
from sparsebench.studies.executors.executor import DiskFullError, Outcome, run_one
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.studies.run_study import StudySummary
from sparsebench.studies.selection import Selection
from sparsebench.studies.study_file import Study, read_study
from sparsebench.training.config import RunConfig

TEXT = """
study: tiny
description: For tests.
note: A note.
workload: digits
seeds: 2
sparsities: [0.5]
settings: {steps: 5}
methods:
  dense: {learning_rate: [0.001, 1.0e+30]}
  magnitude: {begin: 0.2, end: 0.8, frequency: 0.2}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "tiny.yaml").write_text(TEXT)
    return read_study(str(tmp_path / "tiny.yaml"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the runs that were given to workers; here they are trained in this process, which is quicker."""
    ids: list[str] = []

    def run(
        self: LocalProcesses, configs: Sequence[RunConfig], directory: Path, done: Callable[[Outcome], None], pauses: object
    ) -> None:
        for config in configs:
            ids.append(config.run_id)
            done(run_one(config.model_dump(mode="json"), str(directory), self.checkpoint_seconds, self.claims))

    monkeypatch.setattr(LocalProcesses, "run", run)
    return ids


def run_study(study: Study, directory: Path, **kwargs: Any) -> StudySummary:
    return module.run_study(study, directory, LocalProcesses(workers=1), **kwargs)


def summarize(summary: StudySummary) -> tuple[int, int, int, int, int]:
    return summary.planned, summary.finished_before, summary.finished, len(summary.failed), summary.elsewhere


def test_finished_runs_never_run_again_and_failed_ones_only_when_asked(tmp_path: Path, study: Study, trained: list[str]) -> None:
    results = tmp_path / "results"
    first = run_study(study, results)
    assert summarize(first) == (6, 0, 4, 2, 0)
    assert len(trained) == 6
    for run_id, reason in first.failed.items():
        folder = RunFolder(results / "runs" / run_id)
        assert folder.status() == "failed"
        assert folder.read_failure() == reason
        assert "the training diverged" in reason
        assert "\n" not in reason
        assert "Traceback" in folder.failure_path.read_text()
    trained.clear()
    counts: list[tuple[int, int]] = []
    second = run_study(study, results, begin=lambda ended, todo: counts.append((ended, todo)))
    assert summarize(second) == (6, 4, 0, 2, 0)
    assert second.failed == first.failed
    assert (trained, counts) == ([], [(6, 0)])
    third = run_study(study, results, retry_failed=True)
    assert summarize(third) == (6, 4, 0, 2, 0)
    assert set(trained) == set(first.failed)


def test_run_that_another_driver_holds_is_waited_for_and_taken_over_when_free(
    tmp_path: Path, study: Study, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    config = next(config for config in module.plan_runs(study) if config.method == "magnitude")
    claim = RunFolder(results / "runs" / config.run_id).claim()
    assert claim.__enter__()
    looks = []

    def sleep(_: float) -> None:
        looks.append(len(trained))
        if len(looks) == 3:
            claim.__exit__(None, None, None)

    monkeypatch.setattr(sharing, "sleep", sleep)
    assert summarize(run_study(study, results)) == (6, 0, 4, 2, 0)
    assert looks == [6, 6, 6]
    assert trained[-1] == config.run_id
    assert trained.count(config.run_id) == 2


def test_run_that_another_driver_finishes_is_not_trained_again(
    tmp_path: Path, study: Study, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    config = next(config for config in module.plan_runs(study) if config.method == "magnitude")
    folder = RunFolder(results / "runs" / config.run_id)
    run_study(study, tmp_path / "theirs", selection=Selection(only=("method=magnitude",)))
    trained.clear()

    def sleep(_: float) -> None:
        shutil.copytree(tmp_path / "theirs" / "runs" / config.run_id, folder.path)

    monkeypatch.setattr(sharing, "sleep", sleep)
    with folder.claim():
        assert summarize(run_study(study, results)) == (6, 0, 3, 2, 1)
    assert trained.count(config.run_id) == 1  # it was held


def test_limit_ends_a_call_early_and_the_next_goes_on(tmp_path: Path, study: Study, trained: list[str]) -> None:
    results = tmp_path / "results"
    first = run_study(study, results, selection=Selection(limit=2))
    assert (len(trained), first.planned, first.finished + len(first.failed), first.left) == (2, 6, 2, 4)
    assert len([*results.glob("runs/*/config.json")]) == 2
    begun = list(trained)
    second = run_study(study, results, selection=Selection(limit=3))
    assert len(trained) == 5
    assert not set(begun) & set(trained[2:])
    assert second.left == 1


def test_chosen_runs_alone_are_trained_and_counted(tmp_path: Path, study: Study, trained: list[str]) -> None:
    chosen = Selection(only=("method=magnitude", "seed=1"))
    assert summarize(run_study(study, tmp_path / "results", selection=chosen)) == (1, 0, 1, 0, 0)
    (config,) = [config for config in module.plan_runs(study) if config.method == "magnitude" and config.seed == 1]
    assert trained == [config.run_id]


def test_condition_that_no_run_meets_is_refused_before_anything_is_written(
    tmp_path: Path, study: Study, trained: list[str]
) -> None:
    with pytest.raises(SparsebenchError, match=r"^--only 'sparsity=0.7': no run of the study meets this; sparsity is 0.5$"):
        run_study(study, tmp_path / "results", selection=Selection(only=("sparsity=0.7",)))
    assert not (tmp_path / "results").exists()


def test_outcomes_are_told_as_they_come(tmp_path: Path, study: Study, trained: list[str]) -> None:
    seen: list[Outcome] = []
    run_study(study, tmp_path / "results", done=seen.append)
    assert [outcome.run_id for outcome in seen] == trained
    assert [outcome.status for outcome in seen].count("failed") == 2


def test_folder_describes_the_study(tmp_path: Path, study: Study, trained: list[str]) -> None:
    run_study(study, tmp_path / "my results")
    description = json.loads((tmp_path / "my results" / "study.json").read_text())
    assert description["name"] == "tiny"
    assert description["planned_runs"] == 6
    assert description["sparsities"] == [0.5]
    assert description["note"] == "A note."
    assert set(description["methods"]) == {"dense", "magnitude"}
    assert description["command"] == f"sparsebench study run {tmp_path}/tiny.yaml --out '{tmp_path}/my results'"


def test_study_that_grew_runs_what_is_new(tmp_path: Path, study: Study, trained: list[str]) -> None:
    run_study(study, tmp_path / "results")
    trained.clear()
    (tmp_path / "tiny.yaml").write_text(TEXT.replace("[0.5]", "[0.5, 0.9]"))
    summary = run_study(read_study(str(tmp_path / "tiny.yaml")), tmp_path / "results")
    assert summarize(summary) == (8, 4, 2, 2, 0)
    assert len(trained) == 2


def test_folder_of_another_study_is_refused(tmp_path: Path, study: Study, trained: list[str]) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "study.json").write_text('{"name": "other"}')
    with pytest.raises(SparsebenchError, match=r"holds the study 'other', not 'tiny': choose another folder"):
        run_study(study, tmp_path / "results")
    assert trained == []


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text("{"), lambda path: path.write_text("[]"), lambda path: path.mkdir()]
)
def test_damaged_description_is_one_line(
    tmp_path: Path, study: Study, trained: list[str], make: Callable[[Path], object]
) -> None:
    (tmp_path / "results").mkdir()
    make(tmp_path / "results" / "study.json")
    with pytest.raises(SparsebenchError, match=r"study\.json is damaged: delete it"):
        run_study(study, tmp_path / "results")
    assert trained == []


def test_wrong_study_leaves_no_folder(tmp_path: Path, trained: list[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TEXT.replace("begin: 0.2", "begin: 0.9"))
    with pytest.raises(SparsebenchError, match="is before begin"):
        run_study(read_study(str(tmp_path / "tiny.yaml")), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_pattern_that_matches_no_layer_is_refused_before_anything_runs(tmp_path: Path, trained: list[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TEXT.replace("frequency: 0.2}", "frequency: 0.2, layers: [['7'], ['nope*']]}"))
    with pytest.raises(SparsebenchError, match=r"^\S+tiny\.yaml, line \d+: magnitude: layers: pattern 'nope\*' matches no layer"):
        run_study(read_study(str(tmp_path / "tiny.yaml")), tmp_path / "results")
    assert trained == []
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "workers=0: expected at least 1"),
        ({"run_timeout": 0.0}, "run_timeout=0: expected seconds above 0"),
        ({"run_timeout": float("nan")}, "run_timeout=nan: expected seconds above 0"),
    ],
)
def test_executor_that_could_not_train_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SparsebenchError, match=message):
        LocalProcesses(**given)


def test_unwritable_folder_is_one_line(tmp_path: Path, study: Study, trained: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SparsebenchError, match=r"^cannot create folder \S+: Not a directory$"):
        run_study(study, tmp_path / "file" / "results")


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_while_describing_the_study_is_one_line(
    tmp_path: Path, study: Study, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(SparsebenchError, match=r"^cannot write \S+study\.json: No space left on device$"):
        run_study(study, tmp_path / "results")
    assert trained == []
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["runs"]


@pytest.mark.parametrize("part", ["config.json", "checkpoint.pt", "curve.jsonl", "model.safetensors", "result.json"])
def test_full_disk_stops_the_study_and_is_no_runs_failure(
    tmp_path: Path, study: Study, trained: list[str], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Every other run would train in vain, too; and nothing has to be retried by name when there is room again."""
    opened = Path.open

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name.startswith(f".{part}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        executor = LocalProcesses(workers=1, checkpoint_seconds=0.0)
        with pytest.raises(DiskFullError, match=rf"^cannot write \S+{part}: No space left on device$"):
            module.run_study(study, tmp_path / "results", executor)
    assert len(trained) == 1
    assert not list(tmp_path.rglob("failure.txt"))
    assert not list(tmp_path.rglob("*.part"))
    assert summarize(run_study(study, tmp_path / "results")) == (6, 0, 4, 2, 0)
