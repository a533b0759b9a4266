"""Image sets in IDX files, as MNIST's are."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

__all__ = ["idx_bytes", "write_idx_split"]


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx_split(folder: Path, stem: str, pixels: np.ndarray, labels: np.ndarray, *, packed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        data = idx_bytes(array)
        (folder / f"{stem}-{name}-ubyte{'.gz' * packed}").write_bytes(gzip.compress(data, 1) if packed else data)
