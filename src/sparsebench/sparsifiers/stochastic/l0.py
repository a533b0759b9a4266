"""L0 regularization: a hard-concrete gate on each weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.stochastic.distribution import Derivatives
from sparsebench.sparsifiers.stochastic.operations import Operation
from sparsebench.sparsifiers.stochastic.sampled_weight import with_sampled_weight

__all__ = ["HardConcrete", "evaluation_gate", "sample_gate"]

# Louizos et al. 2018, section 4: temperature and the ends of the stretched interval.
BETA, GAMMA, ZETA = 2.0 / 3.0, -0.1, 1.1
INITIAL_DEVIATION = 0.01
SHIFT = BETA * math.log(-GAMMA / ZETA)


def sample_gate(log_alpha: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Hard-concrete samples in [0, 1] (Louizos et al. 2018, eq. 10), one for each number in `uniform`, from [0, 1).

    Example:
        >>> sample_gate(torch.tensor([0.0, 9.0, -9.0]), torch.tensor([0.5, 0.5, 0.5]))
        tensor([0.5000, 1.0000, 0.0000])
    """
    return _gate(_concrete_sample(log_alpha, uniform))


def _concrete_sample(log_alpha: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Binary concrete samples in [0, 1]; autograd cannot follow it."""
    # One logarithm of the quotient costs half as much as the difference of two.
    logistic = (uniform + 1e-8).div_(1.0 - uniform).log_()
    return logistic.add_(log_alpha).mul_(1.0 / BETA).sigmoid_()


def _gate(concrete: torch.Tensor) -> torch.Tensor:
    """Samples stretched from [0, 1] to [gamma, zeta] and clamped."""
    return torch.add(concrete.new_full((), GAMMA), concrete, alpha=ZETA - GAMMA).clamp_(0.0, 1.0)


def evaluation_gate(log_alpha: torch.Tensor) -> torch.Tensor:
    """The gate used in evaluation, in [0, 1] (Louizos et al. 2018, eq. 13)."""
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


@dataclass(frozen=True)
class HardConcrete:
    """Each weight is multiplied by a gate that is exactly 0 or 1 with positive probability (arXiv 1712.01312).

    Args:
        initial_log_alpha: Mean of log alpha at the start; the standard deviation is 0.01.

    Raises:
        SparsebenchError: The mean is not finite.
    """

    initial_log_alpha: float = 2.197
    parameter: str = "log_alpha"

    def __post_init__(self) -> None:
        mean = self.initial_log_alpha
        if isinstance(mean, bool) or not isinstance(mean, (int, float)) or not math.isfinite(mean):
            raise SparsebenchError(f"initial_log_alpha={mean!r}: expected a finite number")

    @property
    def thresholded(self) -> bool:
        """False: a weight is dropped where its evaluation gate is exactly zero."""
        return False

    @property
    def sampled_outputs(self) -> bool:
        """False: a gate is a factor of its weight."""
        return False

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Normal numbers, drawn in row-major order."""
        # Neither the default device nor the default dtype may change what is drawn.
        drawn = torch.empty(weight.shape, dtype=torch.float32, device=generator.device)
        drawn.normal_(self.initial_log_alpha, INITIAL_DEVIATION, generator=generator)
        return torch.empty_like(weight).copy_(drawn)

    def sample_output(
        self,
        operation: Operation,
        input: torch.Tensor,
        weight: torch.Tensor,
        auxiliary: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """The layer with one sample of every weight's gate for the whole batch."""
        return with_sampled_weight(self, operation, input, weight, auxiliary, bias)

    def noise_like(self, auxiliary: torch.Tensor) -> torch.Tensor:
        """Uniform numbers from [0, 1)."""
        return torch.rand_like(auxiliary)

    def sample_weight(self, weight: torch.Tensor, auxiliary: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The weight times a sample of its gate."""
        gated: torch.Tensor = _Gated.apply(weight, auxiliary, noise)
        return gated

    def mean_weight(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        """The weight times its evaluation gate."""
        return weight * evaluation_gate(auxiliary)

    def kept(self, weight: torch.Tensor, auxiliary: torch.Tensor, threshold: float | None) -> torch.Tensor:
        """Weights whose evaluation gate is not exactly zero; there is no threshold to choose."""
        return evaluation_gate(auxiliary) > 0.0

    def divergence(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        """Expected number of open gates: the sum of `sigmoid(log alpha - beta log(-gamma/zeta))` (eq. 12)."""
        return (auxiliary - SHIFT).sigmoid_().sum()

    def divergence_derivatives(self, weight: torch.Tensor, auxiliary: torch.Tensor) -> Derivatives:
        """A gate's probability of being open changes with log alpha alone."""
        open_gates = (auxiliary - SHIFT).sigmoid_()
        return Derivatives(None, (1.0 - open_gates).mul_(open_gates))


class _Gated(torch.autograd.Function):
    """Weights times sampled gates, with a gradient by hand: autograd would keep nine tensors of the weight's size, not two.

    Arguments: weight, log_alpha, uniform.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, log_alpha: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        concrete = _concrete_sample(log_alpha, uniform)
        ctx.save_for_backward(weight, concrete)
        return _gate(concrete).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, concrete = ctx.saved_tensors
        gate = _gate(concrete)
        # The gradient of the clamp, many times faster than a bool mask; then that of the sigmoid, by its value.
        of_sample = torch.ops.aten.hardtanh_backward(gradient * weight, gate, 0.0, 1.0)
        of_log_alpha = torch.ops.aten.sigmoid_backward(of_sample, concrete).mul_((ZETA - GAMMA) / BETA)
        return gate.mul_(gradient), of_log_alpha, None
