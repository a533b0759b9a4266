"""Sparse variational dropout: a Gaussian over each weight, sampled where it is cheap, in the layer's output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.autograd.function import once_differentiable

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.stochastic.distribution import Derivatives
from sparsebench.sparsifiers.stochastic.noise import normal_like
from sparsebench.sparsifiers.stochastic.operations import LinearOperation, LookUp, Matrix, Operation, TransposedMatrix
from sparsebench.sparsifiers.stochastic.sampled_weight import with_sampled_weight

__all__ = ["Noise", "VariationalDropout", "log_alpha"]

Noise = Literal["example", "position", "weight"]

# Molchanov et al. 2017, eq. 14.
K1, K2, K3 = 0.63576, 1.87320, 1.48695
# Inside the root: without it a zero input has an infinite gradient.
VARIANCE_FLOOR = 1e-8
# Inside the logarithm of the squared weight, for the same reason.
WEIGHT_FLOOR = 1e-8
# log alpha in the KL term only: outside its gradient is nothing but rounding error.
LOG_ALPHA_BOUND = 8.0


def log_alpha(weight: torch.Tensor, log_sigma2: torch.Tensor) -> torch.Tensor:
    """Log of the ratio of variance to squared mean, `log sigma^2 - log(theta^2 + 1e-8)`."""
    return log_sigma2 - torch.log(weight.square() + WEIGHT_FLOOR)


@dataclass(frozen=True)
class VariationalDropout:
    """Each weight is normal with mean `weight` and variance `exp(log_sigma2)` (Molchanov et al. 2017, arXiv 1701.05369).

    Args:
        initial_log_sigma2: Log variance at the start.
        noise: "example": one draw per example and output unit, shared over the positions of [batch, ..., features] inputs of
            linear layers; "position": one draw per position. Convolutions draw for every output element, embeddings for every
            position, under both (Kingma et al. 2015, arXiv 1506.02557, section 2.3; Gale et al. 2019). "weight": one draw per
            weight for the whole batch, added to the weight: cheap, with gradients of higher variance. Recurrent layers always
            have the latter.

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
            raise SparsebenchError(f"noise={self.noise!r}: expected 'example', 'position' or 'weight'")

    @property
    def thresholded(self) -> bool:
        """True: the threshold is on log alpha."""
        return True

    @property
    def sampled_outputs(self) -> bool:
        """True, unless the noise is that of weights."""
        return self.noise != "weight"

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The same log variance for every weight."""
        return torch.full_like(weight, self.initial_log_sigma2)

    def sample_output(
        self,
        operation: Operation,
        input: torch.Tensor,
        weight: torch.Tensor,
        auxiliary: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """The local reparameterization: the output's own mean and variance, `sqrt(x^2 sigma^2 + 1e-8)` times noise."""
        if self.noise == "weight":
            return with_sampled_weight(self, operation, input, weight, auxiliary, bias)
        if isinstance(operation, LookUp):
            rows, variance = operation(input, weight), operation(input, auxiliary).exp()
            return torch.addcmul(rows, (variance + VARIANCE_FLOOR).sqrt(), normal_like(rows.detach()))
        mean = operation(input, weight, bias)
        noise_of = mean.detach()
        if self.noise == "example" and isinstance(operation, (Matrix, TransposedMatrix)) and mean.dim() > 2:
            noise_of = noise_of.new_empty((mean.shape[0], *(1 for _ in range(mean.dim() - 2)), mean.shape[-1]))
        noisy: torch.Tensor = _WithNoise.apply(mean, input, auxiliary, normal_like(noise_of), operation)
        return noisy

    def noise_like(self, auxiliary: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers."""
        return normal_like(auxiliary.detach())

    def sample_weight(self, weight: torch.Tensor, auxiliary: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The weight plus its deviation times noise (Kingma and Welling 2014)."""
        return torch.addcmul(weight, auxiliary.mul(0.5).exp(), noise)

    def mean_weight(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        """The mean."""
        return weight

    def kept(self, weight: torch.Tensor, auxiliary: torch.Tensor, threshold: float | None) -> torch.Tensor:
        """Weights whose log alpha is below the threshold; never clipped."""
        assert threshold is not None
        return log_alpha(weight, auxiliary) < threshold

    def divergence(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        """KL divergence from the log-uniform prior: `k1 + log(1 + 1/alpha)/2 - k1 sigmoid(k2 + k3 log alpha)`, summed."""
        clipped = log_alpha(weight, auxiliary).clamp_(-LOG_ALPHA_BOUND, LOG_ALPHA_BOUND)
        # k1 - k1 sigmoid(x) = k1 sigmoid(-x): of most weights that is a small difference of larger numbers.
        sigmoid = clipped.mul(-K3).sub_(K2).sigmoid_()
        return clipped.neg_().exp_().log1p_().sum().mul_(0.5).add_(sigmoid.sum(), alpha=K1)

    def divergence_derivatives(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> Derivatives:
        """Those of the clipped formula: 0 beyond the bounds of log alpha."""
        square = weight.square().add_(WEIGHT_FLOOR)
        exact = auxiliary - square.log()
        # Beyond the bounds the numbers stay finite, so that the last line can multiply them away.
        clipped = exact.clamp(-LOG_ALPHA_BOUND, LOG_ALPHA_BOUND)
        sigmoid = clipped.mul(K3).add_(K2).sigmoid_()
        # d/dx log(1 + exp(-x))/2 = -sigmoid(-x)/2, and d/dx sigmoid = sigmoid (1 - sigmoid).
        derivative = clipped.neg_().sigmoid_().mul_(-0.5).addcmul_(sigmoid, 1.0 - sigmoid, value=-K1 * K3)
        by_log_alpha = _inside(derivative, exact, LOG_ALPHA_BOUND)
        by_weight = torch.addcdiv(_zero(square), by_log_alpha * weight, square, value=-2.0, out=square)
        return Derivatives(by_weight, by_log_alpha)


class _WithNoise(torch.autograd.Function):
    """Mean plus deviation times noise, with a gradient by hand: autograd would keep four tensors of the output's size, not one.

    Arguments: mean, input, log_sigma2, noise (broadcast over the mean), operation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mean: torch.Tensor,
        input: torch.Tensor,
        log_sigma2: torch.Tensor,
        noise: torch.Tensor,
        operation: LinearOperation,
    ) -> torch.Tensor:
        variance = operation(input.square(), log_sigma2.exp(), None)
        # The floor is 0 in float16.
        full = torch.promote_types(variance.dtype, torch.float32)
        deviation = variance.to(full).add_(VARIANCE_FLOOR).sqrt_().to(variance.dtype)
        ctx.operation = operation
        output = torch.addcmul(mean, deviation, noise)
        # The derivative of the output by the variance, in the memory of the deviation.
        derivative = torch.addcdiv(_zero(deviation), noise, deviation, value=0.5, out=deviation)
        ctx.save_for_backward(input, log_sigma2, derivative)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, log_sigma2, derivative = ctx.saved_tensors
        of_output = gradient * derivative
        variance, squared = log_sigma2.exp(), input.square()
        # Under autocast the operation was done in a narrower type than that of its arguments.
        of_square, of_variance = ctx.operation.gradients(
            of_output, squared.to(of_output.dtype), variance.to(of_output.dtype), ctx.needs_input_grad[1:3]
        )
        of_input = None if of_square is None else _product(of_square.to(input.dtype), input, 2.0)
        of_log_sigma2 = None if of_variance is None else variance.mul_(of_variance)
        return gradient, of_input, of_log_sigma2, None, None


def _zero(like: torch.Tensor) -> torch.Tensor:
    """What a scaled product or quotient is added to, so that scaling is not another pass over memory."""
    return like.new_zeros(())


def _product(first: torch.Tensor, second: torch.Tensor, factor: float) -> torch.Tensor:
    """The product times a factor, in the memory of the first."""
    return torch.addcmul(_zero(first), first, second, value=factor, out=first)


def _inside(values: torch.Tensor, at: torch.Tensor, bound: float) -> torch.Tensor:
    """The values where `at` is between -bound and bound, else 0: the gradient of a clamp, many times faster than a bool mask."""
    chosen: torch.Tensor = torch.ops.aten.hardtanh_backward(values, at, -bound, bound)
    return chosen
