"""Searches that really train: stopped early, interrupted, killed, shared by two drivers, and the same in the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sparsebench.analysis.frontiers import find_frontiers
from sparsebench.analysis.progress import read_progress
from sparsebench.analysis.remarks import remarks
from sparsebench.analysis.study_data import load_study
from sparsebench.errors import SparsebenchError
from sparsebench.records.claims import Claims, Locks
from sparsebench.records.query import query
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.executor import NO_PAUSES, Done, run_one
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.run_study import StudySummary, run_study
from sparsebench.studies.selection import Selection
from sparsebench.studies.study_file import read_study
from sparsebench.studies.study_runs import StudyRuns
from sparsebench.training.config import RunConfig

pytest.importorskip("optuna")

STUDY = """
study: searched
workload: digits
seeds: 1
sparsities: [0.8]
budget: 20
search: {sampler: tpe, generation: 10, stop: hyperband}
settings: {steps: 27, learning_rate: {from: 0.00001, to: 0.03, scale: log}}
methods:
  magnitude: {begin: {from: 0.1, to: 0.4}, ramp: 0.3, frequency: 2 steps}
"""


@dataclass
class Here:
    """Trains in this process, run after run; is interrupted before the run of a number."""

    interrupted_before: int | None = None
    claims: Claims = field(default_factory=Locks)
    trained: list[tuple[str, int | None]] = field(default_factory=list)

    def run(self, configs: Sequence[RunConfig], directory: Path, done: Done, pauses: Mapping[str, int] = NO_PAUSES) -> None:
        for config in configs:
            if len(self.trained) == self.interrupted_before:
                raise KeyboardInterrupt
            pause_at = pauses.get(config.run_id)
            self.trained.append((config.run_id, pause_at))
            done(run_one(config.model_dump(mode="json"), str(directory), 60.0, self.claims, pause_at))


def write(folder: Path, text: str = STUDY) -> str:
    (folder / "searched.yaml").write_text(text)
    return str(folder / "searched.yaml")


def ends(directory: Path) -> dict[str, Any]:
    """What became of each run: all that must be equal however it came to it."""
    found: dict[str, Any] = {}
    for path in sorted((directory / "runs").iterdir()):
        if path.is_dir():
            folder = RunFolder(path)
            status = folder.status()
            assert not folder.checkpoint_path.exists()
            end = {
                "finished": lambda folder=folder: folder.read_result().weights_sha256,
                "stopped": lambda folder=folder: json.loads(folder.stop_path.read_text()),
            }[status]()
            found[path.name] = (status, end, folder.read_rungs())
    return found


@dataclass(frozen=True)
class Undisturbed:
    study: str
    directory: Path
    summary: StudySummary
    ends: dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    study = write(folder)
    summary = run_study(read_study(study), folder / "results", Here())
    return Undisturbed(study, folder / "results", summary, ends(folder / "results"))


def test_search_ends_with_every_run_finished_or_stopped(undisturbed: Undisturbed) -> None:
    status = [end[0] for end in undisturbed.ends.values()]
    stopped = status.count("stopped")
    assert len(status) == 20
    assert 3 < stopped < 17
    assert undisturbed.summary == StudySummary(20, 0, 20 - stopped, 0, {}, (), stopped, 0)
    assert undisturbed.summary.left == 0
    progress = read_progress(undisturbed.directory, time.time())
    assert (progress.planned, progress.finished, progress.stopped, progress.running, progress.ended) == (
        20,
        20 - stopped,
        stopped,
        0,
        True,
    )


def test_stopped_run_says_where_and_why_and_is_in_no_table(undisturbed: Undisturbed) -> None:
    known = set(query(undisturbed.directory, "select distinct run_id from results")["run_id"])
    for run_id, (status, end, rungs) in undisturbed.ends.items():
        assert (run_id in known) == (status == "finished")
        if status == "stopped":
            assert (end["step"], end["steps"]) in ((3, 27), (9, 27))
            assert end["rule"] == "hyperband: not among the best 1/3 of magnitude after so many steps"
            assert end["validation"] == rungs[end["step"]].validation
            assert max(rungs) == end["step"]
        else:
            assert set(rungs) == {3, 9}


def test_page_tells_of_stopped_runs_and_misses_none(undisturbed: Undisturbed) -> None:
    data = load_study(undisturbed.directory)
    said = remarks(data, find_frontiers(data))
    stopped = undisturbed.summary.stopped
    assert re.match(rf"The study's search stopped {stopped}\sruns early\. They have no results", said[0])
    assert not any("not complete" in sentence or "did not finish" in sentence for sentence in said)


def test_stopped_runs_were_worse_where_they_were_stopped(undisturbed: Undisturbed) -> None:
    """By the rule, brackets aside, on average."""
    values: dict[str, list[float]] = {"stopped": [], "finished": []}
    for status, _, rungs in undisturbed.ends.values():
        values[status].append(rungs[3].validation)
    assert sum(values["finished"]) / len(values["finished"]) > sum(values["stopped"]) / len(values["stopped"])


def test_second_call_runs_nothing(undisturbed: Undisturbed) -> None:
    here = Here()
    summary = run_study(read_study(undisturbed.study), undisturbed.directory, here)
    assert here.trained == []
    assert (summary.finished_before, summary.finished) == (undisturbed.summary.finished, 0)
    assert (summary.stopped, summary.left, summary.unproposed) == (undisturbed.summary.stopped, 0, 0)
    assert ends(undisturbed.directory) == undisturbed.ends


def test_interrupted_search_goes_on_to_the_same_runs_and_bits(undisturbed: Undisturbed, tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    trained: list[tuple[str, int | None]] = []
    for number in (1, 0, 7, 3, 4, 9, 2, 50):
        here = Here(number)
        try:
            run_study(study, tmp_path / "results", here)
        except KeyboardInterrupt:
            assert number < 50
        trained += here.trained
    assert ends(tmp_path / "results") == undisturbed.ends
    assert len(set(trained)) == len(trained)  # no part of a run twice


def test_limit_leaves_the_rest_to_the_next_call(undisturbed: Undisturbed, tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    summary = run_study(study, tmp_path / "results", Here(), selection=Selection(limit=3))
    assert (summary.planned, summary.finished, summary.left, summary.unproposed) == (10, 0, 10, 10)
    assert len(list(tmp_path.glob("results/runs/*/rungs.jsonl"))) == 3
    run_study(study, tmp_path / "results", Here())
    assert ends(tmp_path / "results") == undisturbed.ends


def test_run_that_fails_is_told_and_the_search_goes_on(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, STUDY.replace("to: 0.03", "to: 1.0e+30").replace("budget: 20", "budget: 12")))
    summary = run_study(study, tmp_path / "results", Here())
    assert 0 < len(summary.failed) < 12
    assert all("diverged" in reason for reason in summary.failed.values())
    assert summary.finished + summary.stopped + len(summary.failed) == summary.planned == 12
    again = run_study(study, tmp_path / "results", Here())
    assert (again.failed, again.finished, again.finished_before) == (summary.failed, 0, summary.finished)


def test_stages_take_what_was_not_stopped(tmp_path: Path) -> None:
    text = STUDY.replace("budget: 20", "budget: 10") + "stages:\n  best: {seeds: 2}\n"
    study = read_study(write(tmp_path, text))
    summary = run_study(study, tmp_path / "results", Here())
    assert (summary.left, summary.unplanned) == (0, ())
    runs = StudyRuns(study, tmp_path / "results", plan_runs(study))
    while runs.plan_further():
        pass
    best = runs.of_stage("best")
    assert {config.seed for config in best} == {0, 1}
    assert {runs.folder(config.run_id).status() for config in best} == {"finished"}


def test_damaged_result_of_a_search_is_one_line(undisturbed: Undisturbed, tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    run_study(study, tmp_path / "results", Here(), selection=Selection(limit=1))
    (rungs,) = tmp_path.glob("results/runs/*/rungs.jsonl")
    rungs.write_text("{")
    with pytest.raises(SparsebenchError, match=r"rungs\.jsonl is damaged"):
        run_study(study, tmp_path / "results", Here())


def drive(study: str, directory: Path) -> subprocess.Popen[str]:
    program = str(Path(sys.executable).with_name("sparsebench"))
    command = [program] if Path(program).exists() else [sys.executable, "-m", "sparsebench"]
    arguments = ["study", "run", study, "--out", str(directory), "--workers", "1", "--checkpoint-seconds", "0"]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


@pytest.mark.slow
def test_two_drivers_share_a_search_and_one_of_them_may_die(undisturbed: Undisturbed, tmp_path: Path) -> None:
    study = write(tmp_path)
    directory = tmp_path / "results"
    first, second = drive(study, directory), drive(study, directory)
    end = time.monotonic() + 120.0
    while len(list(directory.glob("runs/*/rungs.jsonl"))) < 6:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    out, err = second.communicate(timeout=240)
    first.communicate(timeout=60)
    assert (second.returncode, "Traceback" in err) == (0, False), err
    assert ends(directory) == undisturbed.ends
    assert f"{undisturbed.summary.stopped} stopped early by the search" in out
