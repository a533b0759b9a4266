"""Structures: the units that are kept or dropped together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["Element", "Structure"]


class Structure(Protocol):
    """Between weights and the units that compete. Dataclass fields are part of the method's description."""

    def units(self, shape: Sequence[int]) -> int:
        """The number of units in a tensor of this shape."""

    def reduce(self, scores: torch.Tensor) -> torch.Tensor:
        """From scores of weights to scores of units."""

    def expand(self, kept: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """From a bool tensor over units to a bool mask over weights."""


@dataclass(frozen=True)
class Element:
    """Every weight for itself: unstructured sparsity."""

    def units(self, shape: Sequence[int]) -> int:
        """The number of weights."""
        return math.prod(shape)

    def reduce(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores themselves."""
        return scores

    def expand(self, kept: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The mask itself."""
        return kept
