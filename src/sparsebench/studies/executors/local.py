"""Runs in processes of this machine."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.records.claims import Claims, Locks
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.calibration import choose_workers, cores
from sparsebench.studies.executors.executor import (
    MOST_DEATHS,
    NO_PAUSES,
    Done,
    Outcome,
    RunFailedError,
    check_limits,
    ended_elsewhere,
    give_up,
    run_one,
)
from sparsebench.studies.executors.processes import Workers
from sparsebench.studies.executors.worker import Worker
from sparsebench.training.config import RunConfig
from sparsebench.training.devices import cuda_devices

__all__ = ["LocalProcesses"]

LOOK_SECONDS = 0.5  # how often runs are looked at that have a limit


@dataclass(frozen=True)
class LocalProcesses:
    """Trains in processes of this machine, one thread each; they live on from run to run, and one that dies is replaced.

    On CUDA (`SPARSEBENCH_DEVICE=cuda`, which is not tested) each process has a device.

    Args:
        workers: Runs at a time, at least 1. None takes as many as there are cores or devices for; where a run is one process
            without a device, it measures whether one for each core finishes more runs than one alone, and keeps the answer in
            the results folder.
        checkpoint_seconds: Seconds between the checkpoints of a run, at least 0.
        run_timeout: Seconds that a run may take from when a process begins it, above 0; one that takes longer is killed, and
            has failed. None sets no limit.
        claims: How runs are claimed.
        processes_per_run: Processes that train each run together, each with its part of every batch, at least 1. When one dies,
            all of its run end, and the run goes on from its checkpoint in new ones.

    Raises:
        SparsebenchError: A value is out of range.
    """

    workers: int | None = None
    checkpoint_seconds: float = 60.0
    run_timeout: float | None = None
    claims: Claims = field(default_factory=Locks)
    processes_per_run: int = 1

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise SparsebenchError(f"workers={self.workers}: expected at least 1")
        check_limits(self.run_timeout, self.processes_per_run)

    def run(self, configs: Sequence[RunConfig], directory: Path, done: Done, pauses: Mapping[str, int] = NO_PAUSES) -> None:
        """Train configurations in parallel processes until each has ended; see `Executor.run`."""
        workers, gpus = self._places(configs, directory)
        waiting = collections.deque(configs)
        deaths: collections.Counter[str] = collections.Counter()
        with Workers(self.processes_per_run, gpus, workers) as processes:
            under_way: dict[Future[Outcome], _UnderWay] = {}
            while waiting or under_way:
                while waiting and len(under_way) < workers:
                    config = waiting.popleft()
                    folder = RunFolder.of(directory, config.run_id, self.claims)
                    outcome = ended_elsewhere(folder, pauses.get(config.run_id))
                    if outcome is not None:
                        done(outcome)
                        continue
                    given = (config.model_dump(mode="json"), str(directory), self.checkpoint_seconds, self.claims)
                    worker, future = processes.submit(run_one, *given, pauses.get(config.run_id))
                    under_way[future] = _UnderWay(worker, config, folder, time.monotonic())
                for future in wait(under_way, None if self.run_timeout is None else LOOK_SECONDS, FIRST_COMPLETED).done:
                    run = under_way.pop(future)
                    try:
                        outcome = future.result()
                    except RunFailedError as failure:
                        processes.end(run.worker)  # its processes no longer know where the others are
                        outcome = give_up(run.folder, str(failure), failure.details)
                    except BrokenProcessPool:
                        processes.end(run.worker)
                        deaths[run.config.run_id] += 1
                        if run.overdue:
                            reason = f"it took longer than {self.run_timeout:g} s and was ended; its checkpoint stays"
                        elif deaths[run.config.run_id] == MOST_DEATHS:
                            reason = "the worker process died each time (killed, or out of memory)"
                        else:
                            waiting.appendleft(run.config)
                            continue
                        outcome = give_up(run.folder, reason)
                    else:
                        if not run.overdue:
                            processes.release(run.worker)
                    done(outcome)
                if self.run_timeout is not None:
                    _end_overdue(under_way.values(), self.run_timeout)

    def _places(self, configs: Sequence[RunConfig], directory: Path) -> tuple[int, Sequence[str]]:
        """Runs at a time, and the CUDA devices of each where there are any."""
        size = self.processes_per_run
        gpus = cuda_devices()
        if gpus:
            workers = self.workers or max(len(gpus) // size, 1)
            if size > 1 and workers * size > len(gpus):
                raise SparsebenchError(
                    f"processes_per_run={size} and workers={workers} need {workers * size} CUDA devices: there are {len(gpus)}"
                )
            return workers, [
                ",".join(gpus[(size * place + rank) % len(gpus)] for rank in range(size)) for place in range(workers)
            ]
        if self.workers is not None:
            return self.workers, ()
        if size == 1:
            return choose_workers(configs, directory), ()
        return max(cores() // (size * max(config.recipe.threads for config in configs)), 1) if configs else 1, ()


def _end_overdue(under_way: Iterable[_UnderWay], run_timeout: float) -> None:
    for run in under_way:
        ready = run.worker.ready_since()
        if ready is not None and not run.overdue and time.monotonic() - max(ready, run.given) >= run_timeout:
            run.overdue = True
            run.worker.kill()


@dataclass
class _UnderWay:
    worker: Worker
    config: RunConfig
    folder: RunFolder
    given: float
    overdue: bool = False
