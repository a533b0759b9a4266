"""Studies through submitit: its local executor, a process for each job, and its debug mode, in this process."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from executor_runs import outcomes_of, pause_and_go_on, weights

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.studies.executors.slurm import SlurmJobs
from sparsebench.training.config import RunConfig, resolve

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("submitit") is None, reason="submitit is not installed: pip install 'sparsebench[slurm]'"
    ),
    # submitit leaves its logs open, and does not wait for the processes of its local jobs.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CONFIGS = [resolve("digits", "dense", {}, {"steps": 20}, seed) for seed in range(3)]
HASHES: dict[str, str] = {}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("local")
    outcomes_of(LocalProcesses(workers=1), directory, CONFIGS)
    return weights(directory)


def test_debug_mode_trains_in_one_job_what_is_asked_for(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    outcomes = outcomes_of(SlurmJobs(jobs=1, cluster="debug"), tmp_path, CONFIGS)
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}
    assert weights(tmp_path) == undisturbed


@pytest.mark.slow
def test_runs_pause_and_go_on_to_the_same_bits(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    pause_and_go_on(SlurmJobs(jobs=1, cluster="debug"), tmp_path, CONFIGS)
    assert weights(tmp_path) == undisturbed


@pytest.mark.slow
def test_two_jobs_share_the_runs_and_a_failed_one_is_told(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    diverging = resolve("digits", "dense", {}, {"steps": 20, "learning_rate": 1e30})
    outcomes = outcomes_of(SlurmJobs(jobs=2, cluster="local"), tmp_path, [*CONFIGS, diverging])
    assert [outcomes[config.run_id].status for config in CONFIGS] == ["finished"] * 3
    assert outcomes[diverging.run_id].status == "failed"
    assert "the training diverged" in outcomes[diverging.run_id].reason
    assert weights(tmp_path) == undisturbed
    assert not list((tmp_path / "leases").iterdir())


@pytest.mark.slow
def test_jobs_that_are_killed_are_submitted_again(
    tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[Any] = []
    submit = SlurmJobs._submit

    def killing(self: SlurmJobs, configs: list[RunConfig], directory: Path, pauses: Any) -> list[Any]:
        jobs = submit(self, configs, directory, pauses)
        submitted.append(jobs)
        if len(submitted) == 1:
            for job in jobs:
                os.kill(job._process.pid, signal.SIGKILL)
        return jobs

    monkeypatch.setattr(SlurmJobs, "_submit", killing)
    outcomes = outcomes_of(SlurmJobs(jobs=1, cluster="local"), tmp_path, CONFIGS)
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}
    assert len(submitted) >= 2
    assert weights(tmp_path) == undisturbed


def test_jobs_that_never_train_end_the_study_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Job:
        def done(self) -> bool:
            return True

    monkeypatch.setattr(SlurmJobs, "_submit", lambda *_: [Job()])
    outcomes = outcomes_of(SlurmJobs(jobs=2), tmp_path, CONFIGS)
    reason = f"3 arrays of jobs ended without it; their logs are in {tmp_path}/slurm"
    assert {(outcome.status, outcome.reason) for outcome in outcomes.values()} == {("failed", reason)}
    assert RunFolder(tmp_path / "runs" / CONFIGS[0].run_id).read_failure() == reason


def test_what_another_driver_holds_is_told_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Job:
        def done(self) -> bool:
            return True

    monkeypatch.setattr(SlurmJobs, "_submit", lambda *_: [Job()])
    executor = SlurmJobs(jobs=1)
    with RunFolder(tmp_path / "runs" / CONFIGS[0].run_id, executor.claims).claim():
        assert outcomes_of(executor, tmp_path, CONFIGS[:1])[CONFIGS[0].run_id].status == "held"


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SparsebenchError, match=r"jobs=0: expected at least 1"):
        SlurmJobs(jobs=0)
    with pytest.raises(SparsebenchError, match=r"^submitit: "):
        outcomes_of(SlurmJobs(jobs=1, cluster="local", parameters={"partitoin": "gpu"}), tmp_path, CONFIGS)
