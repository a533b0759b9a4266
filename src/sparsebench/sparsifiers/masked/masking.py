"""Masks at work on weights, gradients and whatever else has a weight's shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.placement import local
from sparsebench.sparsifiers.selection import WeightMatrix
from sparsebench.sparsifiers.storage_order import CHUNK, flat

__all__ = ["check_dropped_are_zero", "mask_gradients", "multiply", "set_aside"]


def multiply(tensors: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]) -> None:
    """Zero in place what masks drop, in one pass.

    Args:
        tensors: Weights, or tensors laid out like them.
        masks: For each a mask of its shape and memory format: zeros and ones in its dtype, or bytes.
    """
    bytewise = [tensor.dtype != mask.dtype for tensor, mask in zip(tensors, masks, strict=True)]
    if not any(bytewise):
        torch._foreach_mul_(list(tensors), list(masks))
        return
    for tensor, mask in zip(tensors, masks, strict=True):
        if tensor.device.type != "cpu" or tensor.stride() != mask.stride():
            tensor.mul_(mask)
            continue
        # A product of two dtypes takes several times as long as a conversion and a product.
        for part, own in _chunks(tensor, mask):
            part.mul_(own.to(part.dtype))


def set_aside(weights: Sequence[torch.Tensor], masks: Sequence[torch.Tensor], asides: Sequence[torch.Tensor]) -> None:
    """Move the values of dropped weights to where they are kept aside, in place: `weight + aside` is what the weight was."""
    for tensors in zip(weights, masks, asides, strict=True):
        for weight, mask, aside in _chunks(*tensors):
            torch.sub(weight, torch.mul(weight, mask.to(weight.dtype), out=aside), out=aside)
            weight.sub_(aside)


def _chunks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Parts of tensors that are laid out alike, as views; the tensors themselves where they are on a device or not dense."""
    first = tensors[0].detach()
    if first.device.type != "cpu" or flat(first).data_ptr() != first.data_ptr():
        yield tensors
        return
    rows = [flat(tensor.detach()) for tensor in tensors]
    for begin in range(0, first.numel(), CHUNK):
        yield tuple(row[begin : begin + CHUNK] for row in rows)


def mask_gradients(matrices: Sequence[WeightMatrix], masks: Sequence[torch.Tensor]) -> None:
    """Zero the gradients of dropped weights, dense ones in one pass and in place; weights without a gradient are passed over."""
    gradients, own = [], []
    for matrix, mask in zip(matrices, masks, strict=True):
        gradient = matrix.gradient
        if gradient is None:
            continue
        if gradient.is_sparse:
            held = gradient.coalesce()
            matrix.weight.parameter.grad = torch.sparse_coo_tensor(
                held.indices(),
                held.values() * mask[held.indices()[0]],
                held.shape,
                is_coalesced=True,
                check_invariants=False,
            )
        else:
            gradients.append(local(gradient))
            own.append(mask)
    if gradients:
        multiply(gradients, own)


def check_dropped_are_zero(matrices: Sequence[WeightMatrix], masks: Sequence[torch.Tensor]) -> None:
    """Find weights that came back on their own.

    Raises:
        SparsebenchError: There are some; the message names the parameter.
    """
    for matrix, mask in zip(matrices, masks, strict=True):
        if bool((local(matrix.tensor).detach()[mask == 0] != 0).any()):
            raise SparsebenchError(
                f"dropped weights of {matrix.name!r} are not zero: something else than the attached optimizer changed them (a "
                "copied optimizer has no hooks: call attach() on the copy)"
            )
