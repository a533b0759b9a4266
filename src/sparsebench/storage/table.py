"""The table in the metadata of a compressed checkpoint: a row for every tensor that is not stored as it is."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from sparsebench.storage.damage import DamagedFileError, naming
from sparsebench.storage.element_types import ElementType, element_type_named
from sparsebench.storage.golomb_rice import MAX_PARAMETER

__all__ = ["CONVERSIONS", "FORMAT", "MOST_TEXT", "Row", "parse_object", "parse_table", "table_json"]

FORMAT = "sparsebench compressed 1"

# Element types and what their values may be stored as instead.
CONVERSIONS = {"F32": ("F16", "BF16"), "F64": ("F16", "BF16")}

# Characters of a text in the metadata. As objects it takes up to 25 times as much: "[[],[],...". A row takes some 150.
MOST_TEXT = 1 << 24

_MAX_DIMENSIONS = 64
_MAX_ELEMENTS = 1 << 60
_KEYS = {"dtype", "shape", "zeros", "values", "mask", "rice", "zstd"}


@dataclass(frozen=True)
class Row:
    """How a tensor is stored.

    Attributes:
        kind: Name of its element type.
        shape: Its shape.
        zeros: Number of elements without a bit set, which are dropped if there is a mask.
        values: Name of the element type its values are stored as; `kind` unless they were converted.
        mask: Name of the stored tensor with the code of its mask; None if all elements are stored.
        rice: Parameter of that code; None without a mask.
        zstd: Which of "values" and "mask" are compressed with zstd.
    """

    kind: str
    shape: tuple[int, ...]
    zeros: int
    values: str
    mask: str | None = None
    rice: int | None = None
    zstd: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def kept(self) -> int:
        """Number of values that are stored."""
        return self.elements if self.mask is None else self.elements - self.zeros

    @property
    def element_type(self) -> ElementType:
        """The type of its elements."""
        return element_type_named(self.kind)

    @property
    def value_type(self) -> ElementType:
        """The type its values are stored as."""
        return element_type_named(self.values)

    @property
    def bytes(self) -> int:
        """Size of the tensor that comes out."""
        return self.elements * self.element_type.bytes

    @property
    def is_plain(self) -> bool:
        """The tensor is stored as it is, and needs no row."""
        return self.mask is None and self.values == self.kind and not self.zstd

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values; what has its usual value is left out."""
        row: dict[str, Any] = {"dtype": self.kind, "shape": list(self.shape), "zeros": self.zeros}
        if self.values != self.kind:
            row["values"] = self.values
        if self.mask is not None:
            row |= {"mask": self.mask, "rice": self.rice}
        if self.zstd:
            row["zstd"] = list(self.zstd)
        return row


def table_json(rows: dict[str, Row]) -> str:
    """The text of a table."""
    return json.dumps({name: row.to_json() for name, row in rows.items()}, ensure_ascii=False, separators=(",", ":"))


def parse_table(text: str) -> dict[str, Row]:
    """Read a table; every row is whole and makes sense by itself.

    Args:
        text: What `table_json` gave, or anything else.

    Returns:
        Rows by name of the tensor.

    Raises:
        DamagedFileError: It is no table; the message names tensor and field.

    Example:
        >>> parse_table('{"w": {"dtype": "F32", "shape": [2, 3], "zeros": 7}}')
        Traceback (most recent call last):
        sparsebench.storage.damage.DamagedFileError: tensor 'w': zeros is 7: expected an integer from 0 to 6
    """
    rows = {}
    for name, fields in parse_object(text, "table of tensors").items():
        with naming(f"tensor {name!r}"):
            rows[name] = _parse_row(fields)
    return rows


def parse_object(text: str, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DamagedFileError: The text is none, or longer than any that is written.
    """
    if len(text) > MOST_TEXT:
        raise DamagedFileError(f"the {what} has {len(text):,} characters: expected at most {MOST_TEXT:,}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"the {what} is not JSON") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"the {what} is not a JSON object")
    return value


def _parse_row(fields: Any) -> Row:
    if not isinstance(fields, dict) or not {"dtype", "shape", "zeros"} <= fields.keys() <= _KEYS:
        raise DamagedFileError("its row does not have the fields that it must have")
    kind = fields["dtype"]
    if not isinstance(kind, str) or element_type_named(kind).packed > 1:
        raise DamagedFileError(f"dtype is {kind!r:.40}: tensors of this type are stored as they are")
    values = fields.get("values", kind)
    if not isinstance(values, str) or (values != kind and values not in CONVERSIONS.get(kind, ())):
        raise DamagedFileError(f"values is {values!r:.40}: values of type {kind} cannot be stored so")
    shape = fields["shape"]
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise DamagedFileError(f"shape is not a list of at most {_MAX_DIMENSIONS} integers")
    elements = math.prod(_integer("an entry of shape", size, 0, _MAX_ELEMENTS) for size in shape)
    if not 0 < elements <= _MAX_ELEMENTS:
        raise DamagedFileError(f"shape stands for {elements} elements: expected 1 to {_MAX_ELEMENTS}")
    zeros = _integer("zeros", fields["zeros"], 0, elements)
    mask, rice, zstd = fields.get("mask"), fields.get("rice"), fields.get("zstd", [])
    if ("mask" in fields) != ("rice" in fields) or not isinstance(fields.get("mask", ""), str):
        raise DamagedFileError("mask and rice must be there together, a name and an integer")
    if mask is not None:
        _integer("rice", rice, 0, MAX_PARAMETER)
    if zstd not in ([], ["values"], ["mask"], ["values", "mask"]) or ("mask" in zstd and mask is None):
        raise DamagedFileError("zstd does not list values, mask or both")
    return Row(kind, tuple(shape), zeros, values, mask, rice, tuple(zstd))


def _integer(field: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise DamagedFileError(f"{field} is {value!r:.40}: expected an integer from {low} to {high}")
    return value
