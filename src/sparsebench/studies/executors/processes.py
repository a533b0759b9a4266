"""Worker processes of this machine: one thread each, alive from run to run, replaced when one dies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, TypeVar

from sparsebench.studies.executors.worker import Worker
from sparsebench.training.start_up import retains_memory
from sparsebench.workloads.images.loading import RUNS_AT_A_TIME

__all__ = ["Workers"]

T = TypeVar("T")


class Workers:
    """Workers that live on from run to run.

    Args:
        processes: Of each worker.
        gpus: For each worker that may be at work at a time, the CUDA devices that it sees, as `CUDA_VISIBLE_DEVICES` names
            them; all see the same where left out.
        at_a_time: How many workers are at work at a time, which the processes that decode images share the machine's cores by.

    Raises:
        SparsebenchError: What the environment asks of workers is wrong.
    """

    def __init__(self, processes: int = 1, gpus: Sequence[str] = (), at_a_time: int = 1) -> None:
        retains_memory()  # a mistake in it is told here, not by processes that die of it
        self._size = processes
        self._gpus = list(gpus)
        self._shared = {RUNS_AT_A_TIME: str(at_a_time)}
        self._all: dict[Worker, str | None] = {}
        self._idle: list[Worker] = []
        self._environment = _one_thread_environment()

    def submit(self, work: Callable[..., T], *arguments: Any) -> tuple[Worker, Future[T]]:
        """Give work to an idle worker, or to a new one where none is idle and alive."""
        while self._idle:
            worker = self._idle.pop()
            try:
                return worker, worker.submit(work, *arguments)
            except BrokenProcessPool:
                self.end(worker)
        gpu = self._gpus.pop(0) if self._gpus else None
        worker = Worker(self._size, self._shared | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}))
        self._all[worker] = gpu
        return worker, worker.submit(work, *arguments)

    def release(self, worker: Worker) -> None:
        """Say that a worker has done its work."""
        self._idle.append(worker)

    def end(self, worker: Worker) -> None:
        """Do without a worker, of which nothing lives when this returns."""
        worker.end()
        gpu = self._all.pop(worker)
        if gpu is not None:
            self._gpus.append(gpu)

    def __enter__(self) -> Workers:
        self._environment.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._all:
            worker.dismiss(at_once=error is not None)
        self._environment.__exit__(None, None, None)


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
