"""What both engines do to weights they know by name: check that they are finite, count and zero the dropped ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from sparsebench.errors import SparsebenchError

__all__ = ["check_finite", "dropped_fraction", "is_sharded", "zero_dropped"]


@torch.no_grad()
def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], step: int) -> None:
    """Stop a training whose weights have become NaN or infinite.

    A sum is not finite if one of its terms is not, and costs one pass without a copy.

    Raises:
        SparsebenchError: A tensor holds a NaN or an infinity; the message names it.
    """
    named = list(tensors)
    totals = [tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)) for _, tensor in named]
    if not totals or math.isfinite(sum(torch.stack(totals).tolist())):
        return
    for name, tensor in named:
        # Finite terms can have an infinite sum.
        if not bool(tensor.isfinite().all()):
            when = f"after step {step}: the training diverged" if step else "before the first step"
            raise SparsebenchError(f"{name!r} holds a NaN or an infinity {when}")


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process holds a part.

    By what it can do: importing DTensor takes long, and is not possible with every torch.
    """
    # Looking in vain for an attribute takes longer than all else here, and this is asked for every weight in every step.
    return type(tensor) is not nn.Parameter and hasattr(tensor, "to_local")


def dropped_fraction(masks: Iterable[torch.Tensor]) -> float:
    """Fraction in [0, 1] of the weights that masks drop, of all tensors together; bool masks, or ones and zeros of any dtype.

    Example:
        >>> dropped_fraction([torch.tensor([True, False]), torch.tensor([1.0, 1.0])])
        0.25
    """
    weights = kept = 0
    for mask in masks:
        weights += mask.numel()
        # Of floating-point numbers a sum is many times faster.
        kept += int(mask.count_nonzero() if mask.dtype == torch.bool else mask.sum(dtype=torch.float64))
    return (weights - kept) / weights


@torch.no_grad()
def zero_dropped(other: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Zero in a model, as +0.0, the weights that masks of the same parameter names drop.

    Raises:
        SparsebenchError: The model lacks a parameter, or its shape differs; nothing is changed then.
    """
    parameters = dict(other.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            wrapped = any(other_name.endswith(f".{name}") for other_name in parameters)
            hint = ": give the model inside the wrapper (`.module`, `._orig_mod`)" if wrapped else ""
            raise SparsebenchError(f"apply_masks: the other model has no parameter {name!r} of shape {tuple(mask.shape)}{hint}")
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)
