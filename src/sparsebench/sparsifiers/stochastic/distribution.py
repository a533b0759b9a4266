"""What a stochastic method must say: how weights are distributed, what that costs, and which of them are dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch

__all__ = ["Apply", "Distribution"]

Apply: TypeAlias = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]
"""A layer's operation on (input, weight, bias)."""


class Distribution(Protocol):
    """A distribution over each weight, with one auxiliary parameter for each. Dataclass fields are part of the description."""

    @property
    def parameter(self) -> str:
        """Name of the auxiliary parameter, which sits beside `weight`."""

    @property
    def thresholded(self) -> bool:
        """Whether `kept` depends on a threshold; where not, it gets None."""

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The auxiliary parameter's values at the start, like `weight` in shape, dtype and memory format."""

    def sample_output(
        self,
        apply: Apply,
        look_up: bool,
        input: torch.Tensor,
        weight: torch.Tensor,
        auxiliary: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """A layer's output in training; noise comes from torch's default generator.

        `look_up` is True where the input is indices (an embedding): multiplication by one-hot vectors.
        """

    def mean_weight(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        """The weight used in evaluation, before any threshold."""

    def kept(self, weight: torch.Tensor, auxiliary: torch.Tensor, threshold: float | None) -> torch.Tensor:
        """Bool mask of the weights that stay at a threshold."""

    def divergence(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        """The summed term that the penalty multiplies, a scalar."""
