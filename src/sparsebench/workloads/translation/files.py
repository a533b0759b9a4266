"""Parallel text in files: pairs of text files, TSV, Parquet, plain or gzip, read as a stream."""

from __future__ import annotations

import glob
import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

from sparsebench.errors import SparsebenchError

__all__ = [
    "TEST",
    "TRAINING",
    "VALIDATION",
    "Pair",
    "ParallelFiles",
    "find_split",
    "look_for_split",
    "parallel_file",
    "read_lines",
]

Pair: TypeAlias = tuple[str, str]

TRAINING, VALIDATION, TEST = ("train",), ("validation", "valid", "val", "dev"), ("test",)
"""What the names of the files of each split may begin with."""

PARQUET_ROWS = 10_000


@dataclass(frozen=True)
class ParallelFiles:
    """Where one split of a parallel corpus lies; iterating over it reads it, pair by pair, as often as wanted.

    Attributes:
        files: Two text files (source, target; a sentence a line), one TSV file (source, tab, target), or Parquet files.
        languages: Of source and target, as columns of Parquet files are named: `{"translation": {"en": ..., "de": ...}}` as on
            the Hugging Face hub, or a column for each.
        turned: The columns of the TSV file are target and source.
    """

    files: tuple[Path, ...]
    languages: tuple[str, str]
    turned: bool = False

    def __iter__(self) -> Iterator[Pair]:
        if self.files[0].suffix == ".parquet":
            return _read_parquet(self.files, self.languages)
        if len(self.files) == 1:
            pairs = _read_tsv(self.files[0])
            return ((source, target) for target, source in pairs) if self.turned else pairs
        return _read_texts(self.files[0], self.files[1])

    def digest(self) -> str:
        """SHA-256 of the files' bytes.

        Raises:
            SparsebenchError: A file cannot be read.
        """
        total = hashlib.sha256()
        for path in self.files:
            part = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        part.update(block)
            except OSError as error:
                raise SparsebenchError(f"cannot read {path}: {error.strerror or error}") from error
            total.update(part.digest())
        return total.hexdigest()


def find_split(folder: Path, stems: Sequence[str], languages: tuple[str, str]) -> ParallelFiles:
    """Find the files of a split in a folder.

    Args:
        folder: The folder.
        stems: What the files' names may begin with, such as ("val", "dev"): `val.en` and `val.de`, `val.tsv`, `val.parquet` or
            `val-00000-of-00001.parquet`; text also with `.gz`. The languages may follow: `val.en-de.tsv`, which has the
            columns that it says, `val.en-de.en` and `val.en-de.de`.
        languages: Of source and target, the endings of text files.

    Raises:
        SparsebenchError: There is none, or several kinds; the message names them.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "dev.en").write_text("two"), (folder / "dev.de").write_text("zwei")
        >>> list(find_split(folder, ["val", "dev"], ("en", "de")))
        [('two', 'zwei')]
    """
    if (found := look_for_split(folder, stems, languages)) is not None:
        return found
    source, target = languages
    stem = stems[0]
    raise SparsebenchError(
        f"{folder} has no {stem!r}: expected {stem}.{source} and {stem}.{target}, {stem}.tsv or {stem}.{source}-{target}.tsv "
        f"(text also as .gz) or {stem}.parquet"
    )


def look_for_split(folder: Path, stems: Sequence[str], languages: tuple[str, str]) -> ParallelFiles | None:
    """The same, but None where there is none.

    Raises:
        SparsebenchError: There are several kinds; the message names them.
    """
    source, target = languages
    found: list[ParallelFiles] = []
    for stem in (f"{stem}{pair}" for stem in stems for pair in ("", f".{source}-{target}", f".{target}-{source}")):
        texts = [_text_file(folder / f"{stem}.{language}") for language in languages]
        if texts[0] and texts[1]:
            found.append(ParallelFiles((texts[0], texts[1]), languages))
        if tsv := _text_file(folder / f"{stem}.tsv"):
            found.append(parallel_file(tsv, languages))
        if shards := sorted(folder.glob(f"{glob.escape(stem)}.parquet")) + sorted(folder.glob(f"{glob.escape(stem)}-*.parquet")):
            found.append(ParallelFiles(tuple(shards), languages))
    if len(found) > 1:
        names = ", ".join(str(each.files[0].name) for each in found)
        raise SparsebenchError(f"{folder} has several files for {stems[0]!r} ({names}): leave one")
    return found[0] if found else None


