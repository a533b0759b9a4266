"""The precision that a recipe asks for."""

from __future__ import annotations

import torch

from sparsebench.workloads.workload import Recipe

__all__ = ["precision"]


def precision(recipe: Recipe, device: torch.device) -> torch.autocast:
    """A context in which forward passes run in the recipe's precision; weights, gradients and penalties stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
