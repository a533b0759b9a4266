"""Local worker processes: one thread each, alive from run to run, replaced when one dies."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.training.config import RunConfig
from sparsebench.training.run import RunHeldError, train

__all__ = ["Outcome", "run_all"]

MOST_DEATHS = 3  # of its worker, before a run is taken for the cause

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """How one run ended: "held" where another process is at it; `reason` says why one failed."""

    run_id: str
    status: Literal["finished", "failed", "held"]
    reason: str = ""


def run_all(
    configs: Sequence[RunConfig], directory: Path, workers: int, checkpoint_seconds: float, done: Callable[[Outcome], None]
) -> None:
    """Train configurations in parallel processes until each has ended one way or the other.

    Args:
        configs: What to train.
        directory: The results folder.
        workers: Number of processes, at least 1.
        checkpoint_seconds: Seconds between the checkpoints of a run.
        done: Called in this process as each run ends.
    """
    waiting = collections.deque(configs)
    deaths: collections.Counter[str] = collections.Counter()
    with _one_thread_environment(), _Workers() as processes:
        under_way: dict[Future[Outcome], tuple[ProcessPoolExecutor, RunConfig]] = {}
        while waiting or under_way:
            while waiting and len(under_way) < workers:
                config = waiting.popleft()
                worker, future = processes.submit(_run, config.model_dump(mode="json"), str(directory), checkpoint_seconds)
                under_way[future] = worker, config
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                worker, config = under_way.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    deaths[config.run_id] += 1
                    if deaths[config.run_id] < MOST_DEATHS:
                        waiting.appendleft(config)
                        continue
                    outcome = Outcome(config.run_id, "failed", "the worker process died each time (killed, or out of memory)")
                    _keep_failure(RunFolder(directory / "runs" / config.run_id), outcome.reason, "")
                else:
                    processes.release(worker)
                done(outcome)


def _run(config: dict[str, Any], directory: str, checkpoint_seconds: float) -> Outcome:
    """Train one configuration in a worker."""
    checked = RunConfig.model_validate(config)
    folder = RunFolder(Path(directory) / "runs" / checked.run_id)
    try:
        train(checked, folder, checkpoint_seconds=checkpoint_seconds)
    except RunHeldError:
        return Outcome(checked.run_id, "held")
    except Exception as error:  # whatever a run raises is that run's failure, and the others go on
        line = str(error) if isinstance(error, SparsebenchError) else f"{type(error).__name__}: {error}"
        reason = line.strip().partition("\n")[0]
        _keep_failure(folder, reason, traceback.format_exc())
        return Outcome(checked.run_id, "failed", reason)
    return Outcome(checked.run_id, "finished")


def _keep_failure(folder: RunFolder, reason: str, details: str) -> None:
    with contextlib.suppress(SparsebenchError):  # a full disk keeps us from writing why
        folder.write_failure(reason, details)


class _Workers:
    """Processes that live on from run to run. Each is a pool of its own: one that dies takes no other's run with it."""

    def __init__(self) -> None:
        self._all: list[ProcessPoolExecutor] = []
        self._idle: list[ProcessPoolExecutor] = []

    def submit(self, work: Callable[..., T], *arguments: Any) -> tuple[ProcessPoolExecutor, Future[T]]:
        """Give work to an idle process, or to a new one where none is idle and alive."""
        while self._idle:
            worker = self._idle.pop()
            with contextlib.suppress(BrokenProcessPool):
                return worker, worker.submit(work, *arguments)
        # A fresh interpreter for each worker: forking a process that has used torch's thread pools can hang.
        context = multiprocessing.get_context("spawn")
        worker = ProcessPoolExecutor(1, mp_context=context, initializer=_begin_worker)
        self._all.append(worker)
        return worker, worker.submit(work, *arguments)

    def release(self, worker: ProcessPoolExecutor) -> None:
        """Say that a process has done its work."""
        self._idle.append(worker)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._all:
            processes = list((worker._processes or {}).values())
            worker.shutdown(wait=error is None, cancel_futures=True)
            if error is not None:
                for process in processes:
                    process.terminate()


def _begin_worker() -> None:
    # Ctrl-C reaches the whole process group; the driver decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def _one_thread_environment() -> Iterator[None]:
    """Thread pools of native libraries are sized when they load, from the environment."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
