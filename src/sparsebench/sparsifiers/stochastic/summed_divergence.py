"""The divergence of all layers as one scalar, with its gradient by hand, in pieces that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from sparsebench.sparsifiers.stochastic.distribution import Distribution
from sparsebench.sparsifiers.storage_order import CHUNK, flat, flat_like

__all__ = ["summed_divergence"]


def summed_divergence(
    distribution: Distribution, weights: Sequence[torch.Tensor], auxiliaries: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The sum of a distribution's divergence over layers, computed in at least float32.

    Args:
        distribution: Says divergence and derivatives.
        weights: The layers' weights.
        auxiliaries: The auxiliary parameter of each weight, of the same shape and memory format.

    Returns:
        A scalar.
    """
    total: torch.Tensor = _SummedDivergence.apply(distribution, *weights, *auxiliaries)
    return total


class _SummedDivergence(torch.autograd.Function):
    """The derivatives are computed when they are asked for: keeping them would take longer than the arithmetic."""

    @staticmethod
    def forward(ctx: Any, distribution: Distribution, *tensors: torch.Tensor) -> torch.Tensor:
        weights, auxiliaries = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        ctx.distribution = distribution
        ctx.save_for_backward(*tensors)
        sums = [
            distribution.divergence(weight, auxiliary)
            for chosen in _buckets(weights)
            for weight, auxiliary in zip(_pieces(weights[chosen]), _pieces(auxiliaries[chosen]), strict=True)
        ]
        return torch.stack(sums).sum() if len(sums) > 1 else sums[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors = ctx.saved_tensors
        weights, auxiliaries = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        of_weights: list[torch.Tensor | None] = []
        of_auxiliaries: list[torch.Tensor | None] = []
        for chosen in _buckets(weights):
            by_weight, by_auxiliary = _Filled(weights[chosen], gradient), _Filled(auxiliaries[chosen], gradient)
            for weight, auxiliary in zip(_pieces(weights[chosen]), _pieces(auxiliaries[chosen]), strict=True):
                derivatives = ctx.distribution.divergence_derivatives(weight, auxiliary)
                by_weight.append(derivatives.by_weight)
                by_auxiliary.append(derivatives.by_auxiliary)
            of_weights += by_weight.tensors()
            of_auxiliaries += by_auxiliary.tensors()
        return None, *of_weights, *of_auxiliaries


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[slice]:
    """Consecutive tensors of one dtype and at most CHUNK elements in all, which saves calls, or single ones."""
    begin, count = 0, 0
    for end, tensor in enumerate(tensors):
        if end > begin and (count + tensor.numel() > CHUNK or tensor.dtype != tensors[begin].dtype):
            yield slice(begin, end)
            begin, count = end, 0
        count += tensor.numel()
    yield slice(begin, len(tensors))


def _pieces(tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The elements of a bucket, in one dimension and in pieces."""
    joined = torch.cat([flat(tensor) for tensor in tensors]) if len(tensors) > 1 else flat(tensors[0])
    for piece in torch.split(joined, CHUNK):
        # A sum over a layer's weights exceeds float16, and log alpha needs its constant, which float16 rounds to 0.
        yield piece.to(torch.promote_types(piece.dtype, torch.float32))


class _Filled:
    """Gradients of the tensors of a bucket, filled piece by piece.

    Args:
        like: The tensors.
        scale: What multiplies the pieces.
    """

    def __init__(self, like: Sequence[torch.Tensor], scale: torch.Tensor) -> None:
        self._like, self._scale = like, scale
        self._values: torch.Tensor | None = None
        self._end = 0

    def append(self, piece: torch.Tensor | None) -> None:
        """The next piece; None where all of them are."""
        if piece is None:
            return
        if self._values is None:
            self._values = self._like[0].new_empty(sum(tensor.numel() for tensor in self._like))
        begin, self._end = self._end, self._end + len(piece)
        torch.mul(piece, self._scale, out=self._values[begin : self._end])

    def tensors(self) -> list[torch.Tensor | None]:
        """A gradient for each tensor, of its shape, dtype and memory format."""
        if self._values is None:
            return [None] * len(self._like)
        parts = torch.split(self._values, [tensor.numel() for tensor in self._like])
        return [flat_like(part, tensor) for part, tensor in zip(parts, self._like, strict=True)]
