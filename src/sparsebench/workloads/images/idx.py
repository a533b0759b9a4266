"""IDX files, the format of MNIST (LeCun, Cortes and Burges), compressed with gzip or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.images.labelled import LabelledImages

__all__ = ["find_idx", "read_idx", "read_idx_pair"]

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_STEMS = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file.

    The header is two zero bytes, the type, the number of dimensions and each of them in four bytes, big-endian; values follow.

    Args:
        path: The file, compressed with gzip or not, whatever it is called.

    Returns:
        An array of the file's shape and type.

    Raises:
        SparsebenchError: It cannot be read, is no IDX file, or has more or fewer values than its header says.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SparsebenchError(f"{path} is truncated or damaged ({error}): get it anew") from error
    except OSError as error:
        raise SparsebenchError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES:
        raise SparsebenchError(f"{path} is not an IDX file: expected it to begin with two zero bytes and a type")
    begin = 4 + 4 * data[3]
    if len(data) < begin:
        raise SparsebenchError(f"{path} is truncated in its header: get it anew")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", data[3], 4))
    kind = np.dtype(_TYPES[data[2]])
    expected = math.prod(shape) * kind.itemsize
    if len(data) - begin != expected:
        what = "truncated" if len(data) - begin < expected else "longer than its header says"
        raise SparsebenchError(f"{path} is {what}: {len(data) - begin:,} bytes of values, expected {expected:,} for {shape}")
    return np.frombuffer(data, kind, offset=begin).reshape(shape)


def find_idx(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The files of images and labels of "train" or "test", by the names that MNIST's have, in `folder` or in its folder raw.

    Raises:
        SparsebenchError: There is only one of them.
    """
    found: list[Path | None] = []
    for what in ("images-idx3", "labels-idx1"):
        names = [
            f"{_STEMS[split]}-{what.replace('-idx', separator)}-ubyte{end}"
            for separator in ("-idx", ".idx")
            for end in ("", ".gz")
        ]
        places = (folder / part / name for part in ("", "raw") for name in names)
        found.append(next((place for place in places if place.is_file()), None))
    images, labels = found
    if images is not None and labels is not None:
        return images, labels
    if alone := images or labels:
        missing = f"{_STEMS[split]}-{'labels-idx1' if images else 'images-idx3'}-ubyte"
        raise SparsebenchError(f"{alone} lies there alone: expected {missing} or {missing}.gz beside it")
    return None


def read_idx_pair(images: Path, labels: Path) -> LabelledImages:
    """Images and labels from two IDX files.

    Raises:
        SparsebenchError: A file is damaged, is of another kind, or they differ in the number of examples.
    """
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise SparsebenchError(f"{images} has shape {pixels.shape} of {pixels.dtype}: expected uint8 [images, height, width]")
    if classes.ndim != 1 or classes.dtype != np.uint8:
        raise SparsebenchError(f"{labels} has shape {classes.shape} of {classes.dtype}: expected uint8 [labels]")
    if len(pixels) != len(classes):
        raise SparsebenchError(f"{labels} has {len(classes)} labels for the {len(pixels)} images of {images}")
    return LabelledImages(torch.from_numpy(pixels.copy())[..., None], torch.from_numpy(classes.astype(np.int64)), str(labels))
