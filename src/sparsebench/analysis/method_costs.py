"""What training costs with each method, measured in runs and set against dense training."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from sparsebench.analysis.frontiers import DENSE

__all__ = ["MethodCost", "method_costs"]


@dataclass(frozen=True)
class MethodCost:
    """The cost of a method's runs.

    Args:
        method: Its name.
        runs: How many runs the figures come from.
        step_seconds: Processor time of one training step: the median over runs, in seconds.
        time_ratio: `step_seconds` over that of dense training; None where no dense run was timed.
        memory_bytes: How far the memory of the process rose in training: the median over runs; None where unknown.
        memory_ratio: `memory_bytes` over that of dense training; None where either is unknown.
    """

    method: str
    runs: int
    step_seconds: float
    time_ratio: float | None
    memory_bytes: float | None
    memory_ratio: float | None


def method_costs(results: pd.DataFrame) -> dict[str, MethodCost]:
    """The cost of every method that has timed runs.

    Processor time, because other programs of the machine lengthen it less than the clock's; per step, because runs may differ in
    length; the median, because one disturbed run would move a mean.

    Args:
        results: The table `results`.

    Returns:
        The costs by method, in order of their names.
    """
    runs = results.drop_duplicates("run_id").dropna(subset=["processor_seconds", "steps"])
    step_seconds = (runs["processor_seconds"] / runs["steps"]).groupby(runs["method"]).median()
    memory = runs.groupby("method")["peak_memory_bytes"].median()
    found = {}
    for method in sorted(str(name) for name in step_seconds.index):
        found[method] = MethodCost(
            method=method,
            runs=int((runs["method"] == method).sum()),
            step_seconds=float(step_seconds[method]),
            time_ratio=_ratio(step_seconds, method),
            memory_bytes=None if pd.isna(memory[method]) else float(memory[method]),
            memory_ratio=_ratio(memory, method),
        )
    return found


def _ratio(values: pd.Series[float], method: str) -> float | None:
    if DENSE not in values.index or pd.isna(values[DENSE]) or pd.isna(values[method]) or not values[DENSE]:
        return None
    return float(values[method] / values[DENSE])
