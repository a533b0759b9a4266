"""Finding the splits of an image set, and reading those of small images into memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.images.cifar_files import find_cifar, is_cifar, read_cifar
from sparsebench.workloads.images.idx import find_idx, read_idx_pair
from sparsebench.workloads.images.image_files import (
    SPLIT_NAMES,
    EncodedImages,
    folder_images,
    holds_classes,
    part_of_images,
    split_folder,
)
from sparsebench.workloads.images.labelled import (
    Labelled,
    LabelledImages,
    check_labels,
    count_classes,
    decode_image,
    stack_images,
)
from sparsebench.workloads.images.parquet_files import holds_parquet, parquet_images, split_parquet

__all__ = [
    "EncodedSplits",
    "RawSplits",
    "held_out",
    "holds_training_images",
    "part_in_memory",
    "read_encoded_splits",
    "read_splits",
]

T = TypeVar("T", bound=Labelled)

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
    training, validation, test = _find_splits(folder, _read_split, test_images)
    found = count_classes(training, classes)
    for part in (training, validation, test):
        if part is None:
            continue
        check_labels(part, found)
        if part.pixels.shape[1:] != training.pixels.shape[1:]:
            raise SparsebenchError(
                f"{part.source} has images of {tuple(part.pixels.shape[1:])} (height, width, channels), {training.source} of "
                f"{tuple(training.pixels.shape[1:])}: all must be alike"
            )
    if test is None:
        kept, out = held_out(training.labels, _a_tenth(len(training.labels), test_images), "test")
        test = part_in_memory(training, out)
        training = part_in_memory(training, kept)
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
    training, validation, test = _find_splits(folder, _encoded_split, test_images)
    found = count_classes(training, classes)
    digest = hashlib.sha256()
    for part in (training, validation, test):
        if part is not None:
            check_labels(part, found)
            for index, label in enumerate(part.labels):
                digest.update(f"{part.name(index).removeprefix(str(folder))} {label}\n".encode())
    if test is None:
        kept, out = held_out(training.labels, _a_tenth(len(training.labels), test_images), "test")
        test = part_of_images(training, out.tolist())
        training = part_of_images(training, kept.tolist())
    if validation is None:
        kept, out = held_out(training.labels, _a_tenth(len(training.labels), validation_images), "validation")
        validation = part_of_images(training, out.tolist())
        training = part_of_images(training, kept.tolist())
    return EncodedSplits(training, validation, test, found, int.from_bytes(digest.digest()[:6], "big"))


def _a_tenth(examples: int, most: int) -> int:
    return min(most, max(examples // 10, 1))


def _find_splits(folder: Path, read: Callable[[Path, str], T | None], test_images: int) -> tuple[T, T | None, T | None]:
    """Training, validation where it is apart from test, and test where it is apart from training."""
    if not folder.is_dir():
        raise SparsebenchError(f"{folder} is not a folder")
    training, validation, test = (read(folder, split) for split in ("train", "validation", "test"))
    if training is None:
        raise SparsebenchError(
            f"{folder} holds no training images: expected IDX files (train-images-idx3-ubyte.gz, ...), cifar-10-batches-py, "
            "cifar-100-python, train*.parquet, or a folder train with one folder for each class"
        )
    if not len(training.labels):
        raise SparsebenchError(f"{training.source} holds no images")
    if test is None:
        validation, test = None, validation
    if test is None and not test_images:
        raise SparsebenchError(f"{folder} holds training images, but none named test or validation to measure with")
    return training, validation, test


def holds_training_images(folder: Path) -> bool:
    """Whether training images lie in this very folder, as IDX, CIFAR's or Parquet files, or in folders of classes.

    Raises:
        SparsebenchError: One of two IDX files is missing.
    """
    return bool(find_idx(folder, "train") or is_cifar(folder) or holds_parquet(folder) or split_folder(folder, "train"))


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
    place, training = split_folder(folder, split), split_folder(folder, "train")
    if place is not None and (split != "test" or holds_classes(place)):  # test images without labels lie there alone
        return folder_images(place, training or place)
    if split == "train" and not any(split_folder(folder, name) for name in SPLIT_NAMES) and holds_classes(folder):
        return folder_images(folder, folder)
    return None


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


def held_out(labels: Sequence[int] | torch.Tensor, count: int, seed_text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices for training and for validation, drawn by hash, so that no release of a random generator changes the split."""
    order = sorted(range(len(labels)), key=lambda index: hashlib.sha256(f"{seed_text} {index}".encode()).digest())
    return torch.tensor(sorted(order[count:])), torch.tensor(sorted(order[:count]))
