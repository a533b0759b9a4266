"""A layer with one sample of its whole weight; where rows are looked up, only those are sampled that are asked for."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from sparsebench.sparsifiers.stochastic.distribution import Distribution
from sparsebench.sparsifiers.stochastic.operations import LookUp, Operation

__all__ = ["with_sampled_weight"]


def with_sampled_weight(
    distribution: Distribution,
    operation: Operation,
    input: torch.Tensor,
    weight: torch.Tensor,
    auxiliary: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The operation's output for one sample of the whole weight: a row that is looked up twice is the same both times.

    Args:
        distribution: Samples weights.
        operation: What the layer does.
        input: Its input.
        weight: The layer's weight.
        auxiliary: The auxiliary parameter of each weight.
        bias: The layer's bias.
    """
    if isinstance(operation, LookUp):
        return _rows(distribution, operation, input, weight, auxiliary)
    return operation(input, distribution.sample_weight(weight, auxiliary, distribution.noise_like(auxiliary)), bias)


def _rows(
    distribution: Distribution, operation: LookUp, input: torch.Tensor, weight: torch.Tensor, auxiliary: torch.Tensor
) -> torch.Tensor:
    rows, of_rows = operation(input, weight), operation(input, auxiliary)
    if input.numel() < weight.shape[0]:
        noise, index = distribution.noise_like(of_rows.flatten(0, -2)), _numbered(input)
    else:
        noise, index = distribution.noise_like(auxiliary), input
    return distribution.sample_weight(rows, of_rows, F.embedding(index, noise))


def _numbered(indices: torch.Tensor) -> torch.Tensor:
    """Numbers below the number of indices in place of the indices, equal where they are equal.

    As `torch.unique` would give, but of a shape that is known beforehand, which torch.compile needs.
    """
    ordered, order = indices.flatten().sort()
    numbers = F.pad((ordered[1:] != ordered[:-1]).cumsum(0), (1, 0))[: len(ordered)]
    return torch.empty_like(order).scatter_(0, order, numbers).view(indices.shape)
