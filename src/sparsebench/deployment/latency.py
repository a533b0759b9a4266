"""How fast the networks of finished runs are: sparse and dense in turns, kept beside each run."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from sparsebench.deployment.networks import FinishedNetwork, finished_network
from sparsebench.errors import SparsebenchError
from sparsebench.inference import compile_sparse, kernel_path
from sparsebench.records.latency import LatencyRecord
from sparsebench.records.locking import locked
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.run_states import finished_states

__all__ = [
    "LatencySettings",
    "LatencySummary",
    "RunToMeasure",
    "measure_latency",
    "measure_runs",
    "runs_to_measure",
    "take_turns",
]

LEAST_ROUNDS, MOST_ROUNDS = 5, 2000


class LatencySettings(NamedTuple):
    """What is measured.

    Attributes:
        batch: Examples in the batch, at least 1.
        threads: CPU threads, at least 1.
        seconds: How long each network is timed, at least so many rounds as are needed to tell.
    """

    batch: int = 16
    threads: int = 1
    seconds: float = 1.0


class RunToMeasure(NamedTuple):
    """A finished run whose network was not yet measured so, and the hash of its weights."""

    folder: RunFolder
    weights_sha256: str


class LatencySummary(NamedTuple):
    """How many runs were measured now, how many had been before, and why the others could not be, by run id."""

    measured: int
    present: int
    failed: Mapping[str, str]


def measure_runs(
    directory: Path,
    settings: LatencySettings,
    *,
    again: bool = False,
    begin: Callable[[int], None] = lambda todo: None,
    done: Callable[[], None] = lambda: None,
) -> LatencySummary:
    """Measure the networks of all finished runs of a results folder that were not measured with these settings before.

    Each measurement is written when it is made, so that what is interrupted goes on from there. Tables and reports have it from
    then on.

    Args:
        directory: A folder written by `sparsebench study run` or `sparsebench train`.
        settings: Batch, threads, seconds.
        again: Also those that were measured so before, on another machine or with another release.
        begin: Told how many are to be measured.
        done: Called after each.

    Raises:
        SparsebenchError: The folder holds no finished run with a network, a setting is out of range, or another process
            measures in the folder.
    """
    for name, value in (("batch", settings.batch), ("threads", settings.threads)):
        if value < 1:
            raise SparsebenchError(f"{name}={value}: expected at least 1")
    if not settings.seconds > 0:
        raise SparsebenchError(f"seconds={settings.seconds:g}: expected more than 0")
    names = list(finished_states(directory))
    if not names:
        raise SparsebenchError(f"{directory} holds no finished run of this package: there is no network to measure")
    with locked(directory / "latency", timeout=0) as ours:
        if not ours:
            raise SparsebenchError(f"another process measures in {directory}: both at once would disturb each other")
        failed: dict[str, str] = {}
        todo = runs_to_measure(directory, settings, again)
        begin(len(todo))
        for run in todo:
            try:
                run.folder.write_latency(measure_latency(finished_network(run.folder.path), settings, run.weights_sha256))
            except SparsebenchError as error:
                failed[run.folder.path.name] = str(error)
            done()
    return LatencySummary(len(todo) - len(failed), len(names) - len(todo), failed)


def runs_to_measure(directory: Path, settings: LatencySettings, again: bool = False) -> list[RunToMeasure]:
    """The finished runs whose weights were not measured with this batch and so many threads; all with `again`.

    Raises:
        SparsebenchError: A record cannot be read.
    """
    todo = []
    for name in finished_states(directory):
        folder = RunFolder.of(directory, name)
        weights, present = folder.read_result().weights_sha256, folder.read_latency()
        asked = (weights, settings.batch, settings.threads)
        if again or present is None or (present.weights_sha256, present.batch, present.threads) != asked:
            todo.append(RunToMeasure(folder, weights))
    return todo


def measure_latency(network: FinishedNetwork, settings: LatencySettings, weights_sha256: str) -> LatencyRecord:
    """Time one batch of validation examples through a network, as `compile_sparse` makes it and in PyTorch, in turns.

    Images are classified; sentences are translated, with the beam of the test split.

    Args:
        network: The network.
        settings: Batch, threads, seconds.
        weights_sha256: Of its run's record.
    """
    use = network.use_of(network.workload.example_input(settings.batch))
    with _threads(settings.threads), torch.no_grad():
        compiled = compile_sparse(network.model, use)
        times = take_turns({"dense": lambda: use(network.model), "sparse": lambda: use(compiled)}, settings.seconds)
    choices: Any = compiled.sparse_choices
    runs_sparse = choices.layers()
    return LatencyRecord(
        weights_sha256=weights_sha256,
        batch=settings.batch,
        threads=settings.threads,
        rounds=len(times["sparse"]),
        latency_ms=1e3 * min(times["sparse"]),
        median_latency_ms=1e3 * median(times["sparse"]),
        dense_latency_ms=1e3 * min(times["dense"]),
        median_dense_latency_ms=1e3 * median(times["dense"]),
        sparse_layers=sum(runs_sparse.values()),
        layers=len(runs_sparse),
        environment=_environment(),
    )


def take_turns(ways: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each way, taking turns back and forth, so that what else the machine does falls on all of them.

    Args:
        ways: What to time, by name.
        seconds: About how long all of it lasts; at least five rounds.

    Example:
        >>> times = take_turns({"nothing": lambda: None, "sum": lambda: sum(range(100))}, seconds=0.01)
        >>> len(times["sum"]) == len(times["nothing"]) >= 5
        True
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    begin = time.perf_counter()
    for round_ in range(MOST_ROUNDS):
        for name in ways if round_ % 2 == 0 else reversed(list(ways)):
            start = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - start)
        if round_ + 1 >= LEAST_ROUNDS and time.perf_counter() - begin >= seconds:
            break
    return times


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch works with so many threads; the caller's number is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _environment() -> dict[str, str]:
    return {
        "sparsebench": version("sparsebench"),
        "torch": torch.__version__,
        "kernels": kernel_path(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
    }
