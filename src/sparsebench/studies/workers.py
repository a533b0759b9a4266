"""Local worker processes: one thread each, alive from run to run, replaced when one dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.training.config import RunConfig
from sparsebench.training.run import RunHeldError, train

__all__ = ["Outcome", "run_all"]

# A run that was under way so often when a worker died is taken for the cause.
MOST_DEATHS = 3


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
    left = {config.run_id: config for config in configs}
    deaths = dict.fromkeys(left, 0)
    while left:
        with _one_thread_environment(), _pool(min(workers, len(left))) as pool:
            futures: dict[Future[Outcome], str] = {
                pool.submit(_run, config.model_dump(mode="json"), str(directory), checkpoint_seconds): run_id
                for run_id, config in left.items()
            }
            for future in as_completed(futures):
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    continue
                left.pop(outcome.run_id)
                done(outcome)
        for run_id in list(left):
            folder = RunFolder(directory / "runs" / run_id)
            if folder.status() == "started":
                deaths[run_id] += 1
            if deaths[run_id] >= MOST_DEATHS:
                reason = "the worker process died each time (killed, or out of memory)"
                folder.write_failure(reason, "")
                left.pop(run_id)
                done(Outcome(run_id, "failed", reason))


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
        with contextlib.suppress(SparsebenchError):  # a full disk keeps us from writing why
            folder.write_failure(reason, traceback.format_exc())
        return Outcome(checked.run_id, "failed", reason)
    return Outcome(checked.run_id, "finished")


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # A fresh interpreter for each worker: forking a process that has used torch's thread pools can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    pool.shutdown()


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
