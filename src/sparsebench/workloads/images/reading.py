"""Finding the splits of an image set, and reading those of small images into memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.images.image_files import EncodedImages, part_of_images
from sparsebench.workloads.images.labelled import (
    Labelled,
    LabelledImages,
    check_all_classes,
    check_labels,
    count_classes,
    decode_image,
    stack_images,
)
from sparsebench.workloads.images.layouts import decoded_splits, encoded_splits

__all__ = [
    "EncodedSplits",
    "RawSplits",
    "held_out",
    "part_in_memory",
    "read_encoded_splits",
    "read_splits",
]

T = TypeVar("T", bound=Labelled)

_DECODED_BYTES = 8 * 2**30
ENCODED = "train*.parquet, a folder train with one folder of images for each class, or only such folders"


@dataclass(frozen=True)
class RawSplits:
    """What a data set has: training images, test images, and validation images where they are apart already."""

    training: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages
    classes: int

    @functools.cached_property
    def fingerprint(self) -> int:
        """48 bits that stand for all pixels and labels, whatever files they came in."""
        digest = hashlib.sha256()
        for part in (self.training, self.validation, self.test):
            if part is not None:
                digest.update(f"{tuple(part.pixels.shape)}".encode())
                digest.update(part.pixels.numpy().tobytes())
                digest.update(part.labels.numpy().tobytes())
        return int.from_bytes(digest.digest()[:6], "big")


@dataclass(frozen=True)
class EncodedSplits:
    """Training, validation and test images, disjoint, that are decoded only where they are used.

    Attributes:
        fingerprint: 48 bits that stand for the names and labels of all images.
    """

    training: EncodedImages
    validation: EncodedImages
    test: EncodedImages
    classes: int
    fingerprint: int


def read_splits(folder: Path, test_images: int = 0, classes: int | None = None) -> RawSplits:
    """Read a folder of small images: IDX files, torchvision's CIFAR, Parquet files, or folders train/CLASS/ and test/CLASS/.

    Where there is no test split, the validation split is the test split. Where there is none either, training images drawn by
    hash are held out: a tenth of them, at most `test_images`.

    Args:
        folder: Where the files lie.
        test_images: Most that are held out for the test; 0 where there must be some.
        classes: How many classes there must be; None where any number is right.

    Raises:
        SparsebenchError: A split is missing, a file damaged, or labels and classes do not fit; the message names the file.
    """
    readers: Mapping[str, Callable[[], LabelledImages | None]] = decoded_splits(_checked(folder)) or {
        split: _decoding(read) for split, read in encoded_splits(folder).items()
    }
    expected = f"IDX files (train-images-idx3-ubyte.gz, ...), cifar-10-batches-py, cifar-100-python, {ENCODED}"
    training, validation, test = _find_splits(folder, readers, expected, test_images)
    found = count_classes(training, classes)
    for part in (validation, test):
        if part is None:
            continue
        check_labels(part, found)
        if part.pixels.shape[1:] != training.pixels.shape[1:]:
            raise SparsebenchError(
                f"{part.source} has images of {tuple(part.pixels.shape[1:])} (height, width, channels), {training.source} of "
                f"{tuple(training.pixels.shape[1:])}: all must be alike"
            )
    if test is None:
        kept, out = held_out(training.labels, test_images, "test")
        training, test = part_in_memory(training, kept), part_in_memory(training, out)
        check_all_classes(training, found, len(out))
    return RawSplits(training, validation, test, found)


def read_encoded_splits(folder: Path, validation_images: int, test_images: int = 0, classes: int | None = None) -> EncodedSplits:
    """Find the images of a folder without decoding them: Parquet files, or folders train/CLASS/ and test/CLASS/ (or val/CLASS/).

    Where there is no test split, the validation split is the test split. Where there is none either, or none for validation,
    training images drawn by hash are held out: a tenth of them, at most so many.

    Args:
        folder: Where the files lie.
        validation_images: Most that are held out for validation.
        test_images: Most that are held out for the test; 0 where there must be some.
        classes: How many classes there must be; None where any number is right.

    Raises:
        SparsebenchError: A split is missing, or labels and classes do not fit; the message names the file.
    """
    training, validation, test = _find_splits(folder, encoded_splits(_checked(folder)), ENCODED, test_images)
    found = count_classes(training, classes)
    for part in (validation, test):
        if part is not None:
            check_labels(part, found)
    digest = hashlib.sha256()
    for part in (training, validation, test):
        if part is not None:
            for index, label in enumerate(part.labels):
                digest.update(f"{part.name(index).removeprefix(str(folder))} {label}\n".encode())
    if test is None:
        kept, out = held_out(training.labels, test_images, "test")
        training, test = part_of_images(training, kept.tolist()), part_of_images(training, out.tolist())
        check_all_classes(training, found, len(out))
    if validation is None:
        kept, out = held_out(training.labels, validation_images, "validation")
        training, validation = part_of_images(training, kept.tolist()), part_of_images(training, out.tolist())
        check_all_classes(training, found, len(out))
    return EncodedSplits(training, validation, test, found, int.from_bytes(digest.digest()[:6], "big"))


def _find_splits(
    folder: Path, readers: Mapping[str, Callable[[], T | None]], expected: str, test_images: int
) -> tuple[T, T | None, T | None]:
    """Training, validation where it is apart from test, and test where it is apart from training."""
    if "train" not in readers:
        raise SparsebenchError(f"{folder} holds no training images: expected {expected}")
    training, validation, test = (readers[split]() if split in readers else None for split in ("train", "validation", "test"))
    if training is None:
        raise SparsebenchError(f"{folder} holds training images without labels: all are -1")
    if not len(training.labels):
        raise SparsebenchError(f"{training.source} holds no images")
    if test is None:
        validation, test = None, validation
    if test is None and not test_images:
        raise SparsebenchError(f"{folder} holds training images, but none named test or validation to measure with")
    return training, validation, test


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise SparsebenchError(f"{folder} is not a folder")
    return folder


def _decoding(read: Callable[[], EncodedImages | None]) -> Callable[[], LabelledImages | None]:
    def read_and_decode() -> LabelledImages | None:
        encoded = read()
        return None if encoded is None else _decoded(encoded)

    return read_and_decode


def _decoded(encoded: EncodedImages) -> LabelledImages:
    """All images, decoded; a set that would not fit into memory is refused by the size of its first image."""
    images, names = [], [encoded.name(index) for index in range(len(encoded.labels))]
    for index, name in enumerate(names):
        images.append(decode_image(encoded.read(index), name))
        if images[0].nbytes * len(names) > _DECODED_BYTES:
            raise SparsebenchError(
                f"{encoded.source}: {len(names):,} images of {images[0].shape[1]}x{images[0].shape[0]} pixels do not fit into "
                f"{_DECODED_BYTES // 2**30} GiB of memory"
            )
    return dataclasses.replace(stack_images(images, names, encoded.labels, encoded.source), classes=encoded.classes)


def part_in_memory(images: LabelledImages, indices: torch.Tensor) -> LabelledImages:
    """Some of the examples, by their numbers."""
    return dataclasses.replace(
        images,
        pixels=images.pixels[indices],
        labels=images.labels[indices],
        names=[images.names[index] for index in indices.tolist()] if images.names else (),
    )


def held_out(labels: Sequence[int] | torch.Tensor, most: int, seed_text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices that are kept, and a tenth that is held out, at most so many.

    They are drawn by hash, so that no release of a random generator changes the split.
    """
    count = min(most, max(len(labels) // 10, 1))
    order = sorted(range(len(labels)), key=lambda index: hashlib.sha256(f"{seed_text} {index}".encode()).digest())
    kept, out = (torch.tensor(sorted(part), dtype=torch.int64) for part in (order[count:], order[:count]))
    return kept, out
