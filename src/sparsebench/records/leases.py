"""Claims between machines that share a disk: files that their holder renews, and others follow when it no longer does."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.records.claims import ClaimLostError
from sparsebench.records.locking import locked

__all__ = ["Leases", "disk_time"]


def disk_time(folder: Path) -> float:
    """The clock of the disk that `folder` lies on, in seconds: what it stamps a new file with.

    Machines that share a disk need not agree on the time; a file's age by the disk's own clock is the same for all of them.
    """
    probe = folder / f".clock.{secrets.token_hex(8)}"
    try:
        with probe.open("xb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)


@dataclass
class Leases:
    """Leases with a heartbeat, beside file locks for the processes of one machine.

    The leases of `FOLDER/runs/NAME` are the files `FOLDER/leases/NAME/1`, `2`, ...; the one with the highest number counts. Its
    holder touches it every `heartbeat` seconds. One that was not touched for `expiry` seconds, or that a process of this machine
    left behind, is followed by making the next number, which the disk allows to one process only. Nothing is renamed or replaced,
    so there is no moment without a holder. A holder that was stopped for longer (a suspended machine) finds at its next heartbeat
    that it was followed, and gives up at the next `check`.

    Args:
        heartbeat: Seconds between two touches.
        expiry: Seconds without a touch after which a lease is over; several times `heartbeat`, more than what the disk may stall.
        clock: Tells the time of the disk that a folder lies on, in seconds.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp()) / "runs" / "one"
        >>> run.parent.mkdir()
        >>> with Leases().hold(run) as ours, Leases().hold(run) as theirs:
        ...     ours, theirs
        (True, False)
    """

    heartbeat: float = 10.0
    expiry: float = 60.0
    clock: Callable[[Path], float] = disk_time
    _lost: set[Path] = field(default_factory=set, init=False, repr=False)

    @contextlib.contextmanager
    def hold(self, path: Path) -> Iterator[bool]:
        """Hold the lease of `path`, or learn at once that another process does.

        Raises:
            SparsebenchError: The lease cannot be written.
        """
        with locked(path, timeout=0) as ours:
            try:
                lease = _take(path, self._is_over) if ours else None
            except OSError as error:
                raise SparsebenchError(f"cannot write the lease of {path}: {error.strerror or error}") from error
            if lease is None:
                yield False
                return
            ended = threading.Event()
            renewer = threading.Thread(target=self._renew, args=(path, lease, ended), daemon=True)
            renewer.start()
            try:
                yield True
            finally:
                ended.set()
                renewer.join()
                if path in self._lost:
                    self._lost.discard(path)
                else:
                    lease.give_back()

    def check(self, path: Path) -> None:
        """Raise where the lease of `path` that this process held was followed by another's.

        Raises:
            ClaimLostError: The message names what is lost.
        """
        if path in self._lost:
            raise ClaimLostError(f"{path} was taken over by another process, because this one gave no sign of life for too long")

    def _is_over(self, lease: Path) -> bool:
        with lease.open("rb") as file:  # opening asks the server: a network disk may remember old times of a file
            boot, touched = file.read().decode().partition(" ")[0], os.fstat(file.fileno()).st_mtime
        # No process of this machine holds it: the file lock is ours.
        return (boot != "" and boot == _boot()) or self.clock(lease.parent) - touched > self.expiry

    def _renew(self, path: Path, lease: _Lease, ended: threading.Event) -> None:
        renewed = time.monotonic()
        while not ended.wait(self.heartbeat):
            try:
                lost = not lease.renew()
                renewed = time.monotonic()
            except OSError:  # the disk stalls: it may come back before others think that we are gone
                lost = time.monotonic() - renewed > self.expiry
            if lost:
                self._lost.add(path)
                return


@dataclass(frozen=True)
class _Lease:
    """A lease that this process made, known by what no other lease says."""

    file: Path
    text: str

    def renew(self) -> bool:
        """Touch it; False where it is no longer ours, or was followed."""
        try:
            if self.file.read_text() != self.text:
                return False
            os.utime(self.file)
            return max(_numbers(self.file.parent), default=0) <= int(self.file.name)
        except FileNotFoundError:
            return False

    def give_back(self) -> None:
        """Remove it and those that it followed: these first, so that at no time one that is over seems to be the latest."""
        with contextlib.suppress(OSError):  # a disk that is gone: others follow when the lease is over
            for number in sorted(_numbers(self.file.parent)):
                if number <= int(self.file.name):
                    (self.file.parent / str(number)).unlink(missing_ok=True)
            self.file.parent.rmdir()  # refused where somebody made the next one already


def _take(path: Path, is_over: Callable[[Path], bool]) -> _Lease | None:
    """Make the next lease, where there is none or the latest is over; None where somebody holds it."""
    folder = path.parent.with_name("leases") / path.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        latest = max(_numbers(folder), default=0)
        if latest and not is_over(folder / str(latest)):
            return None
        lease = _Lease(folder / str(latest + 1), f"{_boot()} {secrets.token_hex(8)}")
        with lease.file.open("x") as file:
            file.write(lease.text)
        # Between our look and our file another may have been made, held, followed and given back.
        if max(_numbers(folder), default=0) != latest + 1:
            lease.file.unlink(missing_ok=True)
            return None
    except (FileExistsError, FileNotFoundError):
        if folder.is_file():
            raise
        return None  # made or given back just now, the folder even while we made it: whoever asks again learns which
    return lease


def _numbers(folder: Path) -> list[int]:
    return [int(file.name) for file in folder.iterdir() if file.name.isdecimal()]


def _boot() -> str:
    """What tells this machine since its start from all others; empty where that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
