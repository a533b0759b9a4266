"""Sparse variational dropout: a Gaussian over each weight, sampled where it is cheap, in the layer's output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional as F

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.stochastic.distribution import Apply
from sparsebench.sparsifiers.stochastic.noise import normal_like

__all__ = ["Noise", "VariationalDropout", "log_alpha"]

Noise = Literal["example", "position"]

# Molchanov et al. 2017, eq. 14.
K1, K2, K3 = 0.63576, 1.87320, 1.48695
# Inside the root: without it a zero input has an infinite gradient.
VARIANCE_FLOOR = 1e-8
# log alpha in the KL term only: outside its gradient is nothing but rounding error.
LOG_ALPHA_BOUND = 8.0


def log_alpha(weight: torch.Tensor, log_sigma2: torch.Tensor) -> torch.Tensor:
    """Log of the ratio of variance to squared mean, `log sigma^2 - log(theta^2 + 1e-8)`."""
    return log_sigma2 - torch.log(weight.square() + 1e-8)


@dataclass(frozen=True)
class VariationalDropout:
    """Each weight is normal with mean `weight` and variance `exp(log_sigma2)` (Molchanov et al. 2017, arXiv 1701.05369).

    Args:
        initial_log_sigma2: Log variance at the start.
        noise: "example": one draw per example and output unit, shared over the positions of [batch, ..., features] inputs of
            linear layers; "position": one draw per position. Convolutions draw for every output element, embeddings for every
            position, under both (Kingma et al. 2015, arXiv 1506.02557, section 2.3; Gale et al. 2019).

    Raises:
        SparsebenchError: The log variance is not finite, or an unknown kind of noise.
    """

    initial_log_sigma2: float = -10.0
    noise: Noise = "example"
    parameter: str = "log_sigma2"

    def __post_init__(self) -> None:
        start = self.initial_log_sigma2
        if isinstance(start, bool) or not isinstance(start, (int, float)) or not math.isfinite(start):
            raise SparsebenchError(f"initial_log_sigma2={start!r}: expected a finite number")
        if self.noise not in get_args(Noise):
            raise SparsebenchError(f"noise={self.noise!r}: expected 'example' or 'position'")

    @property
    def thresholded(self) -> bool:
        """True: the threshold is on log alpha."""
        return True

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The same log variance for every weight."""
        return torch.full_like(weight, self.initial_log_sigma2)

    def sample_output(
        self,
        apply: Apply,
        look_up: bool,
        input: torch.Tensor,
        weight: torch.Tensor,
        auxiliary: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """The local reparameterization: the output's own mean and variance, `sqrt(x^2 sigma^2 + 1e-8)` times noise."""
        mean = apply(input, weight, bias)
        # A one-hot vector is its own square.
        squared = input if look_up else input.square()
        variance = apply(squared, auxiliary.exp(), None)
        # The floor is 0 in float16.
        full = torch.promote_types(variance.dtype, torch.float32)
        deviation = (variance.to(full) + VARIANCE_FLOOR).sqrt().to(variance.dtype)
        noise_of = deviation.detach()
        if self.noise == "example" and _is_positionwise(look_up, input, weight):
            noise_of = noise_of.new_empty((deviation.shape[0], *(1 for _ in range(deviation.dim() - 2)), deviation.shape[-1]))
        return torch.addcmul(mean, deviation, normal_like(noise_of))

    def mean_weight(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        """The mean."""
        return weight

    def kept(self, weight: torch.Tensor, auxiliary: torch.Tensor, threshold: float | None) -> torch.Tensor:
        """Weights whose log alpha is below the threshold; never clipped."""
        assert threshold is not None
        return log_alpha(weight, auxiliary) < threshold

    def divergence(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        """KL divergence from the log-uniform prior: `k1 + log(1 + 1/alpha)/2 - k1 sigmoid(k2 + k3 log alpha)`, summed."""
        clipped = log_alpha(weight, auxiliary).clamp(-LOG_ALPHA_BOUND, LOG_ALPHA_BOUND)
        return (K1 + 0.5 * F.softplus(-clipped) - K1 * torch.sigmoid(K2 + K3 * clipped)).sum()


def _is_positionwise(look_up: bool, input: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the operation is a matrix applied at every position of [batch, ..., features]."""
    return not look_up and weight.dim() == 2 and input.dim() > 2
