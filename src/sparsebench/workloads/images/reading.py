"""Finding the splits of an image set, and reading those of small images into memory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.images.cifar_files import find_cifar, read_cifar
from sparsebench.workloads.images.idx import find_idx, read_idx_pair
from sparsebench.workloads.images.image_files import (
    EncodedImages,
    folder_images,
    part_of_images,
    split_folder,
)
from sparsebench.workloads.images.labelled import LabelledImages, check_all_classes, check_labels, decode_image, stack_images
from sparsebench.workloads.images.parquet_files import parquet_images, split_parquet

__all__ = ["EncodedSplits", "RawSplits", "held_out", "holds_training_images", "read_encoded_splits", "read_splits"]

T = TypeVar("T")

_DECODED_BYTES = 8 * 2**30


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


def read_splits(folder: Path, classes: int | None = None) -> RawSplits:
    """Read a folder of small images: IDX files, torchvision's CIFAR, Parquet files, or folders train/CLASS/ and test/CLASS/.

    Where there is no test split, the validation split is the test split.

    Args:
        folder: Where the files lie.
        classes: How many classes there must be; None where any number is right.

    Raises:
        SparsebenchError: A split is missing, a file damaged, or labels and classes do not fit; the message names the file.
    """
    training, validation, test = _find_splits(folder, _read_split)
    found = int(training.labels.max()) + 1 if classes is None else classes
    for part in (training, validation, test):
        if part is None:
            continue
        check_labels(part.labels, found, part.source)
        if part.pixels.shape[1:] != training.pixels.shape[1:]:
            raise SparsebenchError(
                f"{part.source} has images of {tuple(part.pixels.shape[1:])} (height, width, channels), {training.source} of "
                f"{tuple(training.pixels.shape[1:])}: all must be alike"
            )
    check_all_classes(training.labels, found, training.source)
    return RawSplits(training, validation, test, found)


def read_encoded_splits(folder: Path, validation_images: int, classes: int | None = None) -> EncodedSplits:
    """Find the images of a folder without decoding them: Parquet files, or folders train/CLASS/ and test/CLASS/ (or val/CLASS/).

    Where there is no test split, the validation split is the test split. Where that leaves none for validation, training images
    drawn by hash are held out: a tenth of them, at most `validation_images`.

    Args:
        folder: Where the files lie.
        validation_images: Most that are held out.
        classes: How many classes there must be; None where any number is right.

    Raises:
        SparsebenchError: A split is missing, or labels and classes do not fit; the message names the file.
    """
    training, validation, test = _find_splits(folder, _encoded_split)
    labels = torch.tensor(training.labels)
    found = classes or training.classes or int(labels.max()) + 1
    for part in (training, validation, test):
        if part is not None:
            check_labels(torch.tensor(part.labels), found, part.source)
    check_all_classes(labels, found, training.source)
    digest = hashlib.sha256()
    for part in (training, validation, test):
        if part is not None:
            for index, label in enumerate(part.labels):
                digest.update(f"{part.name(index).removeprefix(str(folder))} {label}\n".encode())
    if validation is None:
        kept, out = held_out(labels, min(validation_images, max(len(labels) // 10, 1)), "validation")
        validation = part_of_images(training, out.tolist())
        training = part_of_images(training, kept.tolist())
    return EncodedSplits(training, validation, test, found, int.from_bytes(digest.digest()[:6], "big"))


def _find_splits(folder: Path, read: Callable[[Path, str], T | None]) -> tuple[T, T | None, T]:
    """Training, validation where it is apart from test, and test."""
    if not folder.is_dir():
        raise SparsebenchError(f"{folder} is not a folder")
    training, validation, test = (read(folder, split) for split in ("train", "validation", "test"))
    if training is None:
        raise SparsebenchError(
            f"{folder} holds no training images: expected IDX files (train-images-idx3-ubyte.gz, ...), cifar-10-batches-py, "
            "cifar-100-python, train*.parquet, or a folder train with one folder for each class"
        )
    if test is None:
        validation, test = None, validation
    if test is None:
        raise SparsebenchError(f"{folder} holds training images, but none named test or validation to measure with")
    return training, validation, test


def holds_training_images(folder: Path) -> bool:
    """Whether training images lie in this very folder, as IDX or Parquet files, or in folders of classes."""
    parquet = [path for path in split_parquet(folder, "train") if path.parent == folder]
    return bool(find_idx(folder, "train") or find_cifar(folder, "train") or parquet or split_folder(folder, "train"))


def _read_split(folder: Path, split: str) -> LabelledImages | None:
    if split != "validation":
        if pair := find_idx(folder, split):
            return read_idx_pair(*pair)
        if batches := find_cifar(folder, split):
            return read_cifar(batches)
    encoded = _encoded_split(folder, split)
    return None if encoded is None else _decoded(encoded)


def _encoded_split(folder: Path, split: str) -> EncodedImages | None:
    if files := split_parquet(folder, split):
        return parquet_images(files)
    place = split_folder(folder, split)
    return None if place is None else folder_images(place)


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
    together = stack_images(images, names, encoded.labels, encoded.source)
    if encoded.classes is not None:
        check_labels(together.labels, encoded.classes, together.source)
    return together


def held_out(labels: torch.Tensor, count: int, seed_text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices for training and for validation, drawn by hash, so that no release of a random generator changes the split."""
    order = sorted(range(len(labels)), key=lambda index: hashlib.sha256(f"{seed_text} {index}".encode()).digest())
    return torch.tensor(sorted(order[count:])), torch.tensor(sorted(order[:count]))
