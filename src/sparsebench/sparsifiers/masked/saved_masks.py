"""Masks, and values kept aside, out of a saved state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.masks import unpack
from sparsebench.sparsifiers.selection import WeightMatrix

__all__ = ["read_masks"]


def read_masks(
    state: Mapping[str, Any], weights: Sequence[WeightMatrix], keeps_aside: bool
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Masks in the weights' own dtypes and memory formats, and the values of dropped weights where a method keeps them.

    Args:
        state: What the engine's `state_dict()` gave.
        weights: The weights that it is for.
        keeps_aside: Whether values of dropped weights belong to it.

    Raises:
        SparsebenchError: The state is damaged; the message names the weight.
    """
    masks, asides = [], []
    for matrix in weights:
        weight = matrix.tensor.detach()
        if hasattr(weight, "full_tensor"):  # spread over processes: what was saved is whole
            weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        bits = _tensor(state, "masks", matrix.name)
        if bits is None or bits.dtype != torch.uint8 or bits.shape != (math.ceil(weight.numel() / 8),):
            raise SparsebenchError(f"the saved state is damaged: no mask of {weight.numel()} bits for {matrix.name!r}")
        mask = unpack(bits, weight.shape).to(weight.device)
        masks.append(torch.ones_like(weight).mul_(mask))
        if keeps_aside:
            aside, dropped = _tensor(state, "aside", matrix.name), mask.numel() - int(mask.sum())
            if aside is None and dropped == 0:
                aside = weight.new_empty(0)
            if aside is None or aside.shape != (dropped,):
                raise SparsebenchError(f"the saved state is damaged: not {dropped} values aside for {matrix.name!r}")
            kept_aside = torch.zeros_like(weight)
            kept_aside[~mask] = aside.to(weight)
            asides.append(kept_aside)
    return masks, asides


def _tensor(state: Mapping[str, Any], part: str, name: str) -> torch.Tensor | None:
    tensors = state.get(part)
    tensor = tensors.get(name) if isinstance(tensors, Mapping) else None
    return tensor if isinstance(tensor, torch.Tensor) else None
