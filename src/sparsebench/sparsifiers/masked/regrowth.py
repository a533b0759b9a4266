"""Regrowth: masks that move at a constant number of kept units, as dynamic sparse training does.

At an update a fraction of each layer's kept units is dropped, the worst by one score, and as many are grown, the best by another
score of those that are not kept then. What was just dropped may be grown again at once (Evci et al. 2020, algorithm 1): it then
was never away, and keeps its value and its optimizer state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.choice import best_units, checked_score, kept_units
from sparsebench.sparsifiers.masked.schedules import Schedule
from sparsebench.sparsifiers.masked.scores import LayerState, Score, magnitude, random
from sparsebench.sparsifiers.masked.structures import Channel, NOfM, Structure
from sparsebench.sparsifiers.saved_state import describe
from sparsebench.sparsifiers.selection import WeightMatrix

__all__ = ["Annealing", "Regrowth", "Shares", "apportion", "cosine", "mean_momentum", "unchanged"]

Annealing: TypeAlias = Callable[[int, int], float]
Shares: TypeAlias = Callable[[Sequence[LayerState]], Sequence[float]]


def cosine(step: int, end: int) -> float:
    """`(1 + cos(pi step / end)) / 2`: from 1 at step 0 to 0 at the last update (Dettmers and Zettlemoyer 2019; Evci et al. 2020).

    Example:
        >>> cosine(0, 100), cosine(50, 100), cosine(100, 100)
        (1.0, 0.5, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * step / end))


def unchanged(step: int, end: int) -> float:
    """Always 1: the same fraction at every update (Mocanu et al. 2018)."""
    return 1.0


def mean_momentum(layers: Sequence[LayerState]) -> list[float]:
    """The mean absolute momentum of each layer's kept weights (Dettmers and Zettlemoyer 2019, arXiv 1907.04840, section 3.2)."""
    means = []
    for layer in layers:
        assert layer.momentum is not None
        kept = layer.momentum[layer.mask]
        means.append(float(kept.double().abs().mean()) if kept.numel() else 0.0)
    return means


