"""Images in Parquet files, the Hugging Face layout: a column of encoded images and a column of labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.data_folders import cache_folder
from sparsebench.workloads.images.image_files import SPLIT_NAMES, EncodedImages
from sparsebench.workloads.images.mapped_images import MappedImages, map_images

__all__ = ["parquet_images", "split_parquet"]

# Of all files together. The images of larger ones are laid out in the cache and mapped into memory from there.
IN_MEMORY_BYTES = 4 * 2**30
LABEL_COLUMNS = ("label", "fine_label", "labels")
IMAGE_COLUMNS = ("image", "img")


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


def split_parquet(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split: NAME.parquet, NAME-00000-of-00002.parquet, in `folder` or else in a folder in it."""
    for pattern in ("*.parquet", "*/*.parquet"):
        found = sorted(path for path in folder.glob(pattern) if path.stem.partition("-")[0] in SPLIT_NAMES[split])
        if found:
            return found
    return []


def parquet_images(files: Sequence[Path]) -> EncodedImages:
    """Parquet files with a column of images {bytes, path} and a column of labels.

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
    large = sum(file.stat().st_size for file in files) > IN_MEMORY_BYTES
    labels: list[int] = []
    cells: list[tuple[Path, int, Any]] = []
    maps: list[Path] = []
    classes = None
    for file in files:
        try:
            schema = pq.read_schema(file)
            image = _column(file, schema.names, IMAGE_COLUMNS)
            label = _column(file, schema.names, LABEL_COLUMNS)
            if not _holds_bytes(schema.field(image).type) or not pa.types.is_integer(schema.field(label).type):
                raise SparsebenchError(
                    f"{file}: expected {image} to be a struct of bytes and path, and {label} to be whole numbers"
                )
            given = pq.read_table(file, columns=[label])[label].to_pylist()
            if large:
                maps.append(map_images(file, image, cache_folder() / "arrow"))
            else:
                cells.extend((file, row, cell) for row, cell in enumerate(pq.read_table(file, columns=[image])[image]))
        except (OSError, pa.ArrowException) as error:
            raise SparsebenchError(f"{file} is not a readable Parquet file ({str(error).partition(chr(10))[0]})") from error
        if None in given:
            raise SparsebenchError(f"{file}: row {given.index(None)} has no {label}")
        classes = _classes(schema.metadata or {}, label) or classes
        labels.extend(given)
    source = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return MappedImages(tuple(files), tuple(maps), labels, classes, source) if large else _Cells(cells, labels, classes, source)


def _holds_bytes(kind: Any) -> bool:
    return hasattr(kind, "get_field_index") and kind.get_field_index("bytes") >= 0


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
