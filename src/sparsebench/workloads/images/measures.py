"""What training and evaluation on labelled images have in common: a batch, its loss, the accuracy over many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.workloads.placement import device_of
from sparsebench.workloads.workload import ExampleInput

__all__ = ["Images", "accuracy_and_loss", "class_scores", "classification_loss"]


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        pixels: float32 [examples, channels, height, width], normalised.
        labels: int64 [examples].
    """

    pixels: torch.Tensor
    labels: torch.Tensor


def classification_loss(model: nn.Module, batch: Images, label_smoothing: float) -> torch.Tensor:
    """Cross entropy in float32, averaged over the batch."""
    return F.cross_entropy(model(batch.pixels).float(), batch.labels, label_smoothing=label_smoothing)


def class_scores(model: nn.Module, example: ExampleInput) -> torch.Tensor:
    """[examples, classes]: what a network for images is used for."""
    scores: torch.Tensor = model(*example.arguments)
    return scores


@torch.no_grad()
def accuracy_and_loss(model: nn.Module, batches: Iterable[Images]) -> dict[str, float]:
    """Accuracy in per cent, and mean cross entropy, over batches of any sizes; the model's training flag is put back."""
    was_training, device = model.training, device_of(model)
    model.eval()
    try:
        examples, correct, loss = 0, 0, 0.0
        for batch in batches:
            outputs, labels = model(batch.pixels.to(device)).float(), batch.labels.to(device)
            examples += len(labels)
            correct += int((outputs.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(outputs, labels, reduction="sum"))
    finally:
        model.train(was_training)
    return {"accuracy": 100.0 * correct / examples, "loss": loss / examples}
