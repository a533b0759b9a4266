"""What a process loads at its first training step belongs to no run's time or memory."""

from __future__ import annotations

import functools

import torch
from torch import nn

__all__ = ["warm_up"]


@functools.cache
def warm_up() -> None:
    """Take one training step of a tiny network, once a process: torch loads 150 MB and seconds of modules there.

    No random number is drawn from torch's default generator.
    """
    weight = nn.Parameter(torch.zeros(1, 1, 1, 1))
    optimizer = torch.optim.AdamW([weight], fused=True)
    torch.autograd.backward(nn.functional.conv2d(torch.zeros(1, 1, 1, 1), weight).sum())
    optimizer.step()
    optimizer.zero_grad()
