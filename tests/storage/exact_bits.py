"""Comparison of tensors to the last bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def raw(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def same_bits(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        (left[name].dtype, left[name].shape, raw(left[name])) == (right[name].dtype, right[name].shape, raw(right[name]))
        for name in left
    )
