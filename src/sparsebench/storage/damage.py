"""The error for a file that is not what it should be, and who adds the file's name to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sparsebench.errors import SparsebenchError

__all__ = ["DamagedFileError", "naming"]


class DamagedFileError(SparsebenchError):
    """A file that is cut short, altered, or was never what it is read as."""


@contextlib.contextmanager
def naming(where: str | Path) -> Iterator[None]:
    """Put the file, or the tensor in it, before the message of a `DamagedFileError`.

    Example:
        >>> with naming("model.safetensors"):
        ...     raise DamagedFileError("no table")
        Traceback (most recent call last):
        sparsebench.storage.damage.DamagedFileError: model.safetensors: no table
    """
    try:
        yield
    except DamagedFileError as error:
        raise DamagedFileError(f"{where}: {error}") from error
