from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies import run_study as module
from sparsebench.studies.run_study import StudySummary, run_study
from sparsebench.studies.study_file import Study, read_study
from sparsebench.studies.workers import Outcome, _run
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

    def run_all(
        configs: Sequence[RunConfig], directory: Path, workers: int, checkpoint_seconds: float, done: Callable[[Outcome], None]
    ) -> None:
        for config in configs:
            ids.append(config.run_id)
            done(_run(config.model_dump(mode="json"), str(directory), checkpoint_seconds))

    monkeypatch.setattr(module, "run_all", run_all)
    return ids


def summarize(summary: StudySummary) -> tuple[int, int, int, int, int]:
    return summary.planned, summary.finished_before, summary.finished, len(summary.failed), len(summary.held)


def test_finished_runs_never_run_again_and_failed_ones_only_when_asked(tmp_path: Path, study: Study, trained: list[str]) -> None:
    results = tmp_path / "results"
    first = run_study(study, results, workers=1)
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
    second = run_study(study, results, workers=1, begin=lambda planned, todo: counts.append((planned, todo)))
    assert summarize(second) == (6, 4, 0, 2, 0)
    assert second.failed == first.failed
    assert (trained, counts) == ([], [(6, 0)])
    third = run_study(study, results, workers=1, retry_failed=True)
    assert summarize(third) == (6, 4, 0, 2, 0)
    assert set(trained) == set(first.failed)


def test_run_that_another_process_holds_is_left_to_it(tmp_path: Path, study: Study, trained: list[str]) -> None:
    results = tmp_path / "results"
    config = next(config for config in module.plan_runs(study) if config.method == "magnitude")
    with RunFolder(results / "runs" / config.run_id).claim():
        summary = run_study(study, results, workers=1)
    assert summarize(summary) == (6, 0, 3, 2, 1)
    assert summary.held == (config.run_id,)
    assert summarize(run_study(study, results, workers=1)) == (6, 3, 1, 2, 0)


def test_outcomes_are_told_as_they_come(tmp_path: Path, study: Study, trained: list[str]) -> None:
    seen: list[Outcome] = []
    run_study(study, tmp_path / "results", workers=1, done=seen.append)
    assert [outcome.run_id for outcome in seen] == trained
    assert [outcome.status for outcome in seen].count("failed") == 2


def test_folder_describes_the_study(tmp_path: Path, study: Study, trained: list[str]) -> None:
    run_study(study, tmp_path / "my results", workers=1)
    description = json.loads((tmp_path / "my results" / "study.json").read_text())
    assert description["name"] == "tiny"
    assert description["planned_runs"] == 6
    assert description["sparsities"] == [0.5]
    assert description["note"] == "A note."
    assert set(description["methods"]) == {"dense", "magnitude"}
    assert description["command"] == f"sparsebench study run {tmp_path}/tiny.yaml --out '{tmp_path}/my results'"


def test_study_that_grew_runs_what_is_new(tmp_path: Path, study: Study, trained: list[str]) -> None:
    run_study(study, tmp_path / "results", workers=1)
    trained.clear()
    (tmp_path / "tiny.yaml").write_text(TEXT.replace("[0.5]", "[0.5, 0.9]"))
    summary = run_study(read_study(str(tmp_path / "tiny.yaml")), tmp_path / "results", workers=1)
    assert summarize(summary) == (8, 4, 2, 2, 0)
    assert len(trained) == 2


def test_folder_of_another_study_is_refused(tmp_path: Path, study: Study, trained: list[str]) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "study.json").write_text('{"name": "other"}')
    with pytest.raises(SparsebenchError, match=r"holds the study 'other', not 'tiny': choose another folder"):
        run_study(study, tmp_path / "results", workers=1)
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
        run_study(study, tmp_path / "results", workers=1)
    assert trained == []


def test_wrong_study_leaves_no_folder(tmp_path: Path, trained: list[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TEXT.replace("begin: 0.2", "begin: 0.9"))
    with pytest.raises(SparsebenchError, match="is before begin"):
        run_study(read_study(str(tmp_path / "tiny.yaml")), tmp_path / "results", workers=1)
    assert not (tmp_path / "results").exists()


def test_pattern_that_matches_no_layer_is_refused_before_anything_runs(tmp_path: Path, trained: list[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TEXT.replace("frequency: 0.2}", "frequency: 0.2, layers: [['7'], ['nope*']]}"))
    with pytest.raises(SparsebenchError, match=r"^\S+tiny\.yaml, line \d+: magnitude: layers: pattern 'nope\*' matches no layer"):
        run_study(read_study(str(tmp_path / "tiny.yaml")), tmp_path / "results", workers=1)
    assert trained == []
    assert not (tmp_path / "results").exists()


def test_no_workers_are_refused(tmp_path: Path, study: Study) -> None:
    with pytest.raises(SparsebenchError, match="workers=0: expected at least 1"):
        run_study(study, tmp_path / "results", workers=0)


def test_unwritable_folder_is_one_line(tmp_path: Path, study: Study, trained: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SparsebenchError, match=r"^cannot create folder \S+: Not a directory$"):
        run_study(study, tmp_path / "file" / "results", workers=1)


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_while_describing_the_study_is_one_line(
    tmp_path: Path, study: Study, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(SparsebenchError, match=r"^cannot write \S+study\.json: No space left on device$"):
        run_study(study, tmp_path / "results", workers=1)
    assert trained == []
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["runs"]


def test_full_disk_fails_a_run_in_one_line_and_it_is_tried_again(
    tmp_path: Path, study: Study, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        config = module.plan_runs(study)[0]
        patched.setattr(os, "fsync", full_disk)
        outcome = _run(config.model_dump(mode="json"), str(tmp_path / "results"), 60.0)
    assert outcome.status == "failed"
    assert outcome.reason.endswith("config.json: No space left on device")
    assert summarize(run_study(study, tmp_path / "results", workers=1)) == (6, 0, 4, 2, 0)
