"""Labelled images as they lie in memory, and the checks that every way of reading them shares."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sparsebench.errors import SparsebenchError

__all__ = ["LabelledImages", "check_all_classes", "check_labels", "decode_image", "stack_images"]


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size, as they were stored.

    Attributes:
        pixels: uint8 [examples, height, width, channels], 1 channel (grey) or 3 (RGB).
        labels: int64 [examples], from 0.
        source: The file or folder that they come from, for messages.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    source: str


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
            mode = image.mode
            pixels = np.asarray(image if mode == "L" or mode.startswith("I;16") else image.convert("RGB"))
    except Exception as error:  # each format of Pillow's raises its own
        raise SparsebenchError(f"{where} is not a readable image ({_first_line(error)}): replace or remove it") from error
    if mode in ("I", "F"):
        raise SparsebenchError(f"{where} has the mode {mode!r}: expected 8 or 16 bits for each channel")
    if pixels.dtype.itemsize == 2:
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
    return LabelledImages(torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64), source)


def check_labels(labels: torch.Tensor, classes: int, source: str) -> None:
    """Refuse labels that no class has.

    Raises:
        SparsebenchError: The message names the source, the example and its label.
    """
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        index = int(outside[0])
        raise SparsebenchError(
            f"{source}: example {index} has label {int(labels[index])}: expected 0 to {classes - 1} ({classes} classes)"
        )


def check_all_classes(labels: torch.Tensor, classes: int, source: str) -> None:
    """Refuse training labels in which a class is missing.

    Raises:
        SparsebenchError: The message names the source and the first such class.
    """
    missing = (labels.bincount(minlength=classes) == 0).nonzero().flatten()
    if len(missing):
        raise SparsebenchError(f"{source} has no image of class {int(missing[0])}: expected some of all {classes} classes")


def _first_line(error: Exception) -> str:
    # Pillow names the bytes by their address.
    return re.sub(r" <_io\.BytesIO[^>]*>", "", str(error)).strip().partition("\n")[0][:200] or type(error).__name__
