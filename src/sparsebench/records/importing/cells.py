"""What stands in one cell of a result file, read strictly: what is refused is told what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Parse", "Value", "fraction", "number", "one_of", "per_cent", "text", "times_100"]

Value: TypeAlias = str | int | float
Parse: TypeAlias = Callable[[str], Value]
"""Reads a cell; a `ValueError` says what was expected instead."""

# float() alone would take "nan", "1_000" and the digits of any script.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def number(cell: str) -> int | float:
    """A finite decimal number; whole ones become integers, so that "0" and "0.0" are the same setting.

    Example:
        >>> number("8000"), number("1e5"), number("2.22222222222e-7")
        (8000, 100000, 2.22222222222e-07)
    """
    if not _NUMBER.fullmatch(cell) or not math.isfinite(value := float(cell)):
        raise ValueError("expected a number")
    return int(value) if value.is_integer() else value


def fraction(cell: str) -> float:
    """A number between 0 and 1.

    Example:
        >>> fraction("0.600001454353")
        0.600001454353
    """
    return _within(cell, 1.0)


def per_cent(cell: str) -> float:
    """A number between 0 and 100: an accuracy in per cent, a BLEU score.

    Example:
        >>> per_cent("76.67")
        76.67
    """
    return _within(cell, 100.0)


def times_100(cell: str) -> float:
    """A fraction between 0 and 1, in per cent.

    Example:
        >>> round(times_100("0.765299975872"), 6)
        76.529998
    """
    return 100.0 * fraction(cell)


def text(cell: str) -> str:
    """Any text but none."""
    if not cell:
        raise ValueError("expected a text")
    return cell


def one_of(*known: str) -> Parse:
    """A parser of one of a few words.

    Example:
        >>> one_of("linear", "cubic")("cubic")
        'cubic'
    """

    def parse(cell: str) -> str:
        if cell not in known:
            raise ValueError(f"expected {' or '.join(known)}")
        return cell

    return parse


def _within(cell: str, most: float) -> float:
    value = float(number(cell))
    if not 0.0 <= value <= most:
        raise ValueError(f"expected a number from 0 to {most:g}")
    return value
