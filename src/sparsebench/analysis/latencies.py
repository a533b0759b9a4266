"""What the measured latencies of a study are of, where they can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from sparsebench.analysis.statistics import mean
from sparsebench.analysis.wording import count

__all__ = ["Measured", "measured_latencies"]


@dataclass(frozen=True)
class Measured:
    """How the networks of a study were timed: examples of a batch, CPU threads; milliseconds of the same networks in PyTorch."""

    batch: int
    threads: int
    dense_ms: float

    @property
    def title(self) -> str:
        """Of the axis."""
        batch = f"{count(self.batch, 'example')}, {count(self.threads, 'thread')}"
        return f"measured latency, ms ({batch}; in PyTorch {self.dense_ms:.3g})"


def measured_latencies(results: pd.DataFrame) -> Measured | None:
    """How latencies were measured; None where none were, or where batches or threads differ, so that they cannot be compared.

    Args:
        results: The table `results`.
    """
    rows = results.dropna(subset=["latency_ms", "dense_latency_ms"]).drop_duplicates("run_id")
    kinds = rows[["latency_batch", "latency_threads"]].drop_duplicates()
    if len(kinds) != 1:
        return None
    batch, threads = (int(value) for value in kinds.iloc[0])
    return Measured(batch, threads, mean(float(value) for value in rows["dense_latency_ms"]))
