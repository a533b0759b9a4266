"""One colour and one marker per method, the same in every figure and every study."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Style", "styles"]


@dataclass(frozen=True)
class Style:
    """How a method looks: a hexadecimal colour and one of Plotly's marker symbols."""

    colour: str
    symbol: str


# Okabe and Ito, "Color Universal Design", 2008: told apart by people with any common colour vision deficiency. Black
# is replaced by a grey that shows on light and dark pages alike; the marker says the same as the colour.
_KNOWN = {
    "dense": Style("#808080", "line-ew"),
    "magnitude": Style("#0072b2", "circle"),
    "magnitude-global": Style("#56b4e9", "square"),
    "magnitude-erk": Style("#009e73", "diamond"),
    "variational-dropout": Style("#d55e00", "triangle-up"),
    "l0": Style("#cc79a7", "triangle-down"),
    "random": Style("#e69f00", "x"),
}
# Paul Tol's "muted" scheme, as far as it shows on both backgrounds and differs from the above.
_OTHERS = tuple(
    Style(colour, symbol)
    for colour, symbol in (
        ("#aa4499", "star"),
        ("#999933", "hexagon"),
        ("#7a68c8", "pentagon"),
        ("#b0455f", "cross"),
        ("#2a9d9d", "star-diamond"),
        ("#8c6d31", "hourglass"),
        ("#5b8c2a", "bowtie"),
    )
)


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Give every method its style.

    Args:
        methods: Names of methods. Those this project ships always look the same; any others take the spare styles in
            the order of their names.

    Example:
        >>> styles(["l0", "mine"])["l0"].symbol
        'triangle-down'
    """
    names = sorted(set(methods))
    strangers = [name for name in names if name not in _KNOWN]
    spare = {name: _OTHERS[index % len(_OTHERS)] for index, name in enumerate(strangers)}
    return {name: _KNOWN.get(name) or spare[name] for name in names}
