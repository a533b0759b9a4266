"""Noisy rows of a weight that is looked up: only those are sampled that are asked for."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from sparsebench.sparsifiers.stochastic.distribution import Distribution
from sparsebench.sparsifiers.stochastic.operations import LookUp

__all__ = ["sample_rows"]


def sample_rows(
    distribution: Distribution, operation: LookUp, input: torch.Tensor, weight: torch.Tensor, auxiliary: torch.Tensor
) -> torch.Tensor:
    """Rows of one sample of the whole weight: where a row is asked for twice, it is the same both times.

    Args:
        distribution: Samples weights.
        operation: Looks rows up.
        input: Indices of rows, of any shape.
        weight: [rows, features].
        auxiliary: The auxiliary parameter of each weight.

    Returns:
        A tensor of the shape [*input.shape, features].
    """
    rows, of_rows = operation(input, weight), operation(input, auxiliary)
    if input.numel() < weight.shape[0]:
        noise, index = distribution.noise_like(of_rows.detach().flatten(0, -2)), _numbered(input)
    else:
        noise, index = distribution.noise_like(auxiliary.detach()), input
    return distribution.sample_weight(rows, of_rows, F.embedding(index, noise))


def _numbered(indices: torch.Tensor) -> torch.Tensor:
    """Numbers below the number of indices in place of the indices, equal where they are equal.

    As `torch.unique` would give, but of a shape that is known beforehand, which torch.compile needs.
    """
    ordered, order = indices.flatten().sort()
    numbers = F.pad((ordered[1:] != ordered[:-1]).cumsum(0), (1, 0))[: len(ordered)]
    return torch.empty_like(order).scatter_(0, order, numbers).view(indices.shape)