def parallel_file(path: Path, languages: tuple[str, str]) -> ParallelFiles:
    """One TSV or Parquet file that holds both sides.

    Raises:
        SparsebenchError: Its name ends in none of `.tsv`, `.tsv.gz`, `.parquet`.
    """
    name = path.name.removesuffix(".gz")
    if not name.endswith(".tsv") and path.suffix != ".parquet":
        raise SparsebenchError(
            f"{path} is neither TSV (.tsv, .tsv.gz) nor Parquet (.parquet): of two text files give what their names have in "
            "common, such as parallel:corpus:en-de for corpus.en and corpus.de"
        )
    turned = re.search(rf"(^|[._-]){languages[1]}-{languages[0]}\.tsv$", name) is not None
    return ParallelFiles((path,), languages, turned)


def _text_file(path: Path) -> Path | None:
    zipped = path.with_name(f"{path.name}.gz")
    return path if path.is_file() else zipped if zipped.is_file() else None


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file in UTF-8, plain or gzip, without their ends. Only line feeds end a line.

    Raises:
        SparsebenchError: It cannot be read, is damaged, or a line is not UTF-8.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise SparsebenchError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line)") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SparsebenchError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise SparsebenchError(f"cannot read {path}: {error.strerror or error}") from error


def _read_texts(source: Path, target: Path) -> Iterator[Pair]:
    sources, targets = read_lines(source), read_lines(target)
    for number, (one, other) in enumerate(zip_longest(sources, targets)):
        if one is None or other is None:
            longer = number + 1 + sum(1 for _ in (sources if other is None else targets))
            lines = (longer, number) if other is None else (number, longer)
            raise SparsebenchError(
                f"{source} has {lines[0]} lines, {target} has {lines[1]}: expected one translation for every line"
            )
        yield one, other


def _read_tsv(path: Path) -> Iterator[Pair]:
    for number, line in enumerate(read_lines(path), 1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise SparsebenchError(f"{path}, line {number}: {len(columns)} columns; expected two, a sentence and its translation")
        yield columns[0], columns[1]


def _read_parquet(paths: Iterable[Path], languages: tuple[str, str]) -> Iterator[Pair]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SparsebenchError("reading Parquet files needs pyarrow: pip install 'sparsebench[results]'") from error
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
            nested = "translation" in file.schema_arrow.names
            columns = ["translation"] if nested else list(languages)
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                known = ", ".join(file.schema_arrow.names)
                raise SparsebenchError(f"{path} has no column {missing[0]!r}, only {known}: name the languages of its columns")
            number = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                table = batch.to_pydict()
                pairs = _translations(path, table["translation"], languages) if nested else zip(*table.values(), strict=True)
                for one, other in pairs:
                    number += 1
                    if not isinstance(one, str) or not isinstance(other, str):
                        raise SparsebenchError(f"{path}, row {number}: {one!r}, {other!r}; expected two texts")
                    yield one, other
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise SparsebenchError(f"cannot read {path}: {str(error).partition(chr(10))[0]}") from error


def _translations(path: Path, rows: list[Any], languages: tuple[str, str]) -> Iterator[tuple[Any, Any]]:
    for row in rows:
        if not isinstance(row, dict) or not all(language in row for language in languages):
            known = ", ".join(row) if isinstance(row, dict) else repr(row)
            raise SparsebenchError(f"{path}: a translation has {known}; expected the languages {' and '.join(languages)}")
        yield row[languages[0]], row[languages[1]]
