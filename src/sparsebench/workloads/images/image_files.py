"""Labelled images that are still files: what every source of them offers, and folders with one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sparsebench.errors import SparsebenchError

__all__ = ["SPLIT_NAMES", "EncodedImages", "folder_images", "part_of_images", "split_folder"]

_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "valid", "val"), "test": ("test", "testing")}


class EncodedImages(Protocol):
    """Labelled images that are still files, or the bytes of files; can be pickled, for processes that decode them."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of each example."""

    @property
    def classes(self) -> int | None:
        """How many classes there are, as far as the source says."""

    @property
    def source(self) -> str:
        """Where they come from, for messages."""

    def read(self, index: int) -> bytes:
        """The encoded bytes of an example; an error that names it where they cannot be read."""

    def name(self, index: int) -> str:
        """What an example is called in messages."""


@dataclass(frozen=True)
class _Files:
    paths: Sequence[Path]
    labels: Sequence[int]
    classes: int
    source: str

    def read(self, index: int) -> bytes:
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise SparsebenchError(f"cannot read {self.paths[index]}: {error.strerror or error}") from error

    def name(self, index: int) -> str:
        return str(self.paths[index])


@dataclass(frozen=True)
class _Part:
    whole: EncodedImages
    indices: Sequence[int]
    labels: Sequence[int]
    classes: int | None
    source: str

    def read(self, index: int) -> bytes:
        return self.whole.read(self.indices[index])

    def name(self, index: int) -> str:
        return self.whole.name(self.indices[index])


def part_of_images(whole: EncodedImages, indices: Sequence[int]) -> EncodedImages:
    """Some of the examples of a source, by their numbers."""
    return _Part(whole, indices, [whole.labels[index] for index in indices], whole.classes, whole.source)


def split_folder(folder: Path, split: str) -> Path | None:
    """The folder of "train", "validation" or "test", under whichever usual name."""
    return next((folder / name for name in SPLIT_NAMES[split] if (folder / name).is_dir()), None)


def folder_images(folder: Path) -> EncodedImages:
    """A folder that holds one folder of images for each class; what other programs hide there is passed over.

    Classes are numbered in the order of their names, those of the folder of training images beside it, whatever split this is:
    where a class has no test images the others keep their numbers.

    Raises:
        SparsebenchError: There are no classes, one of them is empty, or there is one that training does not have.
    """
    places = _class_folders(folder)
    if not places:
        raise SparsebenchError(f"{folder} has no folders in it: expected one for each class, with its images")
    training = split_folder(folder.parent, "train") or folder
    numbers = {place.name: number for number, place in enumerate(_class_folders(training))}
    paths: list[Path] = []
    labels: list[int] = []
    for place in places:
        if place.name not in numbers:
            raise SparsebenchError(f"{place} is a class that {training} does not have: expected {', '.join(list(numbers)[:8])}")
        files = sorted(path for path in place.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
        files = [path for path in files if not any(map(_is_hidden, path.relative_to(place).parts))]
        if not files:
            raise SparsebenchError(f"{place} is an empty class: put images of it there, or remove the folder")
        paths.extend(files)
        labels.extend([numbers[place.name]] * len(files))
    return _Files(paths, labels, len(numbers), str(folder))


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_hidden(name: str) -> bool:
    """Whether other programs leave files and folders of this name: thumbnails, forks, checkpoints."""
    return name.startswith(".") or name == "__MACOSX"
