"""Time and memory of what runs in this process. Imports torch alone: peers run it in environments of their own."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from networks import Network, loss_of


class Training:
    """A network in training, a step at a time."""

    def __init__(self, network: Network, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = network.build()
        self.batch = network.batch()

    def step(self, optimizer: torch.optim.Optimizer, penalty: Callable[[], torch.Tensor] | None = None) -> None:
        """One step: forward, penalty, backward, optimizer."""
        optimizer.zero_grad()
        loss = loss_of(self.model, self.batch)
        if penalty is not None:
            loss = loss + penalty()
        loss.backward()
        optimizer.step()


def interleaved(
    steps: Mapping[str, Callable[[], None]], repetitions: int, seconds: float, warm_up: int = 2
) -> dict[str, list[float]]:
    """Time several steps in turns, so that whatever else the machine does falls on all of them alike.

    Args:
        steps: What is timed, by name.
        repetitions: At most so many rounds.
        seconds: Stop after the round in which this time is over, but not before three rounds.
        warm_up: Rounds before, not counted.

    Returns:
        Seconds of every repetition, by name.
    """
    for _ in range(warm_up):
        for step in steps.values():
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    names, begin = list(steps), time.perf_counter()
    for repetition in range(repetitions):
        # Back and forth: what comes first in a round finds other caches than what comes last.
        for name in names if repetition % 2 == 0 else reversed(names):
            times[name].append(elapsed(steps[name]))
        if repetition >= 2 and time.perf_counter() - begin > seconds:
            break
    return times


def elapsed(action: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def spread(times: list[float]) -> dict[str, float]:
    """Median, least, greatest and number of times given in seconds; in milliseconds."""
    return {
        "median": statistics.median(times) * 1e3,
        "min": min(times) * 1e3,
        "max": max(times) * 1e3,
        "repetitions": len(times),
    }


def ratios(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Each median with its least and greatest, and as a multiple of the median of `base`."""
    reference = statistics.median(times[base])
    return {name: spread(values) | {"ratio": statistics.median(values) / reference} for name, values in times.items()}


class PeakMemory:
    """How far the memory of this process rises above what it held (Linux).

    Give the process `MALLOC_MMAP_THRESHOLD_=65536`: otherwise the allocator keeps what was freed, and a second use of it does not
    show.
    """

    def __init__(self) -> None:
        # "5" sets the high-water mark back to what is held now: man 5 proc, clear_refs.
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")

    def rise(self) -> int:
        """Bytes of the highest point above what was held when this object was made."""
        return _status("VmHWM") - self.before

    def held(self) -> int:
        """Bytes held now above what was held then."""
        return _status("VmRSS") - self.before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")


def saved_bytes(state: Any) -> int:
    """Size of the file that torch.save would write."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getbuffer().nbytes
