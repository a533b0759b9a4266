"""Masks, and values kept aside, into a saved state and out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.masks import pack, unpack
from sparsebench.sparsifiers.named_weights import is_sharded
from sparsebench.sparsifiers.selection import WeightMatrix

__all__ = ["read_masks", "write_masks"]


def write_masks(
    weights: Sequence[WeightMatrix], masks: Sequence[torch.Tensor], asides: Sequence[torch.Tensor] | None
) -> dict[str, dict[str, torch.Tensor]]:
    """What a saved state has of masks: a bit for each weight; and of values kept aside: those of dropped weights."""
    names = [matrix.name for matrix in weights]
    kept_aside = zip(names, asides, masks, strict=True) if asides else ()
    return {
        "masks": {name: pack(mask != 0) for name, mask in zip(names, masks, strict=True)},
        "aside": {name: aside[mask == 0].cpu() for name, aside, mask in kept_aside},
    }


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
        if is_sharded(weight):  # spread over processes: what was saved is whole
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
