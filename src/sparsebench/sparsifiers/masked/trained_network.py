"""Telling a trained network from a new one, and warning of what random masks do to it."""

from __future__ import annotations

import warnings

import torch
from torch import nn

__all__ = ["trained_normalization", "warn_of_random_masks"]

_NORMALIZATIONS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
)


@torch.no_grad()
def trained_normalization(model: nn.Module) -> str | None:
    """The name of a normalization whose gains training has moved apart; None where there is none.

    All gains of a new one are equal: ones, or zeros at the end of residual branches.

    Example:
        >>> trained_normalization(nn.LayerNorm(3)) is None
        True
    """
    for name, module in model.named_modules():
        gain = getattr(module, "weight", None) if isinstance(module, _NORMALIZATIONS) else None
        if isinstance(gain, torch.Tensor) and not gain.is_meta and bool((gain != gain.reshape(-1)[:1]).any()):
            return str(name)
    return None


def warn_of_random_masks(model: nn.Module, sparsity: float) -> None:
    """Say what happened to a trained network whose weights were dropped at random: it is not worth more than a new one.

    Evci et al.'s users met it with pretrained networks (github.com/google-research/rigl, issue 12).
    """
    trained = trained_normalization(model)
    if trained is not None and sparsity > 0.0:
        warnings.warn(
            f"random masks drop {100 * sparsity:.1f} % of the weights of a network that was trained before (the gains of "
            f"{trained!r} are not equal), and with them what it had learned: to make a trained network sparse use "
            "magnitude_pruning()",
            UserWarning,
            stacklevel=3,
        )
