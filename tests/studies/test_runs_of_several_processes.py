"""Studies whose runs are trained by two processes each: what torchrun gives, and what happens when one of the two dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pandas as pd
import pytest
from executor_runs import outcomes_of, weights
from fragile_studies import Lab, make_lab, wait_for, workers_of
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors import local, ray_tasks
from sparsebench.studies.executors.executor import Outcome
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.studies.executors.slurm import SlurmJobs
from sparsebench.studies.executors.worker import together
from sparsebench.training.config import resolve

TWO = ("--processes-per-run", "2", "--workers", "1")
SEEDS = [0, 1, 2, 3]
WITH_PROC = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers through /proc")
CONFIG = resolve("digits", "variational-dropout", {"penalty": 1.0}, {"steps": 100})


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = make_lab(tmp_path_factory.mktemp("calm"), SEEDS)
    done = lab.run({}, *TWO)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 planned: 4 finished now" in done.stdout.replace("runs ", "")
    return lab


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torchrun's processes make of the same configuration."""
    out = tmp_path_factory.mktemp("launched")
    training = ["train", "digits", "--method", "variational-dropout", "--penalty", "1.0", "--steps", "100", "--out", str(out)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sparsebench"]
    subprocess.run([*launcher, *training], check=True, capture_output=True, timeout=240)
    return out


@WITH_PROC
def test_run_of_which_a_process_was_killed_ends_as_torchrun_trains_it(launched: Path, tmp_path: Path) -> None:
    executor = LocalProcesses(1, checkpoint_seconds=0.0, processes_per_run=2)
    outcomes: list[Outcome] = []
    trained = threading.Thread(target=lambda: executor.run([CONFIG], tmp_path, outcomes.append))
    trained.start()
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoint.pt")))
    first = workers_of(os.getpid())
    assert len(first) == 2
    os.kill(first[1], signal.SIGKILL)
    wait_for(lambda: not set(workers_of(os.getpid())) & set(first))
    assert not list(tmp_path.glob("runs/*/result.json")), "it ended before it could be killed: make it longer"
    trained.join()
    assert [outcome.status for outcome in outcomes] == ["finished"]
    assert weights(tmp_path) == weights(launched)
    one, other = (RunFolder.of(directory, CONFIG.run_id).read_result() for directory in (tmp_path, launched))
    assert one.points == other.points
    assert one.environment["processes"] == other.environment["processes"] == "2"


@pytest.mark.slow
def test_processes_live_on_from_run_to_run_and_each_trains_every_step_once(calm: Lab) -> None:
    for seed in SEEDS:
        assert calm.steps(seed) == calm.steps(seed, rank=1) == list(range(40))
    assert not list(calm.results.glob("runs/*/.*"))


@pytest.mark.slow
def test_run_of_which_a_process_dies_goes_on_and_what_raises_in_one_fails(
    tmp_path: Path, calm: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAGILE_RANK", "1")
    lab = make_lab(tmp_path, SEEDS)
    done = lab.run({"0": "kill once", "1": "raise", "2": "kill"}, *TWO)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("run ")]
    assert sorted(told) == sorted(
        [
            f"run {lab.folder(1).name} failed: RuntimeError: it broke",
            f"run {lab.folder(2).name} failed: the worker process died each time (killed, or out of memory)",
        ]
    )
    assert "2 finished now" in done.stdout
    assert lab.steps(0, rank=1) == [0, 1, 2, 3, *range(3, 40)]
    assert lab.steps(2, rank=1).count(3) == 3
    assert lab.steps(3) == list(range(40))
    failure = (lab.folder(1) / "failure.txt").read_text()
    assert failure.startswith("RuntimeError: it broke\n\nTraceback (most recent call last):")
    assert "fragile_workload.py" in failure
    expected = calm.table()
    pd.testing.assert_frame_equal(lab.table(), expected[expected["seed"].isin([0, 3])].reset_index(drop=True))


@pytest.mark.slow
@WITH_PROC
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_any_process_may_be_killed_and_the_driver_takes_all_with_it(tmp_path: Path, calm: Lab, which: int) -> None:
    lab = make_lab(tmp_path, SEEDS)
    slow = lab.environment({str(seed): "slow" for seed in SEEDS})
    driver = subprocess.Popen(lab.command(*TWO), env=slow, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: list(lab.results.glob("runs/*/checkpoint.pt")))
        first = workers_of(driver.pid)
        assert len(first) == 2
        os.kill(first[which], signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in first))
        wait_for(lambda: list(lab.results.glob("runs/*/result.json")))
        second = workers_of(driver.pid)
        assert len(second) == 2
        driver.kill()
        driver.wait(10)
        wait_for(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in second), 20.0)
    finally:
        driver.kill()
        driver.communicate(timeout=10)
    done = lab.run({}, *TWO)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(lab.table(), calm.table())
    assert not list(lab.results.glob("runs/*/.*"))


