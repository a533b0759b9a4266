"""Zstandard over the bytes of a tensor, bytes of the same significance together."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from sparsebench.errors import SparsebenchError
from sparsebench.storage.damage import DamagedFileError

__all__ = ["check_level", "compress", "content_bytes", "decompress"]

MAX_LEVEL = 22


def check_level(level: int) -> None:
    """Refuse what is no level of zstd, and a call without the package.

    Raises:
        SparsebenchError: The level is not from 1 to 22, or zstandard is not installed.
    """
    if type(level) is not int or not 1 <= level <= MAX_LEVEL:
        raise SparsebenchError(f"zstd={level!r}: expected a level from 1 (fast) to {MAX_LEVEL} (small)")
    _zstandard()


def compress(data: NDArray[np.uint8], width: int, level: int) -> NDArray[np.uint8]:
    """One zstd frame that says how long its content is.

    The sign and the exponent of weights take few values, their mantissas all: apart from each other they compress better.

    Args:
        data: One-dimensional, a multiple of `width` long.
        width: Bytes of an element; the first bytes of all elements come first, then all second ones, and so on.
        level: From 1 to 22.

    Returns:
        The frame.
    """
    planes = np.ascontiguousarray(data.reshape(-1, width).T)
    frame: bytes = _zstandard().ZstdCompressor(level=level).compress(planes.data)
    return np.frombuffer(frame, np.uint8)


def content_bytes(frame: NDArray[np.uint8]) -> int:
    """How long the content of a frame is, as the frame says; nothing is decompressed.

    Raises:
        DamagedFileError: This is no frame, or it does not say.
    """
    zstandard = _zstandard()
    try:
        size: int = zstandard.frame_content_size(frame.tobytes()[:32])
    except zstandard.ZstdError as error:
        raise DamagedFileError("its bytes are no zstd frame") from error
    if size < 0:
        raise DamagedFileError("its zstd frame does not say how long its content is")
    return size


def decompress(frame: NDArray[np.uint8], width: int, size: int) -> NDArray[np.uint8]:
    """What `compress` was given; never more than `size` bytes are allocated.

    Args:
        frame: The frame.
        width: As for `compress`.
        size: How long the content must be, a multiple of `width`.

    Returns:
        `size` bytes, writable.

    Raises:
        DamagedFileError: The frame is damaged or its content has another length.
    """
    found = content_bytes(frame)
    if found != size:
        raise DamagedFileError(f"its zstd frame has {found} bytes, {size} are expected")
    zstandard = _zstandard()
    try:
        content = zstandard.ZstdDecompressor().decompress(frame.tobytes(), max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedFileError("its zstd frame is damaged") from error
    planes = np.frombuffer(content, np.uint8).reshape(width, -1)
    data: NDArray[np.uint8] = planes.T.copy().reshape(-1)
    return data


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise SparsebenchError("zstd needs the package zstandard: pip install sparsebench[storage]") from None
    module: ModuleType = zstandard
    return module
