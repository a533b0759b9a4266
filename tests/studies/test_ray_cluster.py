"""Studies on a real Ray cluster of two worker nodes on this machine, one of which is killed."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from executor_runs import outcomes_of, pause_and_go_on, weights

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors import ray_tasks
from sparsebench.studies.executors.executor import DiskFullError, Outcome
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.studies.executors.ray_tasks import RayTasks
from sparsebench.studies.run_study import run_study
from sparsebench.studies.study_file import read_study
from sparsebench.training.config import RunConfig, resolve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'sparsebench[ray]'"),
    # Ray leaves sockets and the output of its processes open.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

STUDY = """
study: tickets
workload: digits
seeds: 1
sparsities: [0.5, 0.9]
settings: {steps: 40}
methods:
  magnitude: {begin: 0.1, end: 0.5, frequency: 4 steps}
stages:
  tickets:
    of: grid
    take: magnitude
    methods:
      lottery-ticket: {}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def configurations(steps: int, seeds: int) -> list[RunConfig]:
    return [resolve("digits", "dense", {}, {"steps": steps}, seed) for seed in range(seeds)]


def files(directory: Path) -> dict[str, list[str]]:
    return {path.name: sorted(file.name for file in path.iterdir()) for path in (directory / "runs").iterdir() if path.is_dir()}


def test_study_with_tickets_ends_as_on_one_machine(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "tickets.yaml").write_text(STUDY)
    study = read_study(str(tmp_path / "tickets.yaml"))
    summary = run_study(study, tmp_path / "ray", RayTasks())
    assert (summary.planned, summary.finished, summary.failed, summary.left) == (4, 4, {}, 0)
    run_study(study, tmp_path / "local", LocalProcesses(1))
    assert weights(tmp_path / "ray") == weights(tmp_path / "local")
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    assert run_study(study, tmp_path / "ray", RayTasks()).finished_before == 4


def test_runs_pause_and_go_on_to_the_same_bits(cluster: Any, tmp_path: Path) -> None:
    pause_and_go_on(RayTasks(), tmp_path / "ray", configurations(20, 2))
    outcomes_of(LocalProcesses(1), tmp_path / "local", configurations(20, 2))
    assert weights(tmp_path / "ray") == weights(tmp_path / "local")


def test_failures_and_held_runs_are_told_and_the_others_go_on(cluster: Any, tmp_path: Path) -> None:
    diverging = resolve("digits", "dense", {}, {"steps": 20, "learning_rate": 1e30})
    held, free = configurations(20, 2)
    with RunFolder.of(tmp_path, held.run_id).claim() as ours:
        assert ours
        # A lock of this process would be ours again in the same thread.
        found: list[dict[str, Outcome]] = []
        thread = threading.Thread(target=lambda: found.append(outcomes_of(RayTasks(), tmp_path, [diverging, held, free])))
        thread.start()
        thread.join()
    assert {name: outcome.status for name, outcome in found[0].items()} == {
        diverging.run_id: "failed",
        held.run_id: "held",
        free.run_id: "finished",
    }
    folder = RunFolder.of(tmp_path, diverging.run_id)
    assert "the training diverged" in found[0][diverging.run_id].reason
    assert (folder.status(), folder.read_failure()) == ("failed", found[0][diverging.run_id].reason)


def test_run_beyond_its_limit_fails_alone(cluster: Any, tmp_path: Path) -> None:
    endless, short = resolve("digits", "dense", {}, {"steps": 10_000_000}), configurations(20, 1)[0]
    outcomes = outcomes_of(RayTasks(run_timeout=20.0), tmp_path, [endless, short])
    assert "took longer than 20 s" in outcomes[endless.run_id].reason
    assert outcomes[short.run_id].status == "finished"


def test_full_disk_of_the_driver_stops_the_study(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: RunFolder, files: Any) -> None:
        raise SparsebenchError(f"cannot write {folder.path}: No space left on device") from OSError(28, "No space left on device")

    monkeypatch.setattr(ray_tasks, "_write", full)
    config = configurations(20, 1)[0]
    with pytest.raises(DiskFullError, match="No space left on device"):
        outcomes_of(RayTasks(), tmp_path, [config])
    monkeypatch.undo()
    assert outcomes_of(RayTasks(), tmp_path, [config])[config.run_id].status == "finished"


def test_killed_node_loses_no_run(cluster: Any, tmp_path: Path) -> None:
    configs = configurations(500, 4)
    outcomes: dict[str, Outcome] = {}
    trained = threading.Thread(target=lambda: outcomes.update(outcomes_of(RayTasks(), tmp_path / "ray", configs)))
    trained.start()
    while len(list((tmp_path / "ray" / "runs").glob("*/config.json"))) < 2:
        time.sleep(0.05)
    time.sleep(1.0)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    trained.join()
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}
    outcomes_of(LocalProcesses(2), tmp_path / "local", configs)
    assert weights(tmp_path / "ray") == weights(tmp_path / "local")


def test_run_whose_worker_dies_each_time_has_failed(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tasks, "_train", lambda *_: os._exit(1))
    config = configurations(20, 1)[0]
    assert outcomes_of(RayTasks(), tmp_path, [config])[config.run_id].status == "failed"
    assert "died each time" in RunFolder.of(tmp_path, config.run_id).read_failure()


def test_node_that_cannot_train_is_named(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'sparsebench'")

    monkeypatch.setattr(ray_tasks, "_train", lacking)
    with pytest.raises(SparsebenchError, match=r"^a node of the Ray cluster cannot train: ModuleNotFoundError: No module"):
        outcomes_of(RayTasks(), tmp_path, configurations(20, 1))


@pytest.mark.parametrize(("field", "value"), [("gpus", -1.0), ("gpus", float("inf")), ("run_timeout", 0.0)])
def test_values_out_of_range_are_one_line(field: str, value: float) -> None:
    with pytest.raises(SparsebenchError, match=f"^{field}={value:g}: expected "):
        RayTasks(**{field: value})
