"""A few real steps on this machine: how many processes pay."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsebench.atomic import atomic_file, make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.processes import Workers
from sparsebench.training.config import RunConfig
from sparsebench.training.loop import Progress
from sparsebench.training.run import train

__all__ = ["choose_workers", "cores"]

MEASURED_SECONDS = 2.0
PAYS = 1.05  # a second process must bring more than what two measurements of the same thing differ by


class _EnoughError(Exception):
    """Measured long enough."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_workers(configs: Sequence[RunConfig], directory: Path) -> int:
    """How many processes to use on this machine: one for each core, or one alone where that finishes as many runs.

    Steps of the first configuration are timed in one process, then in one for each core at once, for about two seconds each. The
    answer is kept in `directory/workers.json` for this number of cores. Fewer than four runs for each core
    are not worth the measurement: each core gets a process.

    Args:
        configs: What is to be trained.
        directory: The results folder.
    """
    if not configs:
        return 1
    most = max(cores() // configs[0].recipe.threads, 1)
    if most == 1 or len(configs) < 4 * most:
        return min(most, len(configs))
    path = directory / "workers.json"
    try:
        kept = json.loads(path.read_bytes())
        if kept["processes"] == most:
            return most if kept["pays"] else 1
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or not by this release
    one, together = _steps_per_second(configs[0], most)
    pays = together > PAYS * one
    make_directory(directory)
    with atomic_file(path) as file:
        answer = {"processes": most, "pays": pays, "steps_per_second_of_one": one, "steps_per_second_of_all": together}
        file.write(json.dumps(answer, indent=1).encode())
    return most if pays else 1


def _steps_per_second(config: RunConfig, most: int) -> tuple[float, float]:
    """Steps a second of one process, and of `most` together."""
    given = config.model_dump(mode="json")
    with Workers() as workers:

        def together(number: int, seconds: float) -> float:
            begun = [workers.submit(_timed_steps, given, seconds) for _ in range(number)]
            total = sum(future.result() for _, future in begun)
            for worker, _ in begun:
                workers.release(worker)
            return total

        together(most, 0.1)  # imports and data
        return together(1, MEASURED_SECONDS), together(most, MEASURED_SECONDS)


def _timed_steps(config: dict[str, Any], seconds: float) -> float:
    """Steps a second of a real run that is broken off."""
    times: list[float] = []

    def observe(_: Progress) -> None:
        times.append(time.perf_counter())
        if times[-1] - times[0] > seconds:
            raise _EnoughError

    # A run that diverges tells its speed all the same.
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError, SparsebenchError):
        train(RunConfig.model_validate(config), RunFolder(Path(folder) / "run"), observe=observe)
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
