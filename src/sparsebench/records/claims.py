"""Who may work on a run: the Claims protocol, and locks between the processes of one machine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sparsebench.errors import SparsebenchError
from sparsebench.records.locking import locked

__all__ = ["ClaimLostError", "Claims", "Locks"]


class ClaimLostError(SparsebenchError):
    """Another process took over what this one was working on."""


class Claims(Protocol):
    """How processes keep off each other's runs. Objects of it are pickled to workers."""

    def hold(self, path: Path) -> AbstractContextManager[bool]:
        """Claim `path` while the block runs: True where it is ours, False where another process holds it."""

    def check(self, path: Path) -> None:
        """Raise ClaimLostError where `path`, which this process held, was taken over."""


@dataclass(frozen=True)
class Locks:
    """File locks: exact on one machine, for the operating system lets go of them however a process ends."""

    def hold(self, path: Path) -> AbstractContextManager[bool]:
        """Hold the file lock of `path`, or learn at once that another process does."""
        return locked(path, timeout=0)

    def check(self, path: Path) -> None:
        """A lock is never taken over."""
