"""What a compressed checkpoint holds, tensor by tensor, without decoding it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench.storage.checkpoint_file import CheckpointFile, read_checkpoint
from sparsebench.storage.container import StoredTensor
from sparsebench.storage.damage import naming
from sparsebench.storage.element_types import element_type_named, words
from sparsebench.storage.table import Row, parse_object

__all__ = ["CheckpointReport", "TensorReport", "inspect"]

_HEADER = ["tensor", "shape", "type", "coding", "elements", "zeros", "sparsity", "dense bytes", "stored bytes"]
_LEFT_ALIGNED = 4


@dataclass(frozen=True)
class TensorReport:
    """One tensor.

    Attributes:
        name: Its name in the state dict.
        shape: Its shape.
        dtype: Its element type, as safetensors calls it.
        values_dtype: The element type its values are stored as.
        coding: "plain" (all elements), "bitmask" or "gaps (k=3)" (the mask's Golomb-Rice code with its parameter), with "+ zstd".
        elements: Number of its elements.
        zeros: Number of elements without a bit set (-0.0 is not one of them).
        dense_bytes: Its size in a plain safetensors file.
        stored_bytes: Its size in this one, its part of the header left out.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    values_dtype: str
    coding: str
    elements: int
    zeros: int
    dense_bytes: int
    stored_bytes: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return self.zeros / self.elements if self.elements else 0.0


@dataclass(frozen=True, repr=False)
class CheckpointReport:
    """What a compressed checkpoint holds. `print` shows it as a table.

    Attributes:
        tensors: A row for every tensor, tied ones once.
        tied: Second names of tensors, and the first.
        file_bytes: Size of the file.
        method: How the network became sparse, if the file says so.
        config: The configuration it was trained with, likewise.
        metrics: What was measured of it, likewise.
    """

    tensors: tuple[TensorReport, ...]
    tied: dict[str, str]
    file_bytes: int
    method: str | None
    config: dict[str, Any] | None
    metrics: dict[str, Any] | None

    @property
    def dense_bytes(self) -> int:
        """Size of all tensors in a plain safetensors file, its header left out."""
        return sum(tensor.dense_bytes for tensor in self.tensors)

    @property
    def stored_bytes(self) -> int:
        """Size of all tensors in this file, its header left out."""
        return sum(tensor.stored_bytes for tensor in self.tensors)

    @property
    def ratio(self) -> float:
        """How many times smaller than the dense tensors the whole file is."""
        return self.dense_bytes / self.file_bytes

    def __str__(self) -> str:
        rows = [_cells(tensor) for tensor in self.tensors]
        elements, zeros = sum(t.elements for t in self.tensors), sum(t.zeros for t in self.tensors)
        total = TensorReport("all tensors", (), "", "", "", elements, zeros, self.dense_bytes, self.stored_bytes)
        cells = [_HEADER, *rows, _cells(total)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [_line(row, widths) for row in cells]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [lines[0], rule, *lines[1:-1], *([rule] if rows else []), lines[-1]]
        lines += [f"{_shown(second)} is {_shown(first)} (tied, stored once)" for second, first in self.tied.items()]
        lines.append(f"file: {self.file_bytes:,} bytes with its header, {self.ratio:.2f} times smaller than the dense tensors")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def inspect(path: str | Path) -> CheckpointReport:
    """Tell what a compressed checkpoint holds; its checksum is verified, nothing is decoded.

    Args:
        path: What `save_compressed` wrote.

    Returns:
        The report.

    Raises:
        SparsebenchError: There is no such file, it is damaged, or it is no compressed checkpoint.

    Example:
        >>> import tempfile, torch
        >>> from sparsebench.storage import save_compressed
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_compressed({"weight": torch.eye(64), "bias": torch.ones(64)}, path, method="by hand")
        >>> print(inspect(path))
        tensor       shape    type  coding      elements  zeros  sparsity  dense bytes  stored bytes
        --------------------------------------------------------------------------------------------
        weight       64 x 64  F32   gaps (k=5)     4,096  4,032   98.44 %       16,384           320
        bias         64       F32   plain             64      0    0.00 %          256           256
        --------------------------------------------------------------------------------------------
        all tensors                                4,160  4,032   96.92 %       16,640           576
        file: 1,048 bytes with its header, 15.88 times smaller than the dense tensors
    """
    file = read_checkpoint(Path(path))
    metadata = file.container.metadata
    with naming(path):
        described = {field: parse_object(metadata[field], field) for field in ("config", "metrics") if field in metadata}
        tensors = []
        for name in file.names:
            with naming(f"tensor {name!r:.100}"):
                tensors.append(_report(file, name))
    return CheckpointReport(
        tensors=tuple(tensors),
        tied=file.tied,
        file_bytes=file.container.size,
        method=metadata.get("method"),
        config=described.get("config"),
        metrics=described.get("metrics"),
    )


def _report(file: CheckpointFile, name: str) -> TensorReport:
    stored, row = file.container.tensors[name], file.rows.get(name)
    if row is None:
        elements, zeros = _count(stored)
        return TensorReport(
            name, stored.shape, stored.kind, stored.kind, "plain", elements, zeros, len(stored.data), len(stored.data)
        )
    mask_bytes = 0 if row.mask is None else len(file.container.tensors[row.mask].data)
    return TensorReport(
        name, row.shape, row.kind, row.values, _coding(row), row.elements, row.zeros, row.bytes, len(stored.data) + mask_bytes
    )


def _count(stored: StoredTensor) -> tuple[int, int]:
    """Elements and zeros among them."""
    kind = element_type_named(stored.kind)
    if kind.packed > 1:  # 4-bit floats, two to a byte
        zeros = np.count_nonzero(stored.data & 0x0F == 0) + np.count_nonzero(stored.data & 0xF0 == 0)
        return 2 * len(stored.data), int(zeros)
    elements = words(stored.data, kind.bytes)
    return len(elements), len(elements) - int(np.count_nonzero(elements))


def _coding(row: Row) -> str:
    coding = "plain" if row.mask is None else f"gaps (k={row.rice})" if row.rice else "bitmask"
    return f"{coding} + zstd" if row.zstd else coding


def _shown(name: str) -> str:
    """A name as it is, but for what would move a terminal's cursor or colour it."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in name)


def _cells(tensor: TensorReport) -> list[str]:
    converted = tensor.values_dtype != tensor.dtype
    return [
        _shown(tensor.name),
        " x ".join(map(str, tensor.shape)),
        f"{tensor.dtype} as {tensor.values_dtype}" if converted else tensor.dtype,
        tensor.coding,
        f"{tensor.elements:,}",
        f"{tensor.zeros:,}",
        f"{100 * tensor.sparsity:.2f} %",
        f"{tensor.dense_bytes:,}",
        f"{tensor.stored_bytes:,}",
    ]


def _line(cells: list[str], widths: list[int]) -> str:
    aligned = [
        cell.ljust(width) if column < _LEFT_ALIGNED else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(aligned).rstrip()
