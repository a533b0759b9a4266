"""One colour and one marker per method, the same in every figure and every study, whatever else is drawn beside it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = ["BUILT_IN", "Style", "style"]


@dataclass(frozen=True)
class Style:
    """How a method looks: a hexadecimal colour and one of Plotly's marker symbols."""

    colour: str
    symbol: str


# The first seven, those of the paper and its variants: Okabe and Ito, "Color Universal Design", 2008, told apart by people with
# any common colour vision deficiency. Black is replaced by a grey that shows on light and dark pages alike. Twenty colours cannot
# all be told apart so, but each of these methods has a marker of its own, which says the same as the colour.
BUILT_IN = {
    "dense": Style("#808080", "line-ew"),
    "magnitude": Style("#0072b2", "circle"),
    "magnitude-global": Style("#56b4e9", "square"),
    "magnitude-erk": Style("#009e73", "diamond"),
    "variational-dropout": Style("#d55e00", "triangle-up"),
    "l0": Style("#cc79a7", "triangle-down"),
    "random": Style("#e69f00", "x"),
    # From here on after Paul Tol's "muted" scheme, as far as it shows on both backgrounds.
    "iterative-magnitude": Style("#aa4499", "star"),
    "lottery-ticket": Style("#999933", "hexagon"),
    "scratch-b": Style("#7a68c8", "pentagon"),
    "scratch-e": Style("#b0455f", "cross"),
    "magnitude-non-uniform": Style("#4d6fd0", "hexagram"),
    "magnitude-structured": Style("#2a9d9d", "triangle-left"),
    "magnitude-one-shot": Style("#5b8c2a", "bowtie"),
    "random-structured": Style("#8c6d31", "triangle-right"),
    "static": Style("#a07800", "hourglass"),
    "set": Style("#3f9a6d", "diamond-tall"),
    "rigl": Style("#c4504a", "star-diamond"),
    "snfs": Style("#8a63b0", "octagon"),
    "snip": Style("#5f6caf", "triangle-se"),
    "grasp": Style("#3d8a8a", "triangle-nw"),
    "synflow": Style("#b36a3c", "diamond-cross"),
    # Of other papers, beside published curves.
    "str": Style("#7d8471", "diamond-wide"),
    "ac/dc": Style("#d17bb0", "star-triangle-up"),
}
_COLOURS = ("#b5651d", "#4a90a4", "#7d9b2e", "#a8557f", "#6b7fbf", "#c0872b", "#2f8f8f")
_SYMBOLS = ("star-square", "star-triangle-down", "triangle-ne", "triangle-sw", "hexagon2")


def style(method: str) -> Style:
    """The look of a method.

    Args:
        method: Its name. One that this project does not know has one of 35 looks, by its name alone: two such may look alike.

    Example:
        >>> style("l0").symbol, style("mine") == style("mine")
        ('triangle-down', True)
    """
    if method in BUILT_IN:
        return BUILT_IN[method]
    number = int.from_bytes(hashlib.sha256(method.encode()).digest()[:4], "big")
    symbol, colour = divmod(number % (len(_COLOURS) * len(_SYMBOLS)), len(_COLOURS))
    return Style(_COLOURS[colour], _SYMBOLS[symbol])
