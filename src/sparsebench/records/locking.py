"""Locks between processes of one machine; the operating system lets go of them however a process ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sparsebench.errors import SparsebenchError

__all__ = ["locked"]


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[bool]:
    """Hold the lock `path.lock`, beside what it is about.

    Args:
        path: What the lock is about.
        timeout: Seconds to wait for another process; without end where negative.

    Yields:
        True where the lock is ours, False where another process kept it.

    Raises:
        SparsebenchError: The lock cannot be written.
    """
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise SparsebenchError(f"cannot write {path}.lock: {error.strerror or error}") from error
    try:
        yield True
    finally:
        lock.release()
