"""What a stochastic method must say: how weights are distributed, what that costs, and which of them are dropped."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from sparsebench.sparsifiers.stochastic.operations import Operation

__all__ = ["Derivatives", "Distribution"]


class Derivatives(NamedTuple):
    """How the summed divergence changes with every weight; tensors of the receiver's own, which it may overwrite.

    Attributes:
        by_weight: The derivative with respect to each weight; None where the weights do not matter.
        by_auxiliary: The derivative with respect to each auxiliary parameter.
    """

    by_weight: torch.Tensor | None
    by_auxiliary: torch.Tensor


class Distribution(Protocol):
    """A distribution over each weight, with one auxiliary parameter for each. Dataclass fields are part of the description."""

    @property
    def parameter(self) -> str:
        """Name of the auxiliary parameter, which sits beside `weight`."""

    @property
    def thresholded(self) -> bool:
        """Whether `kept` depends on a threshold; where not, it gets None."""

    @property
    def sampled_outputs(self) -> bool:
        """Whether noise enters in the outputs, which takes two operations on a layer's input, or in the weights."""

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The auxiliary parameter's values at the start, like `weight` in shape, dtype and memory format."""

    def sample_output(
        self,
        operation: Operation,
        input: torch.Tensor,
        weight: torch.Tensor,
        auxiliary: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """A layer's output in training; noise comes from torch's default generator."""

    def noise_like(self, auxiliary: torch.Tensor) -> torch.Tensor:
        """The random numbers of one sample of every weight, from torch's default generator."""

    def sample_weight(self, weight: torch.Tensor, auxiliary: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The sample of every weight that goes with the noise."""

    def mean_weight(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        """The weight used in evaluation, before any threshold."""

    def kept(self, weight: torch.Tensor, auxiliary: torch.Tensor, threshold: float | None) -> torch.Tensor:
        """Bool mask of the weights that stay at a threshold."""

    def divergence(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        """The summed term that the penalty multiplies, a scalar; nothing that autograd could follow."""

    def divergence_derivatives(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> Derivatives:
        """Its derivatives."""
