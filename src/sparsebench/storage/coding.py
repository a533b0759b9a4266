"""One tensor: from its elements to what is stored of it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sparsebench.storage import zstd
from sparsebench.storage.container import StoredTensor
from sparsebench.storage.damage import DamagedFileError
from sparsebench.storage.element_types import bytes_of, element_type, stored_shape, tensor_of, words
from sparsebench.storage.golomb_rice import Gaps, decode_positions, encode_mask, measure_gaps
from sparsebench.storage.table import Row

__all__ = ["CodedTensor", "decode_tensor", "encode_tensor"]

# About what a row of the table, and an entry of its own for the mask, add to the header.
_ROW_BYTES = 128
_ENTRY_BYTES = 128


@dataclass(frozen=True)
class CodedTensor:
    """What is stored of a tensor.

    Attributes:
        row: How; for the table unless `row.is_plain`.
        values: The tensor itself, its values, or a zstd frame of them.
        mask: The code of the mask, or a zstd frame of it; None without one.
    """

    row: Row
    values: StoredTensor
    mask: StoredTensor | None = None


def encode_tensor(tensor: torch.Tensor, dtype: torch.dtype, mask_name: str, level: int | None) -> CodedTensor:
    """Choose the smallest way to store a tensor: as it is, or its non-zero values and the code of its mask.

    Args:
        tensor: Of any shape and type that safetensors has.
        dtype: The type it is to come back in; another one than its own where it was rounded.
        mask_name: What the code of the mask is to be called.
        level: Level of zstd, used where it saves bytes; None for never.

    Raises:
        SparsebenchError: Safetensors has no such type.
    """
    kind, value_type = element_type(dtype), element_type(tensor.dtype)
    data, width = bytes_of(tensor), value_type.bytes
    plain = StoredTensor(value_type.name, stored_shape(tensor), data)
    row = Row(kind.name, plain.shape, 0, value_type.name)
    if not len(data) or kind.packed > 1:
        return CodedTensor(row, plain)
    elements = words(data, width)
    gaps = measure_gaps(elements)
    row = replace(row, zeros=len(elements) - gaps.kept)
    whole, compressed = _smaller(plain, width, level)
    candidates = [CodedTensor(replace(row, zstd=("values",) if compressed else ()), whole)]
    if gaps.code_bytes(gaps.best_parameter) + gaps.kept * width < len(data):
        candidates.append(_sparse(elements, gaps, replace(row, mask=mask_name), level))
    return min(candidates, key=_cost)


def decode_tensor(stored: Mapping[str, StoredTensor], name: str, row: Row) -> torch.Tensor:
    """The tensor that `encode_tensor` was given, to the last bit if it was not rounded.

    Allocates `row.bytes` and a few times what is stored: the caller has to look at `row.bytes` first.

    Args:
        stored: What the file holds.
        name: The tensor's name.
        row: Its row of the table.

    Raises:
        DamagedFileError: What is stored does not fit the row.
    """
    width = row.value_type.bytes
    data = _content(stored, name, row, "values", row.kept * width, width)
    values = _widened(data, row)
    if np.count_nonzero(words(data, width)) != row.elements - row.zeros:
        raise DamagedFileError(f"its values do not have the {row.zeros} zeros that the table tells")
    if row.mask is None or row.rice is None:
        return tensor_of(values, row.element_type, row.shape)
    if "mask" in row.zstd:
        code_bytes = zstd.content_bytes(_entry(stored, row.mask).data)
        if code_bytes > (row.elements + 7) // 8:
            raise DamagedFileError("the code of the mask is longer than a bitmask")
    else:
        code_bytes = len(_entry(stored, row.mask).data)
    code = _content(stored, row.mask, row, "mask", code_bytes, 1)
    elements = np.zeros(row.elements, f"u{row.element_type.bytes}")
    kept, done = words(values, row.element_type.bytes), 0
    for positions in decode_positions(code, row.kept, row.rice, row.elements):
        elements[positions] = kept[done : done + len(positions)]
        done += len(positions)
    return tensor_of(elements.view(np.uint8), row.element_type, row.shape)


def _sparse(elements: NDArray[Any], gaps: Gaps, row: Row, level: int | None) -> CodedTensor:
    """The non-zero values, and the code of where they are."""
    width = elements.itemsize
    packed = elements[elements != 0].view(np.uint8)
    values, values_compressed = _smaller(StoredTensor(row.values, (gaps.kept,), packed), width, level)
    # With zstd the bitmask may win: regular masks compress to almost nothing.
    codes = []
    for parameter in {gaps.best_parameter} | (set() if level is None else {0}):
        code = encode_mask(elements, gaps, parameter)
        codes.append((*_smaller(StoredTensor("U8", (len(code),), code), 1, level), parameter))
    mask, mask_compressed, parameter = min(codes, key=lambda code: (len(code[0].data), code[2]))
    parts = {"values": values_compressed, "mask": mask_compressed}
    zstd_parts = tuple(part for part, compressed in parts.items() if compressed)
    return CodedTensor(replace(row, rice=parameter, zstd=zstd_parts), values, mask)


def _smaller(stored: StoredTensor, width: int, level: int | None) -> tuple[StoredTensor, bool]:
    """The tensor or a zstd frame of it, and whether it is the frame."""
    if level is not None and len(stored.data):
        frame = zstd.compress(stored.data, width, level)
        if len(frame) + _ROW_BYTES < len(stored.data):
            return StoredTensor("U8", (len(frame),), frame), True
    return stored, False


def _cost(coded: CodedTensor) -> int:
    """Bytes in the file, those in its header estimated."""
    if coded.row.is_plain:
        return len(coded.values.data)
    mask_bytes = 0 if coded.mask is None else len(coded.mask.data) + _ENTRY_BYTES
    return len(coded.values.data) + mask_bytes + _ROW_BYTES


def _widened(data: NDArray[np.uint8], row: Row) -> NDArray[np.uint8]:
    if row.values == row.kind:
        return data
    return bytes_of(tensor_of(data, row.value_type, (len(data) // row.value_type.bytes,)).to(row.element_type.torch))


def _content(
    stored: Mapping[str, StoredTensor], name: str, row: Row, part: Literal["values", "mask"], size: int, width: int
) -> NDArray[np.uint8]:
    """The bytes of a part of a tensor, `size` of them; out of their zstd frame if they are in one."""
    entry = _entry(stored, name)
    if part in row.zstd:
        expected: tuple[str, tuple[int, ...]] = ("U8", (len(entry.data),))
    elif part == "mask":
        expected = ("U8", (size,))
    else:
        expected = (row.values, row.shape if row.mask is None else (row.kept,))
    if (entry.kind, entry.shape) != expected:
        found = _described(entry.kind, entry.shape)
        raise DamagedFileError(f"stored {part}: {found}, expected {_described(*expected)}")
    return zstd.decompress(entry.data, width, size) if part in row.zstd else entry.data


def _described(kind: str, shape: tuple[int, ...]) -> str:
    return f"{kind} of shape {list(shape)}"[:200]


def _entry(stored: Mapping[str, StoredTensor], name: str) -> StoredTensor:
    if name not in stored:
        raise DamagedFileError(f"{name!r} is not in the file")
    return stored[name]
