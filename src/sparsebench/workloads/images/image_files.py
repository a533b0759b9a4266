"""Labelled images that are still files: what every source of them offers, and folders with one folder for each class."""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.images.labelled import Labelled

__all__ = [
    "SPLIT_NAMES",
    "EncodedImages",
    "class_folders",
    "folder_images",
    "holds_images",
    "is_hidden",
    "part_of_images",
    "split_folder",
]

_ENDINGS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff"})
SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "valid", "val"), "test": ("test", "testing")}


class EncodedImages(Labelled, Protocol):
    """Labelled images that are still files, or the bytes of files; can be pickled, for processes that decode them."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of each example."""

    def read(self, index: int) -> bytes:
        """The encoded bytes of an example; an error that names it where they cannot be read."""


@dataclass(frozen=True)
class _Files:
    """Files below a folder: their paths from there, one after the other, the end of each, and the class of each.

    A million paths and numbers as objects would take half a gigabyte, and as much again in every process that reads them: to look
    at an object is to count it, and what is written to is no longer shared with the process that it came from.
    """

    folder: str
    paths: bytes
    ends: array[int]
    labels: array[int]
    classes: int
    source: str

    def read(self, index: int) -> bytes:
        name = self.name(index)
        try:
            return Path(name).read_bytes()
        except OSError as error:
            raise SparsebenchError(f"cannot read {name}: {error.strerror or error}") from error

    def name(self, index: int) -> str:
        begin = self.ends[index - 1] if index else 0
        return str(Path(self.folder, os.fsdecode(self.paths[begin : self.ends[index]])))


@dataclass(frozen=True)
class _Part:
    whole: EncodedImages
    indices: array[int]
    labels: array[int]
    classes: int | None
    source: str

    def read(self, index: int) -> bytes:
        return self.whole.read(self.indices[index])

    def name(self, index: int) -> str:
        return self.whole.name(self.indices[index])


def part_of_images(whole: EncodedImages, indices: Sequence[int]) -> EncodedImages:
    """Some of the examples of a source, by their numbers."""
    labels = array("q", (whole.labels[index] for index in indices))
    return _Part(whole, array("q", indices), labels, whole.classes, whole.source)


def split_folder(folder: Path, split: str) -> Path | None:
    """The folder of "train", "validation" or "test", under whichever usual name; with capitals where there are folders in it.

    Raises:
        SparsebenchError: There are two.
    """
    names = SPLIT_NAMES[split]
    found = [
        place
        for place in class_folders(folder)
        if place.name in names or (place.name.casefold() in names and class_folders(place))
    ]
    if len(found) > 1:
        raise SparsebenchError(f"{folder} holds both {found[0].name} and {found[1].name}: keep one of them there")
    return found[0] if found else None


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names, but for those that other programs hide.

    Raises:
        SparsebenchError: It cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    except OSError as error:
        raise SparsebenchError(f"cannot read {folder}: {error.strerror or error}") from error


def holds_images(folder: Path) -> bool:
    """Whether there are image files in a folder or below it."""
    return next(_images(folder), None) is not None


def folder_images(folder: Path, training: Path) -> EncodedImages:
    """A folder that holds one folder of images for each class; what other programs hide there is passed over.

    Classes are numbered in the order of their names in the folder of training images, whatever split this is: where a class has
    no test images the others keep their numbers.

    Args:
        folder: The folder.
        training: That of the training images of its set, which may be the same.

    Raises:
        SparsebenchError: There are no classes, one of them is empty, or there is one that training does not have.
    """
    places = class_folders(folder)
    if not places:
        raise SparsebenchError(f"{folder} has no folders in it: expected one for each class, with its images")
    numbers = {place.name: number for number, place in enumerate(class_folders(training))}
    paths: list[bytes] = []
    labels = array("q")
    for place in places:
        if place.name not in numbers:
            raise SparsebenchError(f"{place} is a class that {training} does not have: expected {', '.join(list(numbers)[:8])}")
        files = sorted(_images(place))
        if not files:
            raise SparsebenchError(
                f"{place} is an empty class: put images of it there ({', '.join(sorted(_ENDINGS))}), or remove the folder"
            )
        paths.extend(os.fsencode(file.relative_to(folder)) for file in files)
        labels.extend(itertools.repeat(numbers[place.name], len(files)))
    ends = array("q", itertools.accumulate(map(len, paths)))
    return _Files(str(folder), b"".join(paths), ends, labels, len(numbers), str(folder))


def _images(folder: Path) -> Iterator[Path]:
    """Image files below a folder, those behind links to folders included, each folder once.

    Raises:
        SparsebenchError: A folder cannot be read.
    """
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(place)
        # In order, so that of two links to one folder always the same is taken.
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in files:
            path = Path(place, name)
            if path.suffix.lower() in _ENDINGS and not is_hidden(name) and path.is_file():
                yield path


def _unreadable(error: OSError) -> None:
    raise SparsebenchError(f"cannot read {error.filename}: {error.strerror or error}") from error


def is_hidden(name: str) -> bool:
    """Whether other programs leave files and folders of this name: thumbnails, forks, checkpoints."""
    return name.startswith(".") or name in ("__MACOSX", "lost+found")