@pytest.mark.slow
def test_run_of_which_a_process_hangs_is_ended_at_its_limit(tmp_path: Path, calm: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAGILE_RANK", "1")
    lab = make_lab(tmp_path, SEEDS)
    done = lab.run({"0": "hang"}, *TWO, "--run-timeout", "20")
    assert done.returncode == 1
    assert f"run {lab.folder(0).name} failed: it took longer than 20 s and was ended; its checkpoint stays\n" in done.stderr
    assert "3 finished now, 0 were done already, 1 failed" in done.stdout
    assert lab.run({}, *TWO, "--retry-failed").returncode == 0
    assert lab.steps(0, rank=1) == [0, 1, 2, 3, *range(3, 40)]
    pd.testing.assert_frame_equal(lab.table(), calm.table())


@pytest.mark.slow
def test_full_disk_stops_the_study_in_a_line(tmp_path: Path, calm: Lab) -> None:
    lab = make_lab(tmp_path, SEEDS)
    stopped = lab.run({"2": "full disk"}, *TWO)
    assert (stopped.returncode, stopped.stdout) == (2, "")
    assert f"error: cannot write {lab.folder(2)}/checkpoint.pt: No space left on device\n" in stopped.stderr
    assert not list(lab.results.rglob("failure.txt"))
    assert lab.run({}, *TWO).returncode == 0
    pd.testing.assert_frame_equal(lab.table(), calm.table())


@pytest.mark.slow
@WITH_PROC
def test_interrupted_study_leaves_no_process_and_says_how_to_go_on(tmp_path: Path, calm: Lab) -> None:
    lab = make_lab(tmp_path, SEEDS)
    driver = subprocess.Popen(
        lab.command(*TWO),
        env=lab.environment({str(seed): "slow" for seed in SEEDS}),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: list(lab.results.glob("runs/*/checkpoint.pt")))
    workers = workers_of(driver.pid)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert err.endswith("error: interrupted; the same command goes on from the last checkpoint\n")
    wait_for(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in workers), 20.0)
    assert lab.run({}, *TWO).returncode == 0
    pd.testing.assert_frame_equal(lab.table(), calm.table())


