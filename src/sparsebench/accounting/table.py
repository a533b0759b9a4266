"""A report as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsebench.accounting.report import Report

__all__ = ["readable_bytes", "report_table"]

_HEADER = ["layer", "type", "shape", "weights", "zeros", "sparsity", "bytes", "compressed"]
_MULTIPLY_ADDS_HEADER = ["multiply-adds", "simulated sparse"]
_LEFT_ALIGNED = 3
_COMPRESSED = "compressed: estimated for one mask bit per weight and the non-zero values, or as held where that is smaller"
_COUNTED = "multiply-adds: for the example input as given; simulated sparse: of non-zero weights only, not a measured speed"
_NOT_COUNTED = "multiply-adds: not counted; report(model, example_input) counts them"


def report_table(report: Report) -> str:
    """The report as lines of text with aligned columns.

    Args:
        report: The report.

    Returns:
        The lines, without a newline at the end.

    Example:
        >>> from torch import nn
        >>> from sparsebench.accounting import report
        >>> print(report_table(report(nn.Linear(2, 3))).splitlines()[2])
        weight            Linear  3 x 2        6      0    0.00 %   24 B        24 B
    """
    counted = any(layer.multiply_adds is not None for layer in report.layers)
    header = _HEADER + (_MULTIPLY_ADDS_HEADER if counted else [])
    rows = [
        [
            layer.name,
            layer.layer_type,
            " x ".join(map(str, layer.shape)),
            f"{layer.weights:,}",
            f"{layer.zeros:,}",
            _percent(layer.sparsity),
            readable_bytes(layer.bytes),
            readable_bytes(layer.compressed_bytes),
            _number(layer.multiply_adds),
            _number(layer.sparse_multiply_adds),
        ]
        for layer in report.layers
    ]
    totals = [
        [
            f"all layers ({len(report.layers):,})",
            "",
            "",
            f"{report.weights:,}",
            f"{report.zeros:,}",
            _percent(report.sparsity),
            readable_bytes(report.weight_bytes),
            readable_bytes(report.compressed_weight_bytes),
            _number(report.multiply_adds),
            _number(report.sparse_multiply_adds),
        ],
        _total("other parameters", report.other_parameters, report.other_bytes, report.other_bytes),
        *([_total("buffers", None, report.buffer_bytes, report.buffer_bytes)] if report.buffer_bytes else []),
        _total("whole model", report.parameters, report.bytes, report.compressed_bytes),
    ]
    widths = [max(map(len, column)) for column in zip(header, *(row[: len(header)] for row in rows + totals), strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_line(header, widths), rule]
    if rows:
        lines += [*(_line(row, widths) for row in rows), rule]
    lines += [_line(row, widths) for row in totals]
    if rows:
        lines += [_COMPRESSED, _COUNTED if counted else _NOT_COUNTED]
    return "\n".join(lines)


def readable_bytes(number: int) -> str:
    """A number of bytes in the unit that suits it.

    Args:
        number: At least 0.

    Returns:
        The number with its unit, binary prefixes.

    Example:
        >>> readable_bytes(1023), readable_bytes(1536), readable_bytes(102_760_448)
        ('1023 B', '1.5 KiB', '98.0 MiB')
    """
    if number < 1024:
        return f"{number} B"
    size = float(number)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        # 1023.95 would be shown as 1024.0 of this unit.
        if size < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:,.1f} TiB"


def _total(label: str, number: int | None, held: int, compressed: int) -> list[str]:
    return [label, "", "", _number(number), "", "", readable_bytes(held), readable_bytes(compressed), "", ""]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _number(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _line(cells: list[str], widths: list[int]) -> str:
    aligned = [
        cell.ljust(width) if column < _LEFT_ALIGNED else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=False))
    ]
    return "  ".join(aligned).rstrip()
