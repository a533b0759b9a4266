"""Safetensors files as bytes with names, types and shapes: written so that the same content gives the same file."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from sparsebench.atomic import atomic_file
from sparsebench.errors import SparsebenchError
from sparsebench.storage.damage import DamagedFileError

__all__ = [
    "Container",
    "StoredTensor",
    "has_checksum",
    "read_container",
    "verify_checksum",
    "write_container",
    "write_sealed_container",
]

_MAX_HEADER = 100_000_000  # the limit of safetensors' own reader
_ALIGNMENT = 8
_CHECKSUM_START = b'{"__metadata__":{"sha256":"'
_DIGITS = 64
# Eight bytes with the length of the header come first.
_CHECKSUM = slice(8 + len(_CHECKSUM_START), 8 + len(_CHECKSUM_START) + _DIGITS)


@dataclass(frozen=True)
class StoredTensor:
    """An entry of a safetensors file: name of its element type, shape, bytes."""

    kind: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class Container:
    """What a safetensors file holds.

    Attributes:
        metadata: Texts by name.
        tensors: In the order of the header.
        size: Bytes of the whole file.
    """

    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]
    size: int


def write_container(path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: The file.
        tensors: What it holds. The header keeps their order; in the data those with the widest elements come first, which aligns
            them all.
        metadata: Texts for its header, in this order.

    Raises:
        SparsebenchError: It cannot be written, or is more than safetensors allows.
    """
    names = _in_file_order(tensors)
    _write(path, [_header(tensors, names, metadata), *(tensors[name].data.data for name in names)])


def write_sealed_container(path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> None:
    """`write_container`, with metadata that begin with `sha256`: that of the whole file with its 64 digits as zeros."""
    names = _in_file_order(tensors)
    header = _header(tensors, names, {"sha256": "0" * _DIGITS} | dict(metadata))
    parts: list[bytearray | memoryview] = [header, *(tensors[name].data.data for name in names)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    header[_CHECKSUM] = digest.hexdigest().encode()
    _write(path, parts)


def _in_file_order(tensors: Mapping[str, StoredTensor]) -> list[str]:
    return sorted(tensors, key=lambda name: -_width(tensors[name]))


def _header(tensors: Mapping[str, StoredTensor], names: list[str], metadata: Mapping[str, str]) -> bytearray:
    """The beginning of the file up to the data, which come in the order of `names`."""
    places, end = {}, 0
    for name in names:
        places[name] = [end, end + len(tensors[name].data)]
        end = places[name][1]
    if "__metadata__" in tensors:
        raise SparsebenchError("a tensor is called '__metadata__', which safetensors keeps for itself: give it another name")
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, stored in tensors.items():
        if not _is_known(stored.kind):
            raise SparsebenchError(
                f"tensor {name!r} is of type {stored.kind}, which safetensors {safetensors.__version__} cannot read: "
                "install a newer one"
            )
        entries[name] = {"dtype": stored.kind, "shape": list(stored.shape), "data_offsets": places[name]}
    try:
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise SparsebenchError(f"a name or text is not Unicode that can be written: {error.object!r:.100}") from error
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > _MAX_HEADER:
        raise SparsebenchError(f"the header has {len(text)} bytes, safetensors allows {_MAX_HEADER}: shorten config and metrics")
    return bytearray(len(text).to_bytes(8, "little") + text)


def _write(path: Path, parts: Iterable[bytearray | memoryview]) -> None:
    with atomic_file(path) as file:
        for part in parts:
            file.write(part)


def read_container(data: bytes) -> Container:
    """Take a safetensors file apart; safetensors itself checks that header and length agree.

    Raises:
        DamagedFileError: It is not a safetensors file.
    """
    try:
        entries = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"not a whole safetensors file ({_first_line(error)})") from error
    metadata = header.pop("__metadata__", None) or {}
    if set(header) != set(entries):
        raise DamagedFileError("the header of the safetensors file can be read in two ways")
    tensors = {
        name: StoredTensor(entries[name]["dtype"], tuple(entries[name]["shape"]), np.frombuffer(entries[name]["data"], np.uint8))
        for name in header
    }
    return Container(metadata, tensors, len(data))


def has_checksum(data: bytes) -> bool:
    """Tell whether the file begins as `write_container` begins one with a checksum."""
    return data[8 : _CHECKSUM.start] == _CHECKSUM_START


def verify_checksum(data: bytes) -> None:
    """Compare a file that has a checksum with it.

    Raises:
        DamagedFileError: They differ.
    """
    digest = hashlib.sha256(data[: _CHECKSUM.start])
    digest.update(b"0" * _DIGITS)
    digest.update(memoryview(data)[_CHECKSUM.stop :])
    if digest.hexdigest().encode() != data[_CHECKSUM]:
        raise DamagedFileError("cut short or altered since it was written (its SHA-256 is not the one it names)")


@functools.cache
def _is_known(kind: str) -> bool:
    """Whether the installed safetensors reads this type; each release knows more of them."""
    text = json.dumps({"x": {"dtype": kind, "shape": [0], "data_offsets": [0, 0]}}).encode()
    try:
        safetensors.deserialize(len(text).to_bytes(8, "little") + text)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True


def _width(stored: StoredTensor) -> int:
    """Bytes of an element, as its type's name tells; 1 for whatever is not aligned."""
    return 8 if stored.kind.endswith("64") else 4 if stored.kind.endswith("32") else 2 if stored.kind.endswith("16") else 1


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
