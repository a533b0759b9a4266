"""Labelled images as they lie in memory, and the checks that every way of reading them shares."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from sparsebench.errors import SparsebenchError

__all__ = ["Labelled", "LabelledImages", "check_all_classes", "check_labels", "count_classes", "decode_image", "stack_images"]


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size, as they were stored.

    Attributes:
        pixels: uint8 [examples, height, width, channels], 1 channel (grey) or 3 (RGB).
        labels: int64 [examples], from 0.
        source: The file or folder that they come from, for messages.
        classes: How many classes there are, as far as the source says.
        names: What examples are called in messages; by their number where empty.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    source: str
    classes: int | None = None
    names: Sequence[str] = ()

    def name(self, index: int) -> str:
        """What an example is called in messages."""
        return self.names[index] if self.names else f"{self.source}: example {index}"


class Labelled(Protocol):
    """Labelled images, in memory or still encoded, as checks see them."""

    @property
    def labels(self) -> torch.Tensor | Sequence[int]:
        """The class of each example."""

    @property
    def classes(self) -> int | None:
        """How many classes there are, as far as the source says."""

    @property
    def source(self) -> str:
        """Where they come from, for messages."""

    def name(self, index: int) -> str:
        """What an example is called in messages."""


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decode an image file held in memory.

    Args:
        data: PNG, JPEG or whatever else Pillow reads.
        where: What to call it in messages.

    Returns:
        uint8 [height, width, channels], 1 channel where the file is grey, else 3.

    Raises:
        SparsebenchError: It is no image, or a damaged one; or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise SparsebenchError("images in files need Pillow: pip install 'sparsebench[images]'") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = "I;16" if image.mode == "I" and image.format == "PPM" else image.mode  # of PGM files: up to 65,535
            pixels = np.asarray(image if mode == "L" or mode.startswith("I;16") else image.convert("RGB"))
    except Exception as error:  # each format of Pillow's raises its own
        raise SparsebenchError(f"{where} is not a readable image ({_first_line(error)}): replace or remove it") from error
    if mode in ("I", "F"):
        raise SparsebenchError(f"{where} has the mode {mode!r}: expected 8 or 16 bits for each channel")
    if mode.startswith("I;16"):
        pixels = (pixels // 257).astype(np.uint8)  # 65,535 becomes 255
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def stack_images(images: Sequence[np.ndarray], names: Sequence[str], labels: Sequence[int], source: str) -> LabelledImages:
    """Put images of one size together; where some are grey and some are coloured, all become coloured.

    Raises:
        SparsebenchError: There is none, or one has another size than the first.
    """
    if not images:
        raise SparsebenchError(f"{source} holds no images")
    height, width = images[0].shape[:2]
    for image, name in zip(images, names, strict=True):
        if image.shape[:2] != (height, width):
            raise SparsebenchError(
                f"{name} has {image.shape[1]}x{image.shape[0]} pixels, {names[0]} has {width}x{height}: images that are held in "
                "memory must have one size"
            )
    channels = max(image.shape[2] for image in images)
    pixels = np.empty((len(images), height, width, channels), np.uint8)
    for index, image in enumerate(images):
        pixels[index] = image
    return LabelledImages(torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64), source, names=names)


def count_classes(training: Labelled, classes: int | None) -> int:
    """How many classes training images have: what must be, what their source says, or one more than the greatest label.

    Args:
        training: Training images.
        classes: How many there must be; None where any number is right.

    Raises:
        SparsebenchError: There are others, there is one alone, or a class has no image; the message names source or example.
    """
    if classes is not None and training.classes not in (None, classes):
        raise SparsebenchError(f"{training.source} has {training.classes} classes: expected {classes}")
    labels = torch.as_tensor(training.labels, dtype=torch.int64)
    found = classes or training.classes or int(labels.max()) + 1
    check_labels(training, found)
    if found > len(labels):
        greatest = int(labels.argmax())
        raise SparsebenchError(
            f"{training.source} has {len(labels):,} images for {found:,} classes, the greatest label is {int(labels[greatest])} "
            f"({training.name(greatest)}): expected some of all classes"
        )
    check_all_classes(training, found)
    if found < 2:
        raise SparsebenchError(f"{training.source} has one class: expected at least two")
    return found


def check_all_classes(training: Labelled, classes: int, held_out: int = 0) -> None:
    """Refuse training images in which a class is missing.

    Args:
        training: Training images.
        classes: How many there are.
        held_out: How many images were held out, for the message.

    Raises:
        SparsebenchError: The message names the source and the first such class.
    """
    labels = torch.as_tensor(training.labels, dtype=torch.int64)
    missing = (labels.bincount(minlength=classes) == 0).nonzero().flatten()
    if len(missing):
        left = f" left to train on, {held_out} being held out" if held_out else ""
        raise SparsebenchError(
            f"{training.source} has no image of class {int(missing[0])}{left}: expected some of all {classes} classes"
        )


def check_labels(images: Labelled, classes: int) -> None:
    """Refuse labels that no class has.

    Raises:
        SparsebenchError: There are no images, or a label is out of range; the message names the source or the example.
    """
    labels = torch.as_tensor(images.labels, dtype=torch.int64)
    if not len(labels):
        raise SparsebenchError(f"{images.source} holds no images")
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        index = int(outside[0])
        raise SparsebenchError(
            f"{images.name(index)} has label {int(labels[index])}: expected 0 to {classes - 1} ({classes} classes)"
        )


def _first_line(error: Exception) -> str:
    # Pillow names the bytes by their address.
    return re.sub(r" <_io\.BytesIO[^>]*>", "", str(error)).strip().partition("\n")[0][:200] or type(error).__name__
