"""What a study takes before it is run: runs, time, training FLOPs, disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsebench.records.run_folder import RUNS, RunFolder
from sparsebench.studies.sample_runs import Kind, Sample, kind_of
from sparsebench.training.config import RunConfig

__all__ = ["Cost", "Forecast", "forecast_runs", "forecast_unproposed"]


@dataclass(frozen=True)
class Cost:
    """What some runs take: seconds in one process, theoretical training operations, bytes of their folders."""

    seconds: float = 0.0
    flops: float = 0.0
    file_bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """The two together."""
        return Cost(self.seconds + other.seconds, self.flops + other.flops, self.file_bytes + other.file_bytes)


@dataclass(frozen=True)
class Forecast:
    """What the runs of one method, or of several, take.

    Attributes:
        runs: Number of runs.
        finished: Those that are finished.
        failed: Those that failed; they are run again only when asked.
        cost: Of the runs that are still to do; of those among them that could be measured.
        unmeasured: Runs to do that could not be measured.
        stopped: Those that a search stopped early.
        unproposed: Those among them that a search is still to propose: so many at most.
    """

    runs: int = 0
    finished: int = 0
    failed: int = 0
    cost: Cost = Cost()
    unmeasured: int = 0
    stopped: int = 0
    unproposed: int = 0

    @property
    def todo(self) -> int:
        """Runs that have not ended."""
        return self.runs - self.finished - self.failed - self.stopped

    def __add__(self, other: Forecast) -> Forecast:
        """The two together."""
        return Forecast(
            self.runs + other.runs,
            self.finished + other.finished,
            self.failed + other.failed,
            self.cost + other.cost,
            self.unmeasured + other.unmeasured,
            self.stopped + other.stopped,
            self.unproposed + other.unproposed,
        )


def forecast_runs(
    configs: Sequence[RunConfig], directory: Path, samples: Mapping[Kind, tuple[Sample, ...]]
) -> dict[str, Forecast]:
    """Add up what the runs of each method take.

    Args:
        configs: The runs.
        directory: The results folder, which may not exist yet.
        samples: As `sample_runs` gives them; empty where nothing was measured. Between two sparsities, values are interpolated.

    Returns:
        The forecasts by method, in order of appearance.
    """
    runs = directory / RUNS
    begun = {path.name for path in runs.iterdir()} if runs.is_dir() else set()
    totals: dict[str, Forecast] = {}
    for config in configs:
        status = RunFolder.of(directory, config.run_id).status() if begun and config.run_id in begun else "new"
        if status == "finished":
            one = Forecast(runs=1, finished=1)
        elif status == "failed":
            one = Forecast(runs=1, failed=1)
        elif status == "stopped":
            one = Forecast(runs=1, stopped=1)
        elif found := samples.get(kind_of(config)):
            one = Forecast(runs=1, cost=_cost(config, found))
        else:
            one = Forecast(runs=1, unmeasured=1)
        totals[config.method] = totals.get(config.method, Forecast()) + one
    return totals


def forecast_unproposed(
    unproposed: Mapping[str, int], configs: Sequence[RunConfig], samples: Mapping[Kind, tuple[Sample, ...]]
) -> dict[str, Forecast]:
    """Add up what the runs take that a search is still to propose, each as much as the others of its method on average.

    Args:
        unproposed: How many there are of each method.
        configs: The runs that are known.
        samples: As `sample_runs` gives them.

    Returns:
        The forecasts by method.
    """
    totals: dict[str, Forecast] = {}
    for method, number in unproposed.items():
        known = [config for config in configs if config.method == method]
        costs = [_cost(config, samples[kind_of(config)]) for config in known if samples.get(kind_of(config))]
        if costs:
            all_of_them = sum(costs[1:], costs[0])
            share = number / len(costs)
            cost = Cost(share * all_of_them.seconds, share * all_of_them.flops, share * all_of_them.file_bytes)
            totals[method] = Forecast(runs=number, cost=cost, unproposed=number)
        else:
            totals[method] = Forecast(runs=number, unmeasured=number, unproposed=number)
    return totals


def _cost(config: RunConfig, found: tuple[Sample, ...]) -> Cost:
    low, high, sparsity = found[0], found[-1], config.target_sparsity
    if (
        sparsity is None
        or low.target_sparsity is None
        or high.target_sparsity is None
        or low.target_sparsity == high.target_sparsity
    ):
        share = 0.0
    else:
        share = (sparsity - low.target_sparsity) / (high.target_sparsity - low.target_sparsity)

    def between(first: float, last: float) -> float:
        return first + share * (last - first)

    steps = config.recipe.steps
    return Cost(
        seconds=between(low.step_seconds, high.step_seconds) * steps + between(low.other_seconds, high.other_seconds),
        flops=between(low.step_flops, high.step_flops) * steps,
        file_bytes=between(low.file_bytes, high.file_bytes),
    )
