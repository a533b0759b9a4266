"""What may be done to a tensor before it is stored, if the user asks for it: a shorter type, zeros without a sign."""

from __future__ import annotations

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.storage.element_types import element_type
from sparsebench.storage.table import CONVERSIONS

__all__ = ["negative_zeros", "rounded", "without_negative_zeros"]


def rounded(tensor: torch.Tensor, values: torch.dtype) -> torch.Tensor:
    """A float32 or float64 tensor of two or more dimensions in a shorter type; any other as it is.

    Raises:
        SparsebenchError: A finite value is too large for `values`.
    """
    if tensor.dim() < 2 or element_type(values).name not in CONVERSIONS.get(element_type(tensor.dtype).name, ()):
        return tensor
    short = tensor.detach().to(values)
    overflown = torch.isinf(short) & ~torch.isinf(tensor)
    if bool(overflown.any()):
        first = float(tensor[overflown][0])
        raise SparsebenchError(f"it holds {first:g}, which {values} cannot: choose bfloat16, or leave the values as they are")
    return short


def without_negative_zeros(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with 0.0 for each -0.0; floats of 16 bits or more only.

    Example:
        >>> without_negative_zeros(torch.tensor([-0.0, -1.0]))
        tensor([ 0., -1.])
    """
    if not _has_signed_zeros(tensor):
        return tensor
    return tensor.detach().masked_fill(tensor == 0, 0.0)


def negative_zeros(tensor: torch.Tensor) -> int:
    """Number of elements that are -0.0; floats of 16 bits or more only."""
    if not _has_signed_zeros(tensor):
        return 0
    return int(((tensor == 0) & torch.signbit(tensor)).sum())


def _has_signed_zeros(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1
