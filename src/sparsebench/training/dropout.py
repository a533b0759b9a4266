"""Dropout as a setting of the training."""

from __future__ import annotations

from torch import nn

from sparsebench.errors import SparsebenchError

__all__ = ["set_dropout"]


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Give every `nn.Dropout` of a network a probability in [0, 1); None leaves them as they are.

    Raises:
        SparsebenchError: The network has none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> set_dropout(model, 0.0)
        >>> model[1].p
        0.0
    """
    if probability is None:
        return
    layers = [module for module in model.modules() if type(module) is nn.Dropout]
    if not layers:
        raise SparsebenchError(f"dropout={probability}: the network has no dropout layers; leave it out")
    for layer in layers:
        layer.p = probability
