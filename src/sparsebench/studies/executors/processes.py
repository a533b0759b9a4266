"""Worker processes of this machine: one thread each, alive from run to run, replaced when one dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, TypeVar

from sparsebench.training.start_up import retains_memory, set_up_process

__all__ = ["Workers"]

T = TypeVar("T")


class Workers:
    """Processes that live on from run to run. Each is a pool of its own: one that dies takes no other's run with it."""

    def __init__(self) -> None:
        self._all: list[ProcessPoolExecutor] = []
        self._idle: list[ProcessPoolExecutor] = []
        self._ready: dict[ProcessPoolExecutor, float] = {}
        retains_memory()  # a mistake in it is told here, not by processes that die of it
        self._environment = _one_thread_environment()

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
        worker.submit(_load).add_done_callback(lambda _: self._ready.setdefault(worker, time.monotonic()))
        return worker, worker.submit(work, *arguments)

    def ready_since(self, worker: ProcessPoolExecutor) -> float | None:
        """When a process had loaded what every run needs, by `time.monotonic`; None before."""
        return self._ready.get(worker)

    def release(self, worker: ProcessPoolExecutor) -> None:
        """Say that a process has done its work."""
        self._idle.append(worker)

    def kill(self, worker: ProcessPoolExecutor) -> None:
        """End a process at once, whatever it does; what it was given ends with BrokenProcessPool."""
        for process in _processes(worker):
            process.kill()

    def __enter__(self) -> Workers:
        self._environment.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._all:
            processes = _processes(worker)
            worker.shutdown(wait=error is None, cancel_futures=True)
            if error is not None:
                for process in processes:
                    process.terminate()
        self._environment.__exit__(None, None, None)


def _processes(worker: ProcessPoolExecutor) -> list[multiprocessing.Process]:
    return list((worker._processes or {}).values())


def _begin_worker() -> None:
    set_up_process()
    # Ctrl-C reaches the whole process group; the driver decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _load() -> None:
    from sparsebench.training.warm_up import warm_up

    warm_up()


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
