"""Images in Parquet files, the Hugging Face layout: a column of encoded images and a column of labels."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.data_folders import cache_folder
from sparsebench.workloads.images.image_files import SPLIT_NAMES, EncodedImages, is_hidden
from sparsebench.workloads.images.mapped_images import MappedImages, map_images

__all__ = ["holds_parquet", "parquet_images", "split_parquet"]

# Of all files together. The images of larger ones are laid out in the cache and mapped into memory from there.
IN_MEMORY_BYTES = 4 * 2**30
LABEL_COLUMNS = ("label", "fine_label", "labels")
IMAGE_COLUMNS = ("image", "img")
MOST_CLASSES = 2**31


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


def split_parquet(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split: NAME.parquet, NAME-00000-of-00002.parquet or NAME/ANY.parquet.

    Training's are looked for in `folder`, in the folders in it, and in those in these; the other splits lie in the same place.
    Empty where there are no training files.

    Raises:
        SparsebenchError: Training files lie in several places, which are several sets, or files of a split are missing.
    """
    found = [_parquet_at(folder, depth) for depth in range(3)]
    for at_depth in found:
        places = sorted({place for split, place, _ in at_depth if split == "train"})
        if len(places) > 1:
            raise SparsebenchError(f"{folder} holds several sets, in {places[0]} and in {places[1]}: give one of them")
        if places:
            files: dict[str, list[Path]] = {}
            for split, place, file in itertools.chain.from_iterable(found):
                if place == places[0]:
                    files.setdefault(split, []).append(file)
            for of_split in files.values():
                _check_whole(of_split)
            return files
    return {}


def _check_whole(files: Sequence[Path]) -> None:
    """Refuse parts of a split of which some are missing, or beside which it lies once more."""
    numbers: dict[tuple[Path, str | None], list[int]] = {}
    for file in files:
        part = re.search(r"-(\d+)-of-(\d+)", file.stem)
        numbers.setdefault((file.parent, part and part[2]), []).append(int(part[1]) if part else 0)
    if len(numbers) > 1:
        raise SparsebenchError(f"{files[0]} and {files[-1]} are of the same split, but not parts of one: keep one of them")
    ((_, total), found) = next(iter(numbers.items()))
    missing = set(range(int(total or 0))) - set(found)
    if missing:
        raise SparsebenchError(f"{files[0].parent} lacks part {min(missing)} of {total} beside {files[0].name}: get it anew")


def holds_parquet(folder: Path) -> bool:
    """Whether Parquet files of training images lie in this very folder."""
    return any(split == "train" for split, _, _ in _parquet_at(folder, 0))


def _parquet_at(folder: Path, depth: int) -> list[tuple[str, Path, Path]]:
    """Files so many folders down: the split that each belongs to, the place of its set, and the file."""
    found = []
    for file in sorted(folder.glob(f"{'*/' * depth}*.parquet")):
        if any(map(is_hidden, file.relative_to(folder).parts)):
            continue
        names = [(file.stem.partition("-")[0], file.parent)]
        if depth:
            names.insert(0, (file.parent.name, file.parent.parent))
        belongs = ((split, place) for name, place in names for split, known in SPLIT_NAMES.items() if name.casefold() in known)
        if (first := next(belongs, None)) is not None:
            found.append((*first, file))
    return found


def parquet_images(files: Sequence[Path]) -> EncodedImages | None:
    """Parquet files with a column of images {bytes, path} and a column of labels; None where every label is -1, which is none.

    Files of up to 4 GiB together are read into memory. In larger ones a single image costs as much as the hundreds that are
    compressed with it: their images are laid out once in `arrow` in the cache, as many bytes again, and read from there.

    Raises:
        SparsebenchError: pyarrow is not installed, a file is damaged or of another layout, or the cache cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise SparsebenchError("Parquet files need pyarrow: pip install 'sparsebench[images]'") from error
    labels: list[int] = []
    columns: list[str] = []
    size = 0
    classes = None
    for file in files:
        with _reading(file):
            size += file.stat().st_size
            schema = pq.read_schema(file)
            image = _column(file, schema.names, IMAGE_COLUMNS)
            label = _column(file, schema.names, LABEL_COLUMNS)
            if not _holds_bytes(schema.field(image).type) or not pa.types.is_integer(schema.field(label).type):
                raise SparsebenchError(
                    f"{file}: expected {image} to be a struct of bytes and path, and {label} to be whole numbers"
                )
            given = pq.read_table(file, columns=[label])[label].to_pylist()
        for row, one in enumerate(given):
            if one is None or not -1 <= one < MOST_CLASSES:
                raise SparsebenchError(f"{file}: row {row} has the {label} {one}: expected 0 or more")
        classes = _classes(schema.metadata or {}, label) or classes
        labels.extend(given)
        columns.append(image)
    if labels and max(labels) < 0:
        return None
    source = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    if size > IN_MEMORY_BYTES:
        maps = [map_images(file, image, cache_folder() / "arrow") for file, image in zip(files, columns, strict=True)]
        return MappedImages(tuple(files), tuple(maps), labels, classes, source)
    cells: list[tuple[Path, int, Any]] = []
    for file, image in zip(files, columns, strict=True):
        with _reading(file):
            cells.extend((file, row, cell) for row, cell in enumerate(pq.read_table(file, columns=[image])[image]))
    return _Cells(cells, labels, classes, source)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What goes wrong with a file becomes a line that names it."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise SparsebenchError(f"{file} is not a readable Parquet file ({str(error).partition(chr(10))[0]})") from error


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    held = kind.field("bytes").type
    kinds = (getattr(pa.types, f"is_{name}", None) for name in ("binary", "large_binary", "fixed_size_binary", "binary_view"))
    return any(is_it(held) for is_it in kinds if is_it is not None)  # the last came with pyarrow 16


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
