"""Scores: what says which weights are worth keeping. Higher is kept.

A score is one function from the state of a layer to a tensor of the weight's shape; everything else (how many are kept, when, in
which layers) is somebody else's. Only the order of scores matters; equal scores are told apart by their row-major index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

__all__ = [
    "LayerState",
    "LooksAtNetwork",
    "Score",
    "gradient_magnitude",
    "magnitude",
    "momentum_magnitude",
    "of_weight_alone",
    "random",
    "show_network",
]


@dataclass(frozen=True)
class LayerState:
    """What a score may look at.

    Attributes:
        name: The weight's parameter name.
        weight: The values that compete; under the policy "returning" dropped weights are there with the values they had.
        kept: The mask so far, of any dtype, nonzero where a weight is kept.
        gradient: The gradient of the last step, zero where the mask dropped the weight; None before the first step. A score
            that regrows weights is given the dense gradient of the step instead.
        generator: A generator (on the CPU) of this layer's and this update's own, for scores that draw random numbers.
        momentum: A dense average of the gradients, kept and dropped weights alike; None where no regrowth asks for it.
    """

    name: str
    weight: torch.Tensor
    kept: torch.Tensor
    gradient: torch.Tensor | None
    generator: torch.Generator
    momentum: torch.Tensor | None = None

    @property
    def mask(self) -> torch.Tensor:
        """The mask so far, bool, True where kept: made when a score asks for it, since few do."""
        return self.kept.bool()


Score: TypeAlias = Callable[[LayerState], torch.Tensor]


@runtime_checkable
class LooksAtNetwork(Protocol):
    """A score that looks at the whole network before the first masks are chosen."""

    def look(self, model: nn.Module) -> None:
        """Look at a network that is about to be prepared, and leave it as it is."""


def show_network(score: object, model: nn.Module) -> None:
    """Let a score that looks at whole networks look at one; others see layers alone."""
    if isinstance(score, LooksAtNetwork):
        score.look(model)


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


def gradient_magnitude(layer: LayerState) -> torch.Tensor:
    """The absolute gradient of each weight, which RigL regrows by (Evci et al. 2020, arXiv 1911.11134, algorithm 1).

    Returns:
        `|gradient|`, of the weight's shape; zero before the first step.
    """
    return torch.zeros_like(layer.weight) if layer.gradient is None else layer.gradient.abs()


def momentum_magnitude(layer: LayerState) -> torch.Tensor:
    """The absolute momentum of each weight, which SNFS regrows by (Dettmers and Zettlemoyer 2019, arXiv 1907.04840).

    Returns:
        `|momentum|`, of the weight's shape; zero where there is none.
    """
    return torch.zeros_like(layer.weight) if layer.momentum is None else layer.momentum.abs()


def of_weight_alone(score: Score) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """For a score that is a function of each weight alone, that function; None for others.

    Such scores need not be there all at once, which saves a copy of the weights, and time, at an update of millions.

    Example:
        >>> of_weight_alone(magnitude)(torch.tensor([-2.0]))
        tensor([2.])
    """
    return torch.abs if score is magnitude else None
