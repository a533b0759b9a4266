"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sparsebench.errors import SparsebenchError

__all__ = ["atomic_file", "make_directory"]


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` in one step when the block ends well, and vanishes otherwise.

    Args:
        path: The file to write; its directory must exist.

    Yields:
        A file open for writing bytes, in the same directory.

    Raises:
        SparsebenchError: The file cannot be written (no such directory, no permission, disk full). Nothing is left behind,
            and an older file at `path` is as it was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers"
        >>> with atomic_file(path) as file:
        ...     _ = file.write(b"1 2 3")
        >>> path.read_bytes()
        b'1 2 3'
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        opened = temporary.open("xb")
    except OSError as error:
        raise SparsebenchError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SparsebenchError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Create `path` and its parents where they are missing.

    Args:
        path: The directory.

    Raises:
        SparsebenchError: It cannot be created or cannot be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SparsebenchError(f"cannot create folder {path}: {error.strerror or error}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise SparsebenchError(f"cannot write to folder {path}: permission denied; choose another with --out")
