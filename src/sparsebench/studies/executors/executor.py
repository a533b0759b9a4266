"""The Executor protocol, and what every executor does with one run."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

from sparsebench.errors import SparsebenchError
from sparsebench.records.claims import ClaimLostError, Claims
from sparsebench.records.run_folder import RunFolder
from sparsebench.training.config import RunConfig
from sparsebench.training.devices import devices
from sparsebench.training.loop import Progress
from sparsebench.training.run import train_claimed, train_claimed_to

__all__ = [
    "MOST_DEATHS",
    "NO_PAUSES",
    "DiskFullError",
    "Done",
    "Executor",
    "Outcome",
    "RunFailedError",
    "check_limits",
    "disk_is_full",
    "ended_elsewhere",
    "give_up",
    "run_one",
]

MOST_DEATHS = 3  # of its worker, before a run is taken for the cause


class DiskFullError(SparsebenchError):
    """Nothing more can be written: no run's fault, and no other run will fare better."""


class RunFailedError(SparsebenchError):
    """A process of several failed at a run. Whether that is the run's failure is for who sees all of them to say.

    Attributes:
        details: The traceback.
    """

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(reason, details)
        self.details = details

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Outcome:
    """How one run ended.

    Attributes:
        run_id: Which.
        status: "finished" or "failed"; "paused" where it was to pause and has come so far; "held" where another process is at it;
            "elsewhere" where another one finished it.
        reason: Why it failed, in a line.
    """

    run_id: str
    status: Literal["finished", "failed", "paused", "held", "elsewhere"]
    reason: str = ""


Done = Callable[[Outcome], None]
NO_PAUSES: Mapping[str, int] = MappingProxyType({})


class Executor(Protocol):
    """Trains configurations somewhere. How many at once, for how long and where is what each executor is made with."""

    @property
    def claims(self) -> Claims:
        """How its processes, and those of other drivers, keep off each other's runs."""

    def run(self, configs: Sequence[RunConfig], directory: Path, done: Done, pauses: Mapping[str, int] = NO_PAUSES) -> None:
        """Train configurations until each has ended one way or the other, or has come to where it is to pause.

        Args:
            configs: What to train, each of them once.
            directory: The results folder; run folders lie in `directory/runs`, whoever trained them.
            done: Called in this process, once for each configuration. A run that another process holds is told as "held" and
                not waited for.
            pauses: After how many steps runs are to pause, by their ids; the others are trained to the end.

        Raises:
            SparsebenchError: Nothing can be trained there (no such cluster, the extra is not installed).
            DiskFullError: The disk of the results folder is full. What is under way is stopped.
        """


def ended_elsewhere(folder: RunFolder, pause_at: int | None) -> Outcome | None:
    """How another process ended a run since the study began, or brought it to its pause; None where it is still to do."""
    status = folder.status()
    if status == "finished":
        return Outcome(folder.path.name, "elsewhere")
    if status == "failed":
        return Outcome(folder.path.name, "failed", folder.read_failure())
    return Outcome(folder.path.name, "paused") if pause_at is not None and pause_at in folder.read_rungs() else None


def check_limits(run_timeout: float | None, processes_per_run: int) -> None:
    """Refuse what no executor can do.

    Raises:
        SparsebenchError: A value is out of range.
    """
    if run_timeout is not None and not run_timeout > 0:
        raise SparsebenchError(f"run_timeout={run_timeout:g}: expected seconds above 0")
    if processes_per_run < 1:
        raise SparsebenchError(f"processes_per_run={processes_per_run}: expected at least 1")


def run_one(
    config: dict[str, Any], directory: str, checkpoint_seconds: float, claims: Claims, pause_at: int | None = None
) -> Outcome:
    """Claim one configuration and train it in this process; what it raises becomes the run's failure.

    Where several processes train together, each calls this; the first one claims the run.

    Args:
        config: The configuration.
        directory: The results folder.
        checkpoint_seconds: Seconds between checkpoints.
        claims: How the run is claimed.
        pause_at: After how many steps it is to pause; None to train it to the end.

    Raises:
        DiskFullError: The disk is full.
        RunFailedError: This process of several failed, perhaps because another one died.
        SparsebenchError: No run can be trained here.
    """
    where = devices()
    checked = RunConfig.model_validate(config)
    folder = RunFolder.of(Path(directory), checked.run_id, claims)

    def stop_when_lost(_: Progress) -> None:
        claims.check(folder.path)

    with folder.claim() if where.is_main else contextlib.nullcontext(False) as ours:
        # What the process that held it until now may have ended.
        ended = where.from_main(ended_elsewhere(folder, pause_at) if ours else Outcome(checked.run_id, "held"))
        if ended is not None:
            return ended
        try:
            if pause_at is None:
                train_claimed(checked, folder, checkpoint_seconds=checkpoint_seconds, observe=stop_when_lost)
            else:
                train_claimed_to(checked, folder, pause_at, checkpoint_seconds=checkpoint_seconds, observe=stop_when_lost)
        except ClaimLostError:
            return Outcome(checked.run_id, "held")
        except Exception as error:  # whatever a run raises is that run's failure, and the others go on
            line = str(error) if isinstance(error, SparsebenchError) else f"{type(error).__name__}: {error}"
            reason = line.strip().partition("\n")[0]
            if disk_is_full(error):
                raise DiskFullError(reason) from error
            if where.processes > 1:
                raise RunFailedError(reason, traceback.format_exc()) from error
            return _fail(folder, reason, traceback.format_exc())
    return Outcome(checked.run_id, "finished" if pause_at is None else "paused")


def give_up(folder: RunFolder, reason: str, details: str = "") -> Outcome:
    """Let a run whose process is gone be failed, unless another process took it up already."""
    with folder.claim() as ours:
        return (ended_elsewhere(folder, None) or _fail(folder, reason, details)) if ours else Outcome(folder.path.name, "held")


def _fail(folder: RunFolder, reason: str, details: str) -> Outcome:
    """The outcome of a run that failed; why is kept in its folder where that can be written."""
    with contextlib.suppress(SparsebenchError):
        folder.write_failure(reason, details)
    return Outcome(folder.path.name, "failed", reason)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, says so."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return disk_is_full(error.__cause__) or (error.__cause__ is not error.__context__ and disk_is_full(error.__context__))
