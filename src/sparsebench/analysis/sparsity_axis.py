"""An axis on which 50 %, 90 % and 98 % sparsity are all readable: logarithmic in the fraction of weights kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sparsebench.analysis.wording import asked

__all__ = ["END", "position", "ticks"]

_LOWEST_DENSITY = 0.001
END = 0.999
"""Where the axis ends: an empty network has no place on a logarithmic scale, so whatever is sparser is drawn here."""

_USUAL = (0.5, 0.8, 0.9, 0.95, 0.98, 0.0, 0.99, END)
_GAP = 0.19  # the least distance at which two labels of a phone's figure do not touch


def position(sparsity: float) -> float:
    """Where a sparsity lies on the axis: every tenfold reduction of the weights takes the same room.

    Example:
        >>> [round(position(sparsity), 3) for sparsity in (0.0, 0.5, 0.9, 0.99, 1.0)]
        [0.0, 0.301, 1.0, 2.0, 3.0]
    """
    return -math.log10(max(1.0 - sparsity, _LOWEST_DENSITY)) + 0.0


def ticks(sparsities: Sequence[float]) -> dict[str, list[Any]]:
    """Places and labels of the ticks: every sparsity asked about and the usual ones, labelled where there is room.

    Args:
        sparsities: The sparsities asked about.

    Returns:
        The `tickvals` and `ticktext` of a Plotly axis.

    Example:
        >>> [label.split()[0] for label in ticks([0.6])["ticktext"][:3]]
        ['0', '60', '80']
    """
    wanted = [sparsity for sparsity in _USUAL if sparsity in sparsities]
    wanted += [sparsity for sparsity in sorted(sparsities) if sparsity not in wanted]
    wanted += [sparsity for sparsity in _USUAL if sparsity not in wanted]
    labels: dict[float, str] = {}
    for sparsity in wanted:
        place = position(sparsity)
        if all(abs(place - other) >= _GAP for other, label in labels.items() if label):
            labels[place] = ("≥ " if sparsity == END else "") + asked(sparsity)
        elif sparsity in sparsities:
            labels.setdefault(place, "")
    places = sorted(labels)
    return {"tickvals": places, "ticktext": [labels[place] for place in places]}
