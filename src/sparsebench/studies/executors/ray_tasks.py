"""Runs as tasks of a Ray cluster, whose machines need not share a disk: the files of a run come back to this process."""

from __future__ import annotations

import collections
import contextlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsebench.atomic import atomic_file, make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.claims import Claims, Locks
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import RunRecord
from sparsebench.studies.executors.executor import (
    MOST_DEATHS,
    NO_PAUSES,
    DiskFullError,
    Done,
    Outcome,
    check_limits,
    disk_is_full,
    ended_elsewhere,
    give_up,
    run_one,
)
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.training.config import RunConfig
from sparsebench.training.parent import ancestors
from sparsebench.training.start_up import set_up_process

__all__ = ["RayTasks"]

LOOK_SECONDS = 5.0  # how often the cluster is asked whether it has grown
Files = dict[str, bytes]


@dataclass(frozen=True)
class RayTasks:
    """Trains each run in a Ray task and writes the files that it returns into the results folder.

    This process holds the claims: to other drivers of the study a run in the cluster is a run of this machine. A run whose node
    or worker process dies is begun anew, since its checkpoint died with it; at the third death it has failed. Nodes need
    sparsebench, and the data sets (`$SPARSEBENCH_DATA`) of workloads that read files. Tasks ask for as many CPUs as a run has
    threads.

    Args:
        address: Of the cluster: "auto", "HOST:PORT" or "ray://HOST:PORT"; None takes $RAY_ADDRESS or starts one on this machine.
            A Ray that this process is connected to already is used as it is.
        gpus: GPUs for each run, at least 0; a fraction lets runs share one. With 0, runs train on processors.
        run_timeout: Seconds that a run may take, above 0; then each has a process of its own, which takes seconds to start.
            None sets no limit.
        claims: How runs are claimed against other drivers.
        processes_per_run: Processes on one node that train each run together, at least 1; a task asks for as many CPUs as they
            have threads. On GPUs each has one: `gpus` must be the same number.

    Raises:
        SparsebenchError: A value is out of range, or Ray is not installed.
    """

    address: str | None = None
    gpus: float = 0.0
    run_timeout: float | None = None
    claims: Claims = field(default_factory=Locks)
    processes_per_run: int = 1

    def __post_init__(self) -> None:
        _ray()
        if not (math.isfinite(self.gpus) and self.gpus >= 0):
            raise SparsebenchError(f"gpus={self.gpus:g}: expected at least 0")
        check_limits(self.run_timeout, self.processes_per_run)
        if self.processes_per_run > 1 and self.gpus not in (0, self.processes_per_run):
            raise SparsebenchError(
                f"gpus={self.gpus:g} with processes_per_run={self.processes_per_run}: expected 0, or one for each process"
            )

    def run(self, configs: Sequence[RunConfig], directory: Path, done: Done, pauses: Mapping[str, int] = NO_PAUSES) -> None:
        """Train configurations in tasks until each has ended; see `Executor.run`."""
        ray = _connected(self.address)
        task = ray.remote(_train)
        waiting = collections.deque(configs)
        under_way: dict[Any, _UnderWay] = {}
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self._places(ray, self._cores(waiting[0])):
                    config = waiting.popleft()
                    run = _UnderWay(config, RunFolder.of(directory, config.run_id, self.claims), pauses.get(config.run_id))
                    ended = run.begin()
                    if ended is not None:
                        done(ended)
                        continue
                    try:
                        under_way[self._submit(task, run)] = run
                    except SparsebenchError as error:  # what it goes on from is not there
                        run.close()
                        done(give_up(run.folder, str(error)))
                for ready in ray.wait(list(under_way), num_returns=1, timeout=LOOK_SECONDS)[0] if under_way else ():
                    with under_way.pop(ready) as run:
                        outcome = _outcome(ray, ready, run.folder)
                    done(
                        outcome or give_up(run.folder, "the worker process or its node died each time (killed, or out of memory)")
                    )
        finally:  # interrupted, or the disk is full
            for reference, run in under_way.items():
                ray.cancel(reference, force=True)
                run.close()

    def _submit(self, task: Any, run: _UnderWay) -> Any:
        given = run.config.model_dump(mode="json")
        # What it goes on from: runs that it has its masks from, and its own checkpoint where it paused.
        folders = (*ancestors(run.config, run.folder.path.parent), run.folder)
        earlier = {folder.path.name: _files(folder.path) for folder in folders}
        options = {
            "max_retries": MOST_DEATHS - 1,
            "num_cpus": self._cores(run.config),
            "num_gpus": self.gpus,
            "runtime_env": {"env_vars": {"SPARSEBENCH_DEVICE": "cuda" if self.gpus else "cpu"}},
        }
        return task.options(**options).remote(given, earlier, self.run_timeout, self.processes_per_run, run.pause_at)

    def _cores(self, config: RunConfig) -> int:
        return config.recipe.threads * self.processes_per_run

    def _places(self, ray: Any, cores: int) -> int:
        """How many runs the cluster has room for as it is now; one at least, since it may be about to grow."""
        resources = ray.cluster_resources()
        places = resources.get("CPU", 0.0) // cores
        if self.gpus:
            places = min(places, resources.get("GPU", 0.0) // self.gpus)
        return max(int(places), 1)


@dataclass
class _UnderWay:
    """A run that this process holds while a task trains it."""

    config: RunConfig
    folder: RunFolder
    pause_at: int | None
    _claim: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def begin(self) -> Outcome | None:
        """Claim the run; how it ended where there is nothing to train."""
        if not self._claim.enter_context(self.folder.claim()):
            self.close()
            return Outcome(self.config.run_id, "held")
        ended = ended_elsewhere(self.folder, self.pause_at)
        if ended is not None:
            self.close()
            return ended
        self.folder.create(self.config.model_dump(mode="json"))
        return None

    def __enter__(self) -> _UnderWay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._claim.close()


def _outcome(ray: Any, reference: Any, folder: RunFolder) -> Outcome | None:
    """What became of a run, whose files are in its folder then; None where its task died each time."""
    try:
        outcome, files = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Runs keep what they raise to themselves: this is the node's fault.
        line = str(error.cause).strip().partition("\n")[0]
        if isinstance(error.cause, DiskFullError):
            raise DiskFullError(f"the disk of a node is full: {line}") from error
        raise SparsebenchError(f"a node of the Ray cluster cannot train: {type(error.cause).__name__}: {line}") from error
    except ray.exceptions.RayError:
        return None
    try:
        _write(folder, files)
    except SparsebenchError as error:
        if disk_is_full(error):
            raise DiskFullError(str(error)) from error
        raise
    answer: Outcome = outcome
    return answer


def _write(folder: RunFolder, files: Files) -> None:
    record = files.pop("result.json", None)
    for name, content in files.items():
        if name != "config.json":
            with atomic_file(folder.path / name) as file:
                file.write(content)
    if record is not None:
        folder.write_result(RunRecord.model_validate_json(record))


def _train(
    config: dict[str, Any],
    earlier: Mapping[str, Files],
    run_timeout: float | None,
    processes_per_run: int,
    pause_at: int | None,
) -> tuple[Outcome, Files]:
    """In a task: train in a folder of this node, and give back what lies in it."""
    set_up_process()
    checked = RunConfig.model_validate(config)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="sparsebench-") as place:
        directory = Path(place)
        for run_id, files in earlier.items():
            folder = RunFolder.of(directory, run_id).path
            make_directory(folder)
            for name, content in files.items():
                (folder / name).write_bytes(content)
        if run_timeout is None and processes_per_run == 1:
            outcomes.append(run_one(config, place, math.inf, Locks(), pause_at))
        else:
            local = LocalProcesses(1, math.inf, run_timeout, processes_per_run=processes_per_run)
            pauses = NO_PAUSES if pause_at is None else {checked.run_id: pause_at}
            local.run([checked], directory, outcomes.append, pauses)
        return outcomes[0], _files(RunFolder.of(directory, checked.run_id).path)


def _files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _connected(address: str | None) -> Any:
    ray = _ray()
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = str(error).strip().partition("\n")[0]
            raise SparsebenchError(f"no Ray cluster at address {address!r}: {line}") from error
    return ray


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SparsebenchError(f"Ray clusters need ray ({error}): pip install 'sparsebench[ray]'") from error
    return ray
