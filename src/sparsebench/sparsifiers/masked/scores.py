"""Scores: what says which weights are worth keeping. Higher is kept.

A score is one function from the state of a layer to a tensor of the weight's shape; everything else (how many are kept, when, in
which layers) is somebody else's. Only the order of scores matters; equal scores are told apart by their row-major index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

__all__ = ["LayerState", "Score", "magnitude", "random"]


@dataclass(frozen=True)
class LayerState:
    """What a score may look at.

    Attributes:
        name: The weight's parameter name.
        weight: The values that compete; under the policy "returning" dropped weights are there with the values they had.
        mask: The mask so far, bool, True where kept.
        gradient: The gradient of the last step, zero where the mask dropped the weight; None before the first step.
        generator: A generator (on the CPU) of this layer's and this update's own, for scores that draw random numbers.
    """

    name: str
    weight: torch.Tensor
    mask: torch.Tensor
    gradient: torch.Tensor | None
    generator: torch.Generator


Score: TypeAlias = Callable[[LayerState], torch.Tensor]


def magnitude(layer: LayerState) -> torch.Tensor:
    """The absolute value of each weight (Han et al. 2015, arXiv 1506.02626; Zhu and Gupta 2017, arXiv 1710.01878).

    Returns:
        `|weight|`, of the weight's shape.
    """
    return layer.weight.abs()


def random(layer: LayerState) -> torch.Tensor:
    """Uniform random numbers: the control that every other score must beat.

    Returns:
        Numbers in [0, 1), of the weight's shape, drawn in row-major order whatever the memory format.
    """
    return torch.rand(layer.weight.shape, generator=layer.generator).to(layer.weight.device)
