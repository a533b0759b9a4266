"""Images in folders (one for each class) and in Parquet files (the Hugging Face layout): what there is, before it is decoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sparsebench.errors import SparsebenchError

__all__ = ["EncodedImages", "folder_images", "parquet_images", "part_of_images", "split_folder", "split_parquet"]

_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
_SYNONYMS = {"train": ("train", "training"), "validation": ("validation", "valid", "val"), "test": ("test", "testing")}
_PARQUET_BYTES = 8 * 2**30
LABEL_COLUMNS = ("label", "fine_label", "labels")
IMAGE_COLUMNS = ("image", "img")


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
class _Cells:
    """Rows of Parquet files: file, row, and pyarrow's scalar {bytes, path} of each."""

    cells: Sequence[tuple[Path, int, Any]]
    labels: Sequence[int]
    classes: int | None
    source: str

    def read(self, index: int) -> bytes:
        cell = self.cells[index][2].as_py()
        if not cell or not cell.get("bytes"):
            raise SparsebenchError(f"{self.name(index)} holds no image")
        return bytes(cell["bytes"])

    def name(self, index: int) -> str:
        file, row, _ = self.cells[index]
        return f"{file}, row {row}"


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
    return next((folder / name for name in _SYNONYMS[split] if (folder / name).is_dir()), None)


def folder_images(folder: Path) -> EncodedImages:
    """A folder that holds one folder of images for each class; classes are numbered in the order of their names.

    Raises:
        SparsebenchError: There are no classes, or one of them is empty.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise SparsebenchError(f"{folder} has no folders in it: expected one for each class, with its images")
    paths: list[Path] = []
    labels: list[int] = []
    for label, place in enumerate(classes):
        files = sorted(path for path in place.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
        if not files:
            raise SparsebenchError(f"{place} is an empty class: put images of it there, or remove the folder")
        paths.extend(files)
        labels.extend([label] * len(files))
    return _Files(paths, labels, len(classes), str(folder))


def split_parquet(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split: NAME.parquet, NAME-00000-of-00002.parquet, in `folder` or else in a folder in it."""
    for pattern in ("*.parquet", "*/*.parquet"):
        found = sorted(path for path in folder.glob(pattern) if path.stem.partition("-")[0] in _SYNONYMS[split])
        if found:
            return found
    return []


def parquet_images(files: Sequence[Path]) -> EncodedImages:
    """Parquet files with a column of images {bytes, path} and a column of labels.

    Raises:
        SparsebenchError: pyarrow is not installed, or a file is damaged or of another layout.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise SparsebenchError("Parquet files need pyarrow: pip install 'sparsebench[images]'") from error
    if (size := sum(file.stat().st_size for file in files)) > _PARQUET_BYTES:
        raise SparsebenchError(
            f"{files[0].parent}: {size / 2**30:.0f} GiB of Parquet files, which are read as a whole; expected at most "
            f"{_PARQUET_BYTES // 2**30} GiB, or a folder train with one folder of images for each class"
        )
    cells: list[tuple[Path, int, Any]] = []
    labels: list[int] = []
    classes = None
    for file in files:
        try:
            schema = pq.read_schema(file)
            image = _column(file, schema.names, IMAGE_COLUMNS)
            label = _column(file, schema.names, LABEL_COLUMNS)
            table = pq.read_table(file, columns=[image, label])
        except (OSError, pa.ArrowException) as error:
            raise SparsebenchError(f"{file} is not a readable Parquet file ({str(error).partition(chr(10))[0]})") from error
        if not pa.types.is_struct(table.schema.field(image).type) or not pa.types.is_integer(table.schema.field(label).type):
            raise SparsebenchError(f"{file}: expected {image} to be a struct of bytes and path, and {label} to be whole numbers")
        classes = _classes(schema.metadata or {}, label) or classes
        given = table[label].to_pylist()
        if None in given:
            raise SparsebenchError(f"{file}: row {given.index(None)} has no {label}")
        labels.extend(given)
        cells.extend((file, row, cell) for row, cell in enumerate(table[image]))
    return _Cells(cells, labels, classes, ", ".join(map(str, files)))


def _column(file: Path, names: Sequence[str], known: Sequence[str]) -> str:
    found = next((name for name in known if name in names), None)
    if found is None:
        raise SparsebenchError(f"{file} has the columns {', '.join(names)}: expected one called {' or '.join(known)}")
    return found


def _classes(metadata: dict[bytes, bytes], label: str) -> int | None:
    """The number of classes, as `datasets` writes it beside its tables."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
        return len(names)
    except (KeyError, TypeError, ValueError):
        return None
