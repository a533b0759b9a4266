"""Images too large or too many to hold: decoded and augmented by worker processes while the network trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from sparsebench.workloads.images.image_files import EncodedImages
from sparsebench.workloads.images.loading import Batch, BatchStream, evaluation_batch, evaluation_batches
from sparsebench.workloads.images.measures import Images, accuracy_and_loss, class_scores, classification_loss
from sparsebench.workloads.images.networks import make_network
from sparsebench.workloads.images.reading import EncodedSplits
from sparsebench.workloads.placement import device_of
from sparsebench.workloads.workload import ExampleInput, Recipe, Split

__all__ = ["StreamedImages"]

# Of each channel on ImageNet, in [0, 255]: what published networks are trained with.
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class StreamedImages:
    """A Workload: a set of photographs and a network for them.

    Training images are a random part (8 to 100 % of the area, aspect ratio 3:4 to 4:3; Szegedy et al. 2015), scaled to `size`
    and mirrored with probability one half; evaluation takes the middle of the image whose shorter side is `size` * 8 / 7.

    Attributes:
        name: As studies name it: set and network.
        summary: One line.
        code_revision: Raised when network or augmentation change.
        recipe: The reference recipe.
        read: Finds the files; called once a process.
        network: One of `NETWORKS`, or timm's.
        size: Height and width of what the network is given.
        metric: The primary metric.
    """

    name: str
    summary: str
    code_revision: int
    recipe: Recipe
    read: Callable[[], EncodedSplits]
    network: str
    size: int = 224
    metric: str = "accuracy"

    @property
    def revision(self) -> int:
        """Stands for code and data: other images under the same name are other data."""
        return self.code_revision * 2**48 + _splits(self.read).fingerprint

    @property
    def training_examples(self) -> int:
        """N, the number of training images."""
        return len(_splits(self.read).training.labels)

    def build_model(self) -> nn.Module:
        """A new network, its weights drawn from torch's default generator, in the memory format that convolutions prefer."""
        network = make_network(self.network, 3, self.size, _splits(self.read).classes)
        return network.to(memory_format=torch.channels_last)

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """The training batch of a step, in bytes; an epoch's last, incomplete batch is left out."""
        return _stream(self.read, self.size, seed, batch_size, 0, 1).batch(step)

    def part_of_batch(self, seed: int, step: int, batch_size: int, index: int, count: int) -> tuple[Batch, float]:
        """What one of several processes trains on; no other images are read."""
        stream = _stream(self.read, self.size, seed, batch_size, index, count)
        return stream.batch(step), stream.share

    def loss(self, model: nn.Module, batch: Batch, label_smoothing: float) -> torch.Tensor:
        """Cross entropy in float32, averaged over the batch, whose pixels become numbers on the device that they are on."""
        return classification_loss(model, _normalized(batch), label_smoothing)

    def example_input(self, examples: int) -> ExampleInput:
        """Validation images."""
        images = _splits(self.read).validation
        chosen = [index % len(images.labels) for index in range(examples)]
        return ExampleInput((_normalized(evaluation_batch(images, self.size, chosen)).pixels,))

    def use(self, model: nn.Module, example: ExampleInput) -> torch.Tensor:
        """Scores of all classes."""
        return class_scores(model, example)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Accuracy (top-1) in per cent, and mean cross entropy."""
        images: EncodedImages = getattr(_splits(self.read), split)
        device = device_of(model)
        batches = (Batch(*(part.to(device) for part in batch)) for batch in evaluation_batches(images, self.size))
        return accuracy_and_loss(model, map(_normalized, batches))


def _normalized(batch: Batch) -> Images:
    mean, deviation = (torch.tensor(value, device=batch.pixels.device).view(3, 1, 1) for value in (MEAN, DEVIATION))
    pixels = batch.pixels.to(torch.float32, memory_format=torch.channels_last)
    return Images(pixels.sub_(mean).div_(deviation), batch.labels)


@functools.lru_cache(maxsize=4)
def _splits(read: Callable[[], EncodedSplits]) -> EncodedSplits:
    return read()


@functools.lru_cache(maxsize=1)  # whole batches that are read between parts of others must not leave processes behind
def _stream(read: Callable[[], EncodedSplits], size: int, seed: int, batch_size: int, index: int, count: int) -> BatchStream:
    return BatchStream(_splits(read).training, size, seed, batch_size, index, count)
