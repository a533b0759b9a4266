"""How the weights of a network are distributed, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from sparsebench.errors import SparsebenchError
from sparsebench.records.schema import WeightHistogram

__all__ = ["BINS", "weight_histograms"]

BINS = 50
"""Bins of every histogram. An even number, so that zero is the edge between two of them."""

_AT_ONCE = 2**20  # weights: counting must not need more memory than a training step


@torch.no_grad()
def weight_histograms(weights: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, WeightHistogram]:
    """Histograms of the weights that are not zero, from minus to plus the largest magnitude of each tensor.

    Args:
        weights: Tensors by name, of any floating-point type, on any device.
        names: Which of them.

    Returns:
        A histogram of `BINS` bins for each name, in their order. A weight on the edge between two bins belongs to the upper one.

    Raises:
        SparsebenchError: A weight is NaN or infinite.

    Example:
        >>> found = weight_histograms({"a": torch.tensor([-2.0, 0.0, 0.5, 2.0])}, ["a"])["a"]
        >>> found.low, found.high, sum(found.counts), found.counts[0], found.counts[31], found.counts[-1]
        (-2.0, 2.0, 3, 1, 1, 1)
    """
    return {name: _histogram(name, weights[name]) for name in names}


def _histogram(name: str, weights: torch.Tensor) -> WeightHistogram:
    largest = float(weights.abs().max()) if weights.numel() else 0.0
    if not np.isfinite(largest):
        raise SparsebenchError(f"weight {name!r} holds NaN or an infinity: the training diverged; try a smaller learning_rate")
    counts = np.zeros(BINS, dtype=np.int64)
    if largest > 0.0:
        for part in torch.split(weights.detach().flatten(), _AT_ONCE):
            values = part.double().cpu().numpy()
            counts += np.histogram(values[values != 0.0], BINS, (-largest, largest))[0]
    return WeightHistogram(low=-largest, high=largest, counts=tuple(counts.tolist()))
