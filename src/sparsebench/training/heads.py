"""How many zeros each attention head has."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sparsebench.workloads.workload import HeadsOfWeight

__all__ = ["head_zeros"]


@torch.no_grad()
def head_zeros(model: nn.Module, heads: Mapping[str, HeadsOfWeight]) -> dict[str, tuple[int, ...]]:
    """Zeros of each head in every weight that heads share.

    Args:
        model: The network.
        heads: How weights are shared, by their names; their sizes along the shared dimension are multiples of the heads.

    Returns:
        For each weight the zeros of its heads, in their order.

    Example:
        >>> layer = nn.Linear(3, 4)
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(1.0)[2:].zero_()
        >>> head_zeros(layer, {"weight": HeadsOfWeight(dimension=0, heads=2)})
        {'weight': (0, 6)}
    """
    return {
        name: tuple(int((part == 0).sum()) for part in model.get_parameter(name).chunk(shared.heads, shared.dimension))
        for name, shared in heads.items()
    }
