"""The mean of the last checkpoints of a training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sparsebench.workloads.workload import Recipe

__all__ = ["CheckpointAverage", "default_interval"]

SHARE_OF_TRAINING = 100


def default_interval(recipe: Recipe) -> int:
    """Steps between averaged checkpoints where nobody says: a hundredth of the training, less where they would not fit.

    Vaswani et al. 2017 (arXiv 1706.03762, section 6.1): checkpoints ten minutes apart in twelve hours of training.

    Example:
        >>> settings = dict(batch_size=1, optimizer="sgd", learning_rate=0.1)
        >>> default_interval(Recipe(steps=4000, averaged_checkpoints=5, **settings))
        40
        >>> default_interval(Recipe(steps=4000, averaged_checkpoints=400, **settings))
        10
    """
    fits = (recipe.steps - 1) // max(recipe.averaged_checkpoints - 1, 1)
    return max(min(recipe.steps // SHARE_OF_TRAINING, fits), 1)


class CheckpointAverage:
    """Adds up the parameters after the steps that a recipe averages, and puts their mean into the network at the end.

    As for the Transformer (Vaswani et al. 2017, arXiv 1706.03762, section 6.1), whose last five checkpoints are averaged.

    Args:
        recipe: Says how many checkpoints, and how many steps lie between them.

    Example:
        >>> recipe = Recipe(
        ...     steps=4, batch_size=1, optimizer="sgd", learning_rate=0.1, averaged_checkpoints=2, averaging_interval=3
        ... )
        >>> average, model = CheckpointAverage(recipe), nn.Linear(1, 1, bias=False)
        >>> for step in (1, 2, 3, 4):
        ...     _ = nn.init.constant_(model.weight, float(step))
        ...     average.after_step(model, step)
        >>> average.put_into(model), model.weight.item()
        (True, 2.5)
    """

    def __init__(self, recipe: Recipe) -> None:
        averaged = recipe.averaged_checkpoints if recipe.averaged_checkpoints > 1 else 0
        self._steps = frozenset(recipe.steps - index * recipe.averaging_interval for index in range(averaged))
        self._sums: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """Take the parameters after a step, counted from 1, into the mean if they belong to it."""
        if step not in self._steps:
            return
        for name, parameter in model.named_parameters():
            if name in self._sums:
                self._sums[name].add_(parameter)
            else:
                self._sums[name] = parameter.detach().clone()

    @torch.no_grad()
    def put_into(self, model: nn.Module) -> bool:
        """Give the network the mean; False, and nothing done, where the recipe averages nothing."""
        for name, parameter in model.named_parameters() if self._steps else ():
            parameter.copy_(self._sums[name] / len(self._steps))
        return bool(self._steps)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The sums so far."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from saved sums."""
        self._sums = dict(state)