@pytest.mark.slow
@pytest.mark.parametrize("claims", [[], ["--shared-disk"]], ids=["locks", "leases"])
def test_two_drivers_share_a_study_without_doing_a_run_twice(tmp_path: Path, calm: Lab, claims: list[str]) -> None:
    lab = make_lab(tmp_path, SEEDS)
    environment = lab.environment({str(seed): "slow" for seed in SEEDS})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    drivers = [subprocess.Popen(lab.command(*TWO, *claims), env=environment, **pipes) for _ in range(2)]
    told = [driver.communicate(timeout=240) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    for seed in SEEDS:
        assert lab.steps(seed) == lab.steps(seed, rank=1) == list(range(40))
    pd.testing.assert_frame_equal(lab.table(), calm.table())


@pytest.mark.slow
def test_run_that_was_begun_by_another_number_of_processes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = make_lab(tmp_path, [0])
    assert lab.run({"0": "raise"}, *TWO).returncode == 1
    done = lab.run({}, "--retry-failed")
    assert done.returncode == 1
    assert "does not fit this run (it is of 2 processes, these are 1): delete it" in done.stderr
    assert lab.run({}, *TWO, "--retry-failed").returncode == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its logs open
def test_slurm_jobs_and_ray_tasks_train_in_as_many_processes(launched: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    jobs = SlurmJobs(jobs=1, cluster="debug", processes_per_run=2)
    assert outcomes_of(jobs, tmp_path, [CONFIG])[CONFIG.run_id].status == "finished"
    assert weights(tmp_path) == weights(launched)
    outcome, files = ray_tasks._train(CONFIG.model_dump(mode="json"), {}, None, 2, None)
    assert outcome.status == "finished"
    assert files["model.safetensors"] == RunFolder.of(launched, CONFIG.run_id).model_path.read_bytes()


# --- what becomes of several futures


class Death:
    """Stands for a process that died."""


def ended(future: Future[str], how: str | Exception | Death) -> None:
    if isinstance(how, str):
        future.set_result(how)
    else:
        future.set_exception(BrokenProcessPool("died") if isinstance(how, Death) else how)


def of_two(
    first: str | Exception | Death | None, second: str | Exception | Death | None, order: list[int]
) -> tuple[Future[str], int]:
    """What comes of two processes that end so, in this order; None never ends by itself. And how often the rest was killed."""
    futures: list[Future[str]] = [Future(), Future()]
    kills = 0

    def kill() -> None:
        nonlocal kills
        kills += 1
        for future in futures:
            if not future.done():
                future.set_exception(BrokenProcessPool("killed"))

    whole = together(futures, kill, grace=0.02)
    for rank in order:
        how = (first, second)[rank]
        if how is not None:
            ended(futures[rank], how)
    whole.exception(timeout=10)
    return whole, kills


@given(order=st.permutations([0, 1]))
def test_result_of_the_first_process_counts(order: list[int]) -> None:
    whole, kills = of_two("finished", "something else", order)
    assert (whole.result(), kills) == ("finished", 0)
    assert of_two("finished", Death(), order)[0].result() == "finished"


@given(order=st.permutations([0, 1]), dead=st.integers(0, 1))
def test_death_is_told_and_not_what_it_did_to_the_other(order: list[int], dead: int) -> None:
    ways: list[Exception | Death] = [RuntimeError("connection closed")] * 2
    ways[dead] = Death()
    whole, kills = of_two(*ways, order)
    assert isinstance(whole.exception(), BrokenProcessPool)
    assert kills == 0


@pytest.mark.parametrize("which", [0, 1])
def test_failure_is_told_and_the_process_that_waits_for_it_is_killed(which: int) -> None:
    problem = RuntimeError("it broke")
    ways: list[Exception | None] = [None, None]
    ways[which] = problem
    whole, kills = of_two(*ways, [0, 1])
    assert (whole.exception(), kills) == (problem, 1)


def test_first_process_that_gives_up_takes_the_others_with_it() -> None:
    whole, kills = of_two("held", None, [0])
    assert (whole.result(), kills) == ("held", 1)


def test_first_process_may_take_its_time_to_write_the_result() -> None:
    futures: list[Future[str]] = [Future(), Future()]
    whole = together(futures, lambda: pytest.fail("killed"), grace=0.02)
    futures[1].set_result("done")
    with pytest.raises(TimeoutError):
        whole.result(timeout=0.1)
    futures[0].set_result("finished")
    assert whole.result(timeout=10) == "finished"


# --- mistakes, devices


def test_values_out_of_range_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SparsebenchError, match=r"^processes_per_run=0: expected at least 1$"):
        LocalProcesses(processes_per_run=0)
    pytest.importorskip("ray")
    with pytest.raises(SparsebenchError, match=r"^gpus=0.5 with processes_per_run=2: expected 0, or one for each process$"):
        ray_tasks.RayTasks(gpus=0.5, processes_per_run=2)


def test_each_process_gets_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "cuda_devices", lambda: ["4", "5", "6"])
    places = LocalProcesses._places
    assert places(LocalProcesses(processes_per_run=2), [CONFIG], tmp_path) == (1, ["4,5"])
    assert places(LocalProcesses(), [CONFIG], tmp_path) == (3, ["4", "5", "6"])
    assert places(LocalProcesses(4), [CONFIG], tmp_path) == (4, ["4", "5", "6", "4"])
    message = r"^processes_per_run=2 and workers=2 need 4 CUDA devices: there are 3$"
    with pytest.raises(SparsebenchError, match=message):
        places(LocalProcesses(2, processes_per_run=2), [CONFIG], tmp_path)


def test_as_many_runs_at_a_time_as_there_are_cores_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "cores", lambda: 7)
    assert LocalProcesses(processes_per_run=2)._places([CONFIG], tmp_path) == (3, ())
    assert LocalProcesses(processes_per_run=8)._places([CONFIG], tmp_path) == (1, ())
