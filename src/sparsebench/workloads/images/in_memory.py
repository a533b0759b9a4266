"""Small images held in memory as uint8, augmented in batches without worker processes: flips and padded crops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.epochs import place_in_epoch
from sparsebench.workloads.images.labelled import LabelledImages, check_all_classes
from sparsebench.workloads.images.measures import Images, accuracy_and_loss, class_scores, classification_loss
from sparsebench.workloads.images.networks import make_network, takes_any_shape
from sparsebench.workloads.images.reading import RawSplits, held_out, part_in_memory
from sparsebench.workloads.workload import ExampleInput, Recipe, Split

__all__ = ["InMemoryImages", "count_training_images"]

EVALUATION_BATCH = 500
VALIDATION = 5000


@dataclass(frozen=True)
class _Prepared:
    """Splits ready to draw from.

    Attributes:
        padded: Training images with a black border of `max_shift` pixels, uint8 [examples, height, width, channels].
        labels: Theirs.
        parts: The splits to evaluate on.
        mean: Of each channel of the training images.
        deviation: Theirs, standard.
        classes: How many there are.
        fingerprint: Stands for all images and labels.
    """

    padded: torch.Tensor
    labels: torch.Tensor
    parts: dict[Split, LabelledImages]
    mean: torch.Tensor
    deviation: torch.Tensor
    classes: int
    fingerprint: int


@dataclass(frozen=True)
class InMemoryImages:
    """A Workload: a set of small images and a network.

    Where the set has no validation split, a tenth of its training images, at most 5,000, drawn by hash, is held out for it.

    Attributes:
        name: As studies name it: set and network.
        summary: One line.
        code_revision: Raised when network or augmentation change.
        recipe: The reference recipe.
        read: Reads the data; called once a process.
        network: One of `NETWORKS`, or timm's.
        flip: Whether training images are mirrored, each with probability one half.
        max_shift: They are moved by up to so many pixels in each direction, edges filled with black.
        metric: The primary metric.
    """

    name: str
    summary: str
    code_revision: int
    recipe: Recipe
    read: Callable[[], RawSplits]
    network: str
    flip: bool
    max_shift: int
    metric: str = "accuracy"

    @property
    def revision(self) -> int:
        """Stands for code and data: other images under the same name are other data."""
        return self.code_revision * 2**48 + _prepared(self.read, self.max_shift).fingerprint

    @property
    def training_examples(self) -> int:
        """N, the number of training images."""
        return count_training_images(self.read, self.max_shift)

    def build_model(self) -> nn.Module:
        """A new network, its weights drawn from torch's default generator, in the memory format that convolutions prefer."""
        data = _prepared(self.read, self.max_shift)
        _, height, width, channels = data.parts["test"].pixels.shape
        if height != width and not takes_any_shape(self.network):
            raise SparsebenchError(f"{self.name}: {self.network} needs square images, these have {width}x{height} pixels")
        return make_network(self.network, channels, height, data.classes).to(memory_format=torch.channels_last)

    def batch(self, seed: int, step: int, batch_size: int) -> Images:
        """The training batch of a step; an epoch's last, incomplete batch is left out."""
        data = _prepared(self.read, self.max_shift)
        examples = len(data.labels)
        epoch, places = place_in_epoch(step, examples, batch_size)
        order, moves, mirrored = _epoch(seed, epoch, examples, 2 * self.max_shift + 1)
        chosen = order[places]
        height, width = data.parts["test"].pixels.shape[1:3]
        rows = moves[chosen, 0, None] + torch.arange(height)
        columns = moves[chosen, 1, None] + torch.arange(width)
        if self.flip:
            columns = torch.where(mirrored[chosen, None], columns.flip(1), columns)
        pixels = data.padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        return Images(_normalized(pixels, data), data.labels[chosen])

    def loss(self, model: nn.Module, batch: Images, label_smoothing: float) -> torch.Tensor:
        """Cross entropy in float32, averaged over the batch."""
        return classification_loss(model, batch, label_smoothing)

    def example_input(self, examples: int) -> ExampleInput:
        """Validation images."""
        data = _prepared(self.read, self.max_shift)
        pixels = data.parts["validation"].pixels
        return ExampleInput((_normalized(pixels[torch.arange(examples) % len(pixels)], data),))

    def use(self, model: nn.Module, example: ExampleInput) -> torch.Tensor:
        """Scores of all classes."""
        return class_scores(model, example)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Accuracy in per cent, and mean cross entropy."""
        data = _prepared(self.read, self.max_shift)
        part = data.parts[split]
        batches = zip(torch.split(part.pixels, EVALUATION_BATCH), torch.split(part.labels, EVALUATION_BATCH), strict=True)
        return accuracy_and_loss(model, (Images(_normalized(pixels, data), labels) for pixels, labels in batches))


def count_training_images(read: Callable[[], RawSplits], max_shift: int) -> int:
    """How many images there are to train on, those that are held out for validation not counted."""
    return len(_prepared(read, max_shift).labels)


def _normalized(pixels: torch.Tensor, data: _Prepared) -> torch.Tensor:
    """float32 [batch, channels, height, width] in channels_last, mean 0 and deviation 1 over the training set."""
    return ((pixels.float() - data.mean) / data.deviation).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, examples: int, shifts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An epoch's order; by example, where its crop begins (down, right) and whether it is mirrored."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(examples)
    moves = generator.integers(0, shifts, (examples, 2))
    return torch.from_numpy(order), torch.from_numpy(moves), torch.from_numpy(generator.random(examples) < 0.5)


@functools.lru_cache(maxsize=2)
def _prepared(read: Callable[[], RawSplits], max_shift: int) -> _Prepared:
    raw = read()
    training, validation = raw.training, raw.validation
    if validation is None:
        kept, out = held_out(training.labels, VALIDATION, "validation")
        training, validation = part_in_memory(training, kept), part_in_memory(training, out)
        check_all_classes(training, raw.classes, len(out))
    counts = torch.stack([plane.flatten().bincount(minlength=256) for plane in training.pixels.unbind(-1)]).double()
    levels = torch.arange(256, dtype=torch.float64)
    mean = (counts * levels).sum(1) / counts.sum(1)
    deviation = ((counts * (levels - mean[:, None]).square()).sum(1) / counts.sum(1)).sqrt().clamp(min=1.0)
    border = (0, 0, max_shift, max_shift, max_shift, max_shift)
    parts: dict[Split, LabelledImages] = {"validation": validation, "test": raw.test}
    padded = F.pad(training.pixels, border)
    return _Prepared(padded, training.labels, parts, mean.float(), deviation.float(), raw.classes, raw.fingerprint)
