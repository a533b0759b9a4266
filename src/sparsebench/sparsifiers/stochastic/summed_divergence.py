"""The divergence of all layers as one scalar, with its gradient by hand, in few and large elementwise operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from sparsebench.sparsifiers.stochastic.distribution import Distribution
from sparsebench.sparsifiers.storage_order import flat, flat_like

__all__ = ["summed_divergence"]

# Small tensors are treated as one, which saves calls; a large one is never copied, which saves memory.
BUCKET = 1 << 17


def summed_divergence(
    distribution: Distribution, weights: Sequence[torch.Tensor], auxiliaries: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The sum of a distribution's divergence over layers, computed in at least float32.

    Args:
        distribution: Says divergence and derivative.
        weights: The layers' weights.
        auxiliaries: The auxiliary parameter of each weight, of the same shape and memory format.

    Returns:
        A scalar.
    """
    total: torch.Tensor = _SummedDivergence.apply(distribution, *weights, *auxiliaries)
    return total


class _SummedDivergence(torch.autograd.Function):
    """The derivatives are found with the value, in one pass, and are scaled by the penalty's weight when they are asked for."""

    @staticmethod
    def forward(ctx: Any, distribution: Distribution, *tensors: torch.Tensor) -> torch.Tensor:
        weights, auxiliaries = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        buckets = list(_buckets(weights))
        terms = [distribution.divergence(_join(weights[chosen]), _join(auxiliaries[chosen])) for chosen in buckets]
        ctx.buckets = buckets
        ctx.save_for_backward(*tensors, *(term.by_weight for term in terms), *(term.by_auxiliary for term in terms))
        return torch.stack([term.value for term in terms]).sum() if len(terms) > 1 else terms[0].value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layers, buckets = (len(ctx.needs_input_grad) - 1) // 2, len(ctx.buckets)
        saved = ctx.saved_tensors
        gradients: list[torch.Tensor | None] = [None]
        for tensors, derivatives in (
            (saved[:layers], saved[2 * layers : 2 * layers + buckets]),
            (saved[layers : 2 * layers], saved[2 * layers + buckets :]),
        ):
            for chosen, derivative in zip(ctx.buckets, derivatives, strict=True):
                gradients += _split(derivative, gradient, tensors[chosen])
        return tuple(gradients)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[slice]:
    """Consecutive tensors of one dtype and at most BUCKET elements in all, or single ones."""
    begin, count = 0, 0
    for end, tensor in enumerate(tensors):
        if end > begin and (count + tensor.numel() > BUCKET or tensor.dtype != tensors[begin].dtype):
            yield slice(begin, end)
            begin, count = end, 0
        count += tensor.numel()
    yield slice(begin, len(tensors))


def _join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    joined = torch.cat([flat(tensor) for tensor in tensors]) if len(tensors) > 1 else flat(tensors[0])
    # A sum over a layer's weights exceeds float16, and log alpha needs its constant, which float16 rounds to 0.
    return joined.to(torch.promote_types(joined.dtype, torch.float32))


def _split(values: torch.Tensor | None, scale: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """The values, scaled, as tensors of the shapes, dtypes and memory formats of others."""
    if values is None:
        return [None] * len(like)
    parts = torch.split((values * scale).to(like[0].dtype), [tensor.numel() for tensor in like])
    return [flat_like(part, tensor) for part, tensor in zip(parts, like, strict=True)]
