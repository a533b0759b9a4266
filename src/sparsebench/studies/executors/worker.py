"""What trains one run after another: a process, or several that train each run together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from sparsebench.training.start_up import set_up_process

__all__ = ["Worker", "together"]

T = TypeVar("T")

GRACE_SECONDS = 5.0  # for the others to end by themselves, once the run can no longer go on


class Worker:
    """Processes of this machine that are given the same work, and live on from one piece of it to the next.

    Each is a pool of its own: one that dies takes no other worker's run with it. Where there are several, they find each other
    through a store in this process, as those of torchrun do through its agent's, and all end when one of them fails.

    Args:
        processes: How many.
        environment: Variables for all of them, set before they load anything.
    """

    def __init__(self, processes: int = 1, environment: dict[str, str] | None = None) -> None:
        self._store, joining = _rendezvous(processes)
        # A fresh interpreter for each: forking a process that has used torch's thread pools can hang.
        context = multiprocessing.get_context("spawn")
        self._members = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_begin_process, initargs=((environment or {}) | own,))
            for own in joining
        ]
        self._ready: list[float] = []
        for member in self._members:
            member.submit(_load).add_done_callback(lambda _: self._ready.append(time.monotonic()))

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Give all processes the same work; see `together` for what comes of it.

        Raises:
            BrokenProcessPool: One of them is dead; then all are.
        """
        try:
            futures = [member.submit(work, *arguments) for member in self._members]
        except BrokenProcessPool:
            self.kill()
            raise
        return futures[0] if len(futures) == 1 else together(futures, self.kill)

    def ready_since(self) -> float | None:
        """When the processes had loaded what every run needs, by `time.monotonic`; None before."""
        return max(self._ready) if len(self._ready) == len(self._members) else None

    def kill(self) -> None:
        """End the processes at once, whatever they do; what they were given ends with BrokenProcessPool."""
        for process in self._processes():
            process.kill()

    def end(self) -> None:
        """Kill the processes and wait until they are dead: until then they may still seem to hold their run."""
        self.kill()
        for member in self._members:
            member.shutdown(wait=True)

    def dismiss(self, at_once: bool) -> None:
        """Let the processes end with what they do, or where they are."""
        processes = self._processes()
        for member in self._members:
            member.shutdown(wait=not at_once, cancel_futures=True)
        if at_once:
            for process in processes:
                process.terminate()

    def _processes(self) -> list[multiprocessing.Process]:
        # The pool forgets them when it is shut down.
        return [process for member in self._members for process in list((member._processes or {}).values())]


def together(futures: Sequence[Future[T]], kill: Callable[[], None], grace: float = GRACE_SECONDS) -> Future[T]:
    """One future for the same work in several processes, that is done when all of them are.

    Its result is that of the first process. Once that one has ended, or another one with an exception, nobody can go on for long,
    since they wait for each other: what has not ended after `grace` seconds is killed. Where the first process gave no result and
    one had died by itself, the exception is BrokenProcessPool, for those of the others come of it; else it is the earliest.

    Args:
        futures: Of the processes, the first one's first.
        kill: Kills them all; those that are busy then end with BrokenProcessPool.
        grace: Seconds.
    """
    whole: Future[T] = Future()
    whole.set_running_or_notify_cancel()
    lock = threading.Lock()
    ended: list[Future[T]] = []
    counted: list[Future[T]] = []  # those that ended before we killed the others
    killing = threading.Timer(grace, lambda: _kill_rest())
    killing.daemon = True

    def _kill_rest() -> None:
        with lock:
            if len(ended) == len(futures):
                return
            counted[:] = ended
        kill()

    def one_ended(future: Future[T]) -> None:
        with lock:
            ended.append(future)
            last = len(ended) == len(futures)
            hopeless = future is futures[0] or future.cancelled() or future.exception() is not None
            if hopeless and not last and killing.ident is None:
                killing.start()
            if last and not counted:
                counted[:] = ended
        if last:
            killing.cancel()
            _settle(whole, futures[0], counted)

    for future in futures:
        future.add_done_callback(one_ended)
    return whole


def _settle(whole: Future[T], first: Future[T], counted: Sequence[Future[T]]) -> None:
    if not first.cancelled() and first.exception() is None:
        whole.set_result(first.result())
        return
    problems = [BrokenProcessPool("cancelled") if one.cancelled() else one.exception() for one in counted]
    dead = [problem for problem in problems if isinstance(problem, BrokenProcessPool)]
    earliest = next((problem for problem in problems if problem is not None), None)
    whole.set_exception(dead[0] if dead else earliest or BrokenProcessPool("killed"))


def _rendezvous(processes: int) -> tuple[Any, list[dict[str, str]]]:
    """A store that several processes meet at, which lives as long as the object; and the variables that tell each who it is."""
    if processes == 1:
        return None, [{}]
    from torch import distributed

    store = distributed.TCPStore(  # type: ignore[attr-defined] # it is documented all the same
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    everyone = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        # The store is in the process that started them, and not in the first of them.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    return store, [everyone | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _begin_process(environment: dict[str, str]) -> None:
    os.environ.update(environment)
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
    from sparsebench.training.devices import devices
    from sparsebench.training.warm_up import warm_up

    devices()  # the processes of a worker find each other
    warm_up()
