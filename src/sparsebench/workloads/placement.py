"""Where a network is."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["device_of"]


def device_of(model: nn.Module) -> torch.device:
    """The device of a network's first parameter; the processor's where it has none.

    Example:
        >>> device_of(nn.Linear(1, 1)), device_of(nn.ReLU())
        (device(type='cpu'), device(type='cpu'))
    """
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
