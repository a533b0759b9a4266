"""Folding masks into the weights of converted layers: of the model, or of a copy that becomes ordinary by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.selection import SelectedWeight
from sparsebench.sparsifiers.stochastic.distribution import Distribution
from sparsebench.sparsifiers.stochastic.layers import auxiliary_name, restore

__all__ = ["fold", "fold_copy"]


@torch.no_grad()
def fold(distribution: Distribution, weight: torch.Tensor, auxiliary: torch.Tensor, kept: torch.Tensor) -> None:
    """Put in the place of a weight its mean where a bool mask keeps it, and +0.0 elsewhere."""
    weight.copy_(distribution.mean_weight(weight, auxiliary).masked_fill(~kept, 0.0))
    # A kept weight may be -0.0.
    weight.add_(0.0)


def fold_copy(
    other: nn.Module, distribution: Distribution, weights: Sequence[SelectedWeight], masks: Mapping[str, torch.Tensor]
) -> None:
    """Fold masks into a copy of a converted model, with the copy's own weights, and make its layers ordinary ones.

    Args:
        other: The copy.
        distribution: The distribution over each weight.
        weights: The converted weights of the model.
        masks: Bool masks by parameter name.

    Raises:
        SparsebenchError: The copy has other layers; nothing is changed then.
    """
    modules = dict(other.named_modules())
    for selected in weights:
        for name, layer, own in selected.holders:
            other_layer = modules.get(name)
            if type(other_layer) is not type(layer) or not hasattr(other_layer, auxiliary_name(distribution, own)):
                raise SparsebenchError(
                    f"finalize_copy: the other model has no layer {name!r} of the type {type(layer).__name__} with "
                    f"{distribution.parameter}: make it with copy.deepcopy() of the prepared model, and give what is inside a "
                    "wrapper (`.module`)"
                )
    for selected in weights:
        name, _, own = selected.holders[0]
        weight, auxiliary = getattr(modules[name], own), getattr(modules[name], auxiliary_name(distribution, own))
        fold(distribution, weight, auxiliary, masks[selected.name].to(weight.device))
    for name in {holder.name for selected in weights for holder in selected.holders}:
        restore(modules[name])