@dataclass(frozen=True)
class Regrowth:
    """When masks move, how far, and by which scores.

    Args:
        times: When; its sparsity is not used. At step 0 nothing moves.
        grow: What says which units to grow, highest first. Its LayerState has the dense gradient.
        fraction: Fraction of a layer's kept units to drop at an update, in [0, 1]: `floor(fraction * kept + 0.5)` of them.
        annealing: What multiplies the fraction at (step, step of the last update).
        drop: What says which kept units to keep, highest first.
        shares: How what all layers dropped is shared among them, in proportion to these numbers; None: each grows what it lost.
        momentum: Coefficient of a dense average of the gradients that the scores are given, in [0, 1); None: there is none.
        borrows_momentum: Whether the optimizer's own average stands for that one where it keeps one of every weight.

    Raises:
        SparsebenchError: A value is out of range.
    """

    times: Schedule
    grow: Score
    fraction: float
    annealing: Annealing = unchanged
    drop: Score = magnitude
    shares: Shares | None = None
    momentum: float | None = None
    borrows_momentum: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, (int, float)) or not 0.0 <= self.fraction <= 1.0:
            raise SparsebenchError(f"drop_fraction={self.fraction!r}: expected a fraction of the kept weights in [0, 1]")
        if self.momentum is not None and (not isinstance(self.momentum, (int, float)) or not 0.0 <= self.momentum < 1.0):
            raise SparsebenchError(f"momentum={self.momentum!r}: expected a number in [0, 1), such as 0.9")

    def check_composition(self, policy: str, schedule: Schedule, structure: Structure) -> None:
        """Refuse what regrowth cannot be composed with.

        Raises:
            SparsebenchError: The message names what would be right.
        """
        if policy != "gone":
            raise SparsebenchError(f"policy={policy!r}: regrown weights begin at zero, which is policy='gone'")
        if schedule.end != 0:
            raise SparsebenchError(
                f"schedule: regrowth keeps the sparsity; expected one_shot(), not updates until {schedule.end}"
            )
        if isinstance(structure, NOfM):
            raise SparsebenchError("structure: masks of an n:m pattern do not move; expected elements, blocks or channels")
        if self.shares is not None and isinstance(structure, Channel):
            raise SparsebenchError(
                "structure='channel': channels of different layers are not alike; sharing expects elements or blocks"
            )

    def updates_at(self, step: int) -> bool:
        """Whether masks move with the optimizer step that completes `step` steps."""
        return step > 0 and self.times.updates_at(step)

    def reads_gradients(self, step: int) -> bool:
        """Whether the optimizer step that completes `step` steps needs the gradients of dropped weights too."""
        return self.momentum is not None or (self.updates_at(step) and self.grow is not random)

    def choose(
        self, structure: Structure, weights: Sequence[WeightMatrix], layers: Sequence[LayerState], step: int
    ) -> list[torch.Tensor]:
        """New masks, bool, with as many kept units as the old ones.

        Raises:
            SparsebenchError: A score cannot be ranked.
        """
        fraction = self.fraction * self.annealing(step, self.times.end)
        remaining, dropped, free = [], [], []
        for matrix, layer in zip(weights, layers, strict=True):
            kept = kept_units(structure, layer.mask, matrix)
            count = int(kept.count_nonzero())
            drop = math.floor(fraction * count + 0.5)
            stay = best_units(self._units(structure, self.drop, matrix, layer, step), kept, count - drop)
            remaining.append(stay)
            dropped.append(drop)
            free.append(kept.numel() - count + drop)
        grown = dropped if self.shares is None else apportion(sum(dropped), self.shares(layers), free)
        masks = []
        for matrix, layer, stay, count in zip(weights, layers, remaining, grown, strict=True):
            new = best_units(self._units(structure, self.grow, matrix, layer, step), ~stay, count)
            masks.append(structure.expand(stay | new, layer.weight.shape, matrix.layer))
        return masks

    def description(self) -> dict[str, Any]:
        """Plain values that say which regrowth this is."""
        named = {"annealing": self.annealing, "drop": self.drop, "grow": self.grow, "shares": self.shares}
        names = {
            field: None if value is None else getattr(value, "__qualname__", type(value).__qualname__)
            for field, value in named.items()
        }
        borrows = {"borrows_momentum": True} if self.borrows_momentum else {}
        return {"times": describe(self.times), "fraction": self.fraction, "momentum": self.momentum} | borrows | names

    @staticmethod
    def _units(structure: Structure, score: Score, matrix: WeightMatrix, layer: LayerState, step: int) -> torch.Tensor:
        return structure.reduce(checked_score(score, layer, step), matrix.layer)


def apportion(total: int, shares: Sequence[float], capacities: Sequence[int]) -> list[int]:
    """Divide a whole number in proportion to shares, none above its capacity.

    Those whose part would not fit are filled, and the others share what is left; of parts that are no whole numbers the largest
    remainders are rounded up, of equal ones the first.

    Args:
        total: What to divide, at most the sum of the capacities.
        shares: Numbers of at least 0; equal parts where all that still have room are 0.
        capacities: The most that each can take.

    Returns:
        Whole numbers that sum to `total`.

    Example:
        >>> apportion(10, [3.0, 1.0, 1.0], [4, 9, 9])
        [4, 3, 3]
    """
    parts = [0] * len(shares)
    open_ = [position for position, capacity in enumerate(capacities) if capacity > 0]
    left = total
    while open_:
        weight = sum(shares[position] for position in open_)
        quotas = {p: left * (shares[p] / weight if weight > 0 else 1 / len(open_)) for p in open_}
        full = [position for position in open_ if quotas[position] >= capacities[position]]
        if not full:
            for position in open_:
                parts[position] = math.floor(quotas[position])
            missing = left - sum(parts[position] for position in open_)
            by_remainder = sorted(open_, key=lambda position: parts[position] - quotas[position])
            for position in by_remainder[:missing]:
                parts[position] += 1
            break
        for position in full:
            parts[position] = capacities[position]
        left -= sum(capacities[position] for position in full)
        open_ = [position for position in open_ if position not in full]
    return parts
