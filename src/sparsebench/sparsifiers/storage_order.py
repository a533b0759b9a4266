"""Tensors in the order of their memory, whatever their memory format: the order in which elementwise work is fastest."""

from __future__ import annotations

import torch

__all__ = ["CHUNK", "flat", "flat_like", "storage_order"]

CHUNK = 1 << 18
"""Entries to work on at a time where something is computed on the way: that then stays in the processor's cache, while memory
that is touched for the first time costs twenty times the arithmetic."""


def storage_order(tensor: torch.Tensor) -> list[int]:
    """The axes from the largest stride to the smallest: permuted so, a tensor that is dense in memory is contiguous."""
    return sorted(range(tensor.dim()), key=lambda axis: -tensor.stride()[axis])


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """One dimension in storage order: a view where the tensor is dense in memory.

    Example:
        >>> flat(torch.tensor([[1, 2], [3, 4]]).t())
        tensor([1, 2, 3, 4])
    """
    return tensor.reshape(-1) if tensor.is_contiguous() else tensor.permute(storage_order(tensor)).reshape(-1)


def flat_like(values: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A view of flat values as a tensor of the shape and memory format of `tensor`: undoes `flat`."""
    if tensor.is_contiguous():
        return values.view(tensor.shape)
    order = storage_order(tensor)
    back = sorted(range(tensor.dim()), key=order.__getitem__)
    return values.view([tensor.shape[axis] for axis in order]).permute(back)
