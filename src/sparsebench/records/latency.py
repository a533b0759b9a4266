"""What `latency.json` in a run's folder holds: how fast the run's network is, measured after the training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LatencyRecord"]

Milliseconds = Annotated[float, Field(gt=0.0)]


class LatencyRecord(BaseModel):
    """Times of one batch through a run's network, sparse and dense in turns, on the machine where they were measured.

    Attributes:
        weights_sha256: Of the run's record when this was measured; of other weights it tells nothing.
        batch: Examples in the batch: images, sentences.
        threads: CPU threads.
        rounds: How often each was timed.
        latency_ms: Least time through the network as `sparsebench.inference.compile_sparse` makes it, in milliseconds.
        median_latency_ms: The median of these.
        dense_latency_ms: Least time through the same network in PyTorch.
        median_dense_latency_ms: The median of these.
        sparse_layers: How many layers `compile_sparse` found faster sparse.
        layers: How many it could choose for.
        environment: Versions and machine.

    Example:
        >>> times = {"latency_ms": 0.5, "median_latency_ms": 0.6, "dense_latency_ms": 2.0, "median_dense_latency_ms": 2.5}
        >>> LatencyRecord(weights_sha256="0" * 64, batch=1, threads=2, rounds=50, **times, sparse_layers=2, layers=3).format
        1
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    weights_sha256: str
    batch: int = Field(ge=1)
    threads: int = Field(ge=1)
    rounds: int = Field(ge=1)
    latency_ms: Milliseconds
    median_latency_ms: Milliseconds
    dense_latency_ms: Milliseconds
    median_dense_latency_ms: Milliseconds
    sparse_layers: int = Field(ge=0)
    layers: int = Field(ge=0)
    environment: dict[str, str] = Field(default_factory=dict)
