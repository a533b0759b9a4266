"""Encoded images of Parquet files too large for memory: laid out as Arrow files, from which each is read where it lies."""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from sparsebench.atomic import atomic_file, make_directory
from sparsebench.errors import SparsebenchError

__all__ = ["MappedImages", "map_images"]

# Rows that are held in memory while an Arrow file is written.
ROWS = 256


@dataclass(frozen=True)
class MappedImages:
    """Images of several Parquet files through their Arrow files; can be pickled, and opens each file where it is read.

    Attributes:
        files: The Parquet files, for messages.
        maps: For each its Arrow file.
        labels: The class of each example, all files one after the other.
        classes: How many classes the files say there are.
        source: Where they come from, for messages.
    """

    files: tuple[Path, ...]
    maps: tuple[Path, ...]
    labels: Sequence[int]
    classes: int | None
    source: str

    def read(self, index: int) -> bytes:
        """The encoded bytes of an example.

        Raises:
            SparsebenchError: The row holds no image.
        """
        file, row = self._place(index)
        batches, begins = _batches(self.maps[file])
        number = bisect.bisect_right(begins, row) - 1
        with _damage_told(self.maps[file]):
            image = batches.get_batch(number)["bytes"][row - begins[number]].as_py()
        if not image:
            raise SparsebenchError(f"{self.name(index)} holds no image")
        return bytes(image)

    def name(self, index: int) -> str:
        """The Parquet file and the row."""
        file, row = self._place(index)
        return f"{self.files[file]}, row {row}"

    def _place(self, index: int) -> tuple[int, int]:
        begins = _begins(self.maps)
        file = bisect.bisect_right(begins, index) - 1
        return file, index - begins[file]


def map_images(file: Path, column: str, folder: Path) -> Path:
    """The Arrow file with the images of a Parquet file, written where it is not there yet.

    It is known by the path, size and time of the Parquet file. A few hundred images are held in memory at a time.

    Args:
        file: The Parquet file.
        column: Its column of images {bytes, ...}.
        folder: Where Arrow files are kept.

    Raises:
        SparsebenchError: The Parquet file is damaged, or the Arrow file cannot be written.
    """
    import pyarrow as pa

    known = file.stat()
    digest = hashlib.sha256(f"{file.resolve()} {known.st_size} {known.st_mtime_ns} {column}".encode()).hexdigest()[:16]
    target = folder / f"{file.stem}-{digest}.arrow"
    if target.exists():
        return target
    make_directory(folder)
    schema = pa.schema([("bytes", pa.large_binary())])
    lock = target.with_suffix(".lock")
    try:
        # Of the processes that train together one writes, and the others wait for it.
        with FileLock(lock):
            if not target.exists():
                with atomic_file(target) as out, pa.ipc.new_file(out, schema) as writer:
                    for images in _columns(file, column):
                        writer.write_batch(pa.record_batch([images], schema=schema))
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()  # who holds it by now finds the file there
    return target


def _columns(file: Path, column: str) -> Iterator[Any]:
    """The bytes of the images, some rows at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as rows:
            for batch in rows.iter_batches(ROWS, columns=[column]):
                yield pc.struct_field(batch.column(0), "bytes").cast(pa.large_binary())
    except (OSError, pa.ArrowException) as error:
        raise SparsebenchError(f"{file} is not a readable Parquet file ({str(error).partition(chr(10))[0]})") from error


@functools.cache
def _batches(file: Path) -> tuple[Any, list[int]]:
    """An Arrow file, mapped into memory, and the first row of each of its batches; opened once a process."""
    import pyarrow as pa

    with _damage_told(file):
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        sizes = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
    return reader, [0, *itertools.accumulate(sizes)][:-1]


@contextlib.contextmanager
def _damage_told(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise SparsebenchError(f"{file} cannot be read ({reason}): remove it, and the next run makes it anew") from error


@functools.cache
def _begins(maps: tuple[Path, ...]) -> list[int]:
    """The number of the first example of each file."""
    counts = []
    for file in maps:
        batches, begins = _batches(file)
        last = batches.num_record_batches - 1
        counts.append(begins[last] + batches.get_batch(last).num_rows if last >= 0 else 0)
    return [0, *itertools.accumulate(counts)][:-1]
