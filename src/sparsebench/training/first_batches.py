"""What a run lets a method look at before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsebench.training.devices import on_device
from sparsebench.workloads.workload import Recipe, Workload

__all__ = ["FirstBatches"]


@dataclass(frozen=True)
class FirstBatches:
    """The loss and the first batches of a run, read when they are asked for.

    Attributes:
        workload: What is trained.
        seed: The run's.
        recipe: Its recipe.
    """

    workload: Workload
    seed: int
    recipe: Recipe

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The training loss of a network on a batch, in the network's own precision, where the network is."""
        device = next(model.parameters()).device
        return self.workload.loss(model, on_device(batch, device), self.recipe.label_smoothing)

    def batches(self, count: int) -> Iterator[Any]:
        """The batches of the first steps, whole ones in every process of the run."""
        return (self.workload.batch(self.seed, step, self.recipe.batch_size) for step in range(count))
