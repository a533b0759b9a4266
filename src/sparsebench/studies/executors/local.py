"""Runs in processes of this machine."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.records.claims import Claims, Locks
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.calibration import choose_workers
from sparsebench.studies.executors.executor import MOST_DEATHS, NO_PAUSES, Done, Outcome, ended_elsewhere, give_up, run_one
from sparsebench.studies.executors.processes import Workers
from sparsebench.training.config import RunConfig

__all__ = ["LocalProcesses"]

LOOK_SECONDS = 0.5  # how often runs are looked at that have a limit


@dataclass(frozen=True)
class LocalProcesses:
    """Trains in processes of this machine, one thread each; they live on from run to run, and one that dies is replaced.

    Args:
        workers: Number of processes, at least 1; None measures whether one for each core finishes more runs than one alone, and
            keeps the answer in the results folder.
        checkpoint_seconds: Seconds between the checkpoints of a run, at least 0.
        run_timeout: Seconds that a run may take from when a process begins it, above 0; one that takes longer is killed, and
            has failed. None sets no limit.
        claims: How runs are claimed.

    Raises:
        SparsebenchError: A value is out of range.
    """

    workers: int | None = None
    checkpoint_seconds: float = 60.0
    run_timeout: float | None = None
    claims: Claims = field(default_factory=Locks)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise SparsebenchError(f"workers={self.workers}: expected at least 1")
        if self.run_timeout is not None and not self.run_timeout > 0:
            raise SparsebenchError(f"run_timeout={self.run_timeout:g}: expected seconds above 0")

    def run(self, configs: Sequence[RunConfig], directory: Path, done: Done, pauses: Mapping[str, int] = NO_PAUSES) -> None:
        """Train configurations in parallel processes until each has ended; see `Executor.run`."""
        workers = self.workers or choose_workers(configs, directory)
        waiting = collections.deque(configs)
        deaths: collections.Counter[str] = collections.Counter()
        with Workers() as processes:
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
                    except BrokenProcessPool:
                        run.worker.shutdown(wait=True)  # until it is dead, it may still seem to hold its run
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
                    _end_overdue(under_way.values(), self.run_timeout, processes)


def _end_overdue(under_way: Iterable[_UnderWay], run_timeout: float, processes: Workers) -> None:
    for run in under_way:
        ready = processes.ready_since(run.worker)
        if ready is not None and not run.overdue and time.monotonic() - max(ready, run.given) >= run_timeout:
            run.overdue = True
            processes.kill(run.worker)


@dataclass
class _UnderWay:
    worker: ProcessPoolExecutor
    config: RunConfig
    folder: RunFolder
    given: float
    overdue: bool = False
