"""Masks at work on gradients and weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.placement import local
from sparsebench.sparsifiers.selection import WeightMatrix

__all__ = ["check_dropped_are_zero", "mask_gradients"]


def mask_gradients(matrices: Sequence[WeightMatrix], masks: Sequence[torch.Tensor]) -> None:
    """Zero the gradients of dropped weights, dense ones in one pass and in place; weights without a gradient are passed over."""
    dense: list[tuple[torch.Tensor, torch.Tensor]] = []
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
            dense.append((local(gradient), mask))
    if dense:
        torch._foreach_mul_([gradient for gradient, _ in dense], [mask for _, mask in dense])


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
