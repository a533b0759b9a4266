"""In which layout a folder holds a set of labelled images: what reads each split, all of one layout and of one place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.images.cifar_files import find_cifar, is_cifar, read_cifar
from sparsebench.workloads.images.idx import find_idx, read_idx_pair
from sparsebench.workloads.images.image_files import (
    SPLIT_NAMES,
    EncodedImages,
    class_folders,
    folder_images,
    holds_images,
    split_folder,
)
from sparsebench.workloads.images.labelled import LabelledImages
from sparsebench.workloads.images.parquet_files import holds_parquet, parquet_images, split_parquet

__all__ = ["decoded_splits", "encoded_splits", "holds_encoded_images", "holds_training_images"]


def decoded_splits(folder: Path) -> dict[str, Callable[[], LabelledImages]]:
    """What reads the splits of IDX files, or else of torchvision's CIFAR; empty where there are none of either.

    Raises:
        SparsebenchError: Files are missing.
    """
    pairs = {split: pair for split in ("train", "test") if (pair := find_idx(folder, split))}
    if "train" in pairs:
        return {split: functools.partial(read_idx_pair, *pair) for split, pair in pairs.items()}
    batches = {split: files for split in ("train", "test") if (files := find_cifar(folder, split))}
    return {split: functools.partial(read_cifar, files) for split, files in batches.items()} if "train" in batches else {}


def encoded_splits(folder: Path) -> dict[str, Callable[[], EncodedImages | None]]:
    """What reads the splits of Parquet files, of folders train/CLASS/ and test/CLASS/, or of folders of classes alone.

    Empty where there are none of these. A reader gives None where images have no labels.

    Raises:
        SparsebenchError: There are several sets, or what looks like splits has other names.
    """
    places = {split: place for split in SPLIT_NAMES if (place := split_folder(folder, split))}
    classes = "train" in places and class_folders(places["train"])
    # Below a thousand folders of classes nobody looks for Parquet files, which takes as long as listing all images.
    if (holds_parquet(folder) or not classes) and (parquet := split_parquet(folder)):
        return {split: functools.partial(parquet_images, files) for split, files in parquet.items()}
    if "train" in places:
        # Test images without labels lie in their folder alone.
        labelled = {split: place for split, place in places.items() if split != "test" or class_folders(place)}
        return {split: functools.partial(folder_images, place, places["train"]) for split, place in labelled.items()}
    if places or not _holds_classes_alone(folder):
        return {}
    return {"train": functools.partial(folder_images, folder, folder)}


def _holds_classes_alone(folder: Path) -> bool:
    """Whether there are folders of images that look neither like splits nor like sets of their own."""
    places = class_folders(folder)
    if not any(map(holds_images, places)):
        return False
    if all(map(_looks_like_a_split, places)):
        names = ", ".join(place.name for place in places[:8])
        raise SparsebenchError(f"{folder} holds {names}, which look like splits: call them train and test")
    for place in places:
        if any(split_folder(place, split) for split in SPLIT_NAMES):
            raise SparsebenchError(f"{folder} holds a set, {place}: give that, or move it elsewhere")
    return True


def _looks_like_a_split(place: Path) -> bool:
    name = place.name.casefold()
    return any(name.startswith(known) or name.endswith(known) for names in SPLIT_NAMES.values() for known in names)


def holds_training_images(folder: Path) -> bool:
    """Whether training images lie in this very folder, as IDX, CIFAR's or Parquet files, or in folders of classes.

    Raises:
        SparsebenchError: One of two IDX files is missing.
    """
    return bool(find_idx(folder, "train") or is_cifar(folder) or holds_encoded_images(folder))


def holds_encoded_images(folder: Path) -> bool:
    """Whether training images lie in this very folder as files of images: in Parquet files, or in folders of classes."""
    return holds_parquet(folder) or split_folder(folder, "train") is not None
