"""Image classification on sets that fit into memory: batches, augmentation by small shifts, loss, accuracy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.workloads.epochs import place_in_epoch
from sparsebench.workloads.images.measures import Images, accuracy_and_loss, class_scores, classification_loss
from sparsebench.workloads.workload import ExampleInput, Recipe, Split

__all__ = ["ImageClassification", "ImageSplits", "Images"]

EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class ImageSplits:
    """Training, validation and test images, disjoint."""

    training: Images
    validation: Images
    test: Images


@dataclass(frozen=True)
class ImageClassification:
    """A Workload: one network, one set of images.

    Attributes:
        name: As studies name it.
        summary: One line.
        revision: Raised when data, network or augmentation change.
        recipe: The reference recipe.
        load: Reads the data; called once a process.
        network: Makes a new network from [batch, channels, height, width] to [batch, classes].
        max_shift: Training images are moved by up to so many pixels in each direction, edges filled with the smallest pixel
        value.
        metric: The primary metric.
    """

    name: str
    summary: str
    revision: int
    recipe: Recipe
    load: Callable[[], ImageSplits]
    network: Callable[[], nn.Module]
    max_shift: int = 0
    metric: str = "accuracy"

    @property
    def training_examples(self) -> int:
        """N, the number of training images."""
        return len(self.load().training.labels)

    def build_model(self) -> nn.Module:
        """A new network, its weights drawn from torch's default generator, in the memory format that convolutions prefer."""
        return self.network().to(memory_format=torch.channels_last)

    def batch(self, seed: int, step: int, batch_size: int) -> Images:
        """The training batch of a step; an epoch's last, incomplete batch is left out."""
        training = self.load().training
        epoch, places = place_in_epoch(step, len(training.labels), batch_size)
        order, shifts = _epoch(seed, epoch, len(training.labels), 2 * self.max_shift + 1)
        chosen = order[places]
        shifted = _shifted(self.load, self.max_shift)
        return Images(shifted[shifts[chosen], chosen], training.labels[chosen])

    def loss(self, model: nn.Module, batch: Images, label_smoothing: float) -> torch.Tensor:
        """Cross entropy, averaged over the batch."""
        return classification_loss(model, batch, label_smoothing)

    def example_input(self, examples: int) -> ExampleInput:
        """Validation images."""
        pixels = self.load().validation.pixels
        return ExampleInput((pixels[torch.arange(examples) % len(pixels)],))

    def use(self, model: nn.Module, example: ExampleInput) -> torch.Tensor:
        """Scores of all classes."""
        return class_scores(model, example)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Accuracy in per cent, and mean cross entropy."""
        images: Images = getattr(self.load(), split)
        parts = zip(torch.split(images.pixels, EVALUATION_BATCH), torch.split(images.labels, EVALUATION_BATCH), strict=True)
        return accuracy_and_loss(model, (Images(*part) for part in parts))


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, examples: int, shifts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of an epoch's examples, and for each example which of the `shifts` x `shifts` moves it gets."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(examples)
    moves = generator.integers(0, shifts * shifts, examples)
    return torch.from_numpy(order), torch.from_numpy(moves)


@functools.lru_cache(maxsize=2)
def _shifted(load: Callable[[], ImageSplits], max_shift: int) -> torch.Tensor:
    """All moves of all training images, [moves, examples, channels, height, width]: small sets only."""
    pixels = load().training.pixels
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels, (max_shift,) * 4, value=float(pixels.amin()))
    moves = range(2 * max_shift + 1)
    return torch.stack([padded[..., down : down + height, right : right + width] for down in moves for right in moves])
