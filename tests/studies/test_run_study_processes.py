"""Studies in real worker processes: what dies is replaced, and nobody else is harmed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from fragile_studies import Lab, make_lab, wait_for, workers_of

SEEDS = [0, 1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = make_lab(tmp_path_factory.mktemp("calm"), SEEDS)
    done = lab.run({})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"6 runs planned: 6 finished now, 0 were done already; results: {lab.results}\n"
    return lab


@pytest.fixture(scope="module")
def harried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, subprocess.CompletedProcess[str]]:
    """Seed 0 is so slow that it is under way while its neighbour dies again and again."""
    lab = make_lab(tmp_path_factory.mktemp("harried"), SEEDS)
    return lab, lab.run({"0": "slow", "1": "kill", "2": "kill once", "3": "raise"})


def test_undisturbed_runs_train_every_step_once(calm: Lab) -> None:
    for seed in SEEDS:
        assert calm.steps(seed) == list(range(40))


def test_runs_that_go_wrong_are_reported_in_a_line_each(harried: tuple[Lab, subprocess.CompletedProcess[str]]) -> None:
    lab, done = harried
    assert done.returncode == 1
    assert sorted(done.stderr.splitlines()) == sorted(
        [
            f"run {lab.folder(1).name} failed: the worker process died each time (killed, or out of memory)",
            f"run {lab.folder(3).name} failed: RuntimeError: it broke",
        ]
    )
    summary = "4 finished now, 0 were done already, 2 failed (run them again with --retry-failed)"
    assert done.stdout == f"6 runs planned: {summary}; results: {lab.results}\n"


def test_failed_run_keeps_line_and_traceback(harried: tuple[Lab, subprocess.CompletedProcess[str]]) -> None:
    lab, _ = harried
    failure = (lab.folder(3) / "failure.txt").read_text()
    assert failure.startswith("RuntimeError: it broke\n\nTraceback (most recent call last):")
    assert "fragile_workload.py" in failure
    assert (lab.folder(1) / "failure.txt").read_text().startswith("the worker process died each time")
    assert not list(lab.results.glob("runs/*/.*"))


def test_run_that_kills_its_worker_is_given_up_after_three_deaths(
    harried: tuple[Lab, subprocess.CompletedProcess[str]],
) -> None:
    lab, _ = harried
    assert lab.steps(1).count(3) == 3


def test_neighbours_of_dying_workers_are_not_disturbed(harried: tuple[Lab, subprocess.CompletedProcess[str]], calm: Lab) -> None:
    lab, _ = harried
    for seed in (0, 4, 5):
        assert lab.steps(seed) == list(range(40))
    assert lab.steps(2) == [0, 1, 2, 3, *range(3, 40)]
    expected = calm.table()
    expected = expected[expected["seed"].isin([0, 2, 4, 5])].reset_index(drop=True)
    pd.testing.assert_frame_equal(lab.table(), expected)


@pytest.mark.slow
def test_second_call_runs_nothing_and_a_third_only_what_failed(
    harried: tuple[Lab, subprocess.CompletedProcess[str]], calm: Lab, tmp_path: Path
) -> None:
    lab = Lab(tmp_path / "lab")
    shutil.copytree(harried[0].path, lab.path)
    logs = {file.name: file.read_text() for file in (lab.path / "log").iterdir()}
    again = lab.run({})
    assert again.returncode == 1
    summary = "0 finished now, 4 were done already, 2 failed (run them again with --retry-failed)"
    assert again.stdout == f"6 runs planned: {summary}; results: {lab.results}\n"
    assert {file.name: file.read_text() for file in (lab.path / "log").iterdir()} == logs
    retried = lab.run({}, "--retry-failed")
    assert (retried.returncode, retried.stderr) == (0, "4 of 6 runs are done already\n")
    assert "2 finished now, 4 were done already;" in retried.stdout
    assert {name for name, log in logs.items() if (lab.path / "log" / name).read_text() != log} == {"1", "3"}
    pd.testing.assert_frame_equal(lab.table(), calm.table())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers through /proc")
def test_killed_worker_is_replaced_and_killed_driver_takes_its_workers_with_it(tmp_path: Path, calm: Lab) -> None:
    lab = make_lab(tmp_path, SEEDS)
    everything_slow = {str(seed): "slow" for seed in SEEDS}
    driver = subprocess.Popen(lab.command(), env=lab.environment(everything_slow), stderr=subprocess.PIPE, text=True)
    try:
        assert driver.stderr is not None
        wait_for(lambda: len(list(lab.results.glob("runs/*/checkpoint.pt"))) == 2)
        first = workers_of(driver.pid)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        wait_for(lambda: list(lab.results.glob("runs/*/result.json")))
        wait_for(lambda: len(workers_of(driver.pid)) == 2 and workers_of(driver.pid) != first)
        second = workers_of(driver.pid)
        assert first[0] not in second
        driver.kill()
        driver.wait(10)
        wait_for(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in second), 20.0)
        assert "Traceback" not in driver.stderr.read()
    finally:
        driver.kill()
        driver.wait(10)
        assert driver.stderr is not None
        driver.stderr.close()
    before = len(list(lab.results.glob("runs/*/result.json")))
    assert 0 < before < 6
    done = lab.run({})
    assert done.returncode == 0, done.stderr
    assert f"{6 - before} finished now, {before} were done already;" in done.stdout
    pd.testing.assert_frame_equal(lab.table(), calm.table())
    assert not list(lab.results.glob("runs/*/.*"))


@pytest.mark.slow
def test_run_that_hangs_is_ended_at_its_limit_and_the_others_go_on(tmp_path: Path, calm: Lab) -> None:
    lab = make_lab(tmp_path, SEEDS)
    done = lab.run({"0": "hang"}, "--run-timeout", "20")
    assert done.returncode == 1
    assert done.stderr == f"run {lab.folder(0).name} failed: it took longer than 20 s and was ended; its checkpoint stays\n"
    assert "5 finished now, 0 were done already, 1 failed" in done.stdout
    assert lab.steps(0) == [0, 1, 2, 3]
    assert lab.run({}, "--retry-failed").returncode == 0
    assert lab.steps(0) == [0, 1, 2, 3, *range(3, 40)]
    pd.testing.assert_frame_equal(lab.table(), calm.table())


@pytest.mark.slow
def test_full_disk_stops_the_study_in_a_line_and_it_goes_on_when_there_is_room(tmp_path: Path, calm: Lab) -> None:
    lab = make_lab(tmp_path, SEEDS)
    stopped = lab.run({"2": "full disk"})
    assert (stopped.returncode, stopped.stdout) == (2, "")
    assert stopped.stderr == f"error: cannot write {lab.folder(2)}/checkpoint.pt: No space left on device\n"
    assert not list(lab.results.rglob("failure.txt"))
    finished = {file.parent: file.read_bytes() for file in lab.results.glob("runs/*/result.json")}
    assert len(finished) < 6
    assert lab.run({}).returncode == 0
    for folder, content in finished.items():
        assert (folder / "result.json").read_bytes() == content
    pd.testing.assert_frame_equal(lab.table(), calm.table())
    assert not list(lab.results.glob("runs/*/.*"))


@pytest.mark.parametrize("claims", [[], pytest.param(["--shared-disk"], marks=pytest.mark.slow)], ids=["locks", "leases"])
def test_two_drivers_at_once_share_a_study_without_doing_a_run_twice(tmp_path: Path, calm: Lab, claims: list[str]) -> None:
    lab = make_lab(tmp_path, SEEDS)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = lab.environment({str(seed): "slow" for seed in SEEDS})
    drivers = [subprocess.Popen(lab.command("--workers", "1", *claims), env=environment, **pipes) for _ in range(2)]
    told = [driver.communicate(timeout=240) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    shares = [int(re.search(r"(\d+) finished now", out)[1]) for out, _ in told]
    assert sum(shares) == 6
    assert all(0 < share < 6 for share in shares), told
    for seed in SEEDS:
        assert lab.steps(seed) == list(range(40))
    pd.testing.assert_frame_equal(lab.table(), calm.table())
    assert not list(lab.results.glob("leases/*"))


@pytest.mark.slow
def test_interrupted_study_says_how_to_go_on(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, [0, 1])
    driver = subprocess.Popen(
        lab.command(),
        env=lab.environment({"0": "slow", "1": "slow"}),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in a shell's background, their children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: list(lab.results.glob("runs/*/checkpoint.pt")))
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=60)
    assert (driver.returncode, out) == (130, "")
    assert err == "error: interrupted; the same command goes on from the last checkpoint\n"
