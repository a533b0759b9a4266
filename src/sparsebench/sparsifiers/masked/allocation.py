"""Allocations: how much of the sparsity each layer bears.

An allocation divides the weights into groups; within a group weights compete for a fixed number of places. One group for each
tensor fixes every layer's sparsity, one group for all lets the scores decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.layer_types import matrix_names

__all__ = ["Allocation", "ErdosRenyiKernel", "Global", "Group", "LayerMap", "Uniform", "UniformDenseFirst", "allocation_by_name"]

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Group:
    """Tensors that share a budget: `sparsity` of all their units together are dropped in the end."""

    names: tuple[str, ...]
    sparsity: float


class Allocation(Protocol):
    """What the engine asks: groups for the given tensors. Dataclass fields are part of the method's description."""

    @property
    def sparsity(self) -> float:
        """The target over all layers, in [0, 1]."""

    def groups(self, shapes: Shapes) -> list[Group]:
        """Divide tensors, given by name and shape in the model's order, into groups with their final sparsities."""


@dataclass(frozen=True)
class Uniform:
    """Every layer at the same sparsity, as in Gale et al. (2019)."""

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity("sparsity", self.sparsity)

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group for each tensor."""
        return [Group((name,), self.sparsity) for name in shapes]


@dataclass(frozen=True)
class UniformDenseFirst:
    """The first layer dense, the others alike, as "uniform" of Evci et al. (2020, RigL, arXiv 1911.11134, section 3).

    The first layer is the first in the model's order. The others bear its part too, so that the whole network has the sparsity
    asked for; where the authors give them that sparsity itself, the whole network has a little less.
    """

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity("sparsity", self.sparsity)

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group for each tensor.

        Raises:
            SparsebenchError: The first layer is larger than what is kept of the whole network.
        """
        weights = {name: math.prod(shape) for name, shape in shapes.items()}
        first = next(iter(shapes), "")
        others = sum(weights.values()) - weights.get(first, 0)
        share = self.sparsity * sum(weights.values()) / max(others, 1e-300)
        if share > 1.0 + 1e-12:
            raise SparsebenchError(
                f"allocation='uniform-dense-first': sparsity={self.sparsity!r} keeps fewer weights than the first layer has, "
                f"{first!r}; at most {others / sum(weights.values()):.4g} is possible"
            )
        return [Group((name,), 0.0 if name == first else min(share, 1.0)) for name in shapes]


@dataclass(frozen=True)
class Global:
    """All layers compete in one ranking: the scores decide how sparse each layer becomes."""

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity("sparsity", self.sparsity)

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group with all tensors."""
        return [Group(tuple(shapes), self.sparsity)]


@dataclass(frozen=True)
class ErdosRenyiKernel:
    """Small layers stay denser: density proportional to the sum of a tensor's dimensions over their product.

    Layers for which that would exceed 1 stay dense, the others share what is left (Evci et al. 2020, RigL, arXiv 1911.11134,
    section 3; Mocanu et al. 2018 without the kernel dimensions).
    """

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity("sparsity", self.sparsity)

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group for each tensor."""
        weights = {name: math.prod(shape) for name, shape in shapes.items()}
        raw = {name: sum(shape) / weights[name] if weights[name] else 0.0 for name, shape in shapes.items()}
        budget = (1.0 - self.sparsity) * sum(weights.values())
        dense: set[str] = set()
        while True:
            left = budget - sum(weights[name] for name in dense)
            scale = left / max(sum(raw[name] * weights[name] for name in shapes if name not in dense), 1e-300)
            full = {name for name in shapes if name not in dense and scale * raw[name] > 1.0}
            if not full:
                break
            dense |= full
        return [Group((name,), 0.0 if name in dense else 1.0 - scale * raw[name]) for name in shapes]


@dataclass(frozen=True)
class LayerMap:
    """Explicit sparsities for some layers, one for the rest.

    Args:
        sparsity: Sparsity of layers that no pattern names.
        layers: Sparsity by pattern in shell style over parameter names, with or without ".weight"; the first match counts.
    """

    sparsity: float
    layers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_sparsity("sparsity", self.sparsity)
        for pattern, sparsity in self.layers.items():
            if not isinstance(pattern, str):
                raise SparsebenchError(f"allocation: the pattern {pattern!r} is no text: write {str(pattern)!r}, in quotes")
            _check_sparsity(f"allocation[{pattern!r}]", sparsity)

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group for each tensor.

        Raises:
            SparsebenchError: A pattern matches no tensor.
        """
        for pattern in self.layers:
            if not any(_matches(name, pattern) for name in shapes):
                raise SparsebenchError(f"allocation: pattern {pattern!r} matches no layer; the layers are {', '.join(shapes)}")
        return [
            Group((name,), next((s for pattern, s in self.layers.items() if _matches(name, pattern)), self.sparsity))
            for name in shapes
        ]


NAMED: Mapping[str, type[Uniform] | type[UniformDenseFirst] | type[Global] | type[ErdosRenyiKernel]] = {
    "uniform": Uniform,
    "uniform-dense-first": UniformDenseFirst,
    "global": Global,
    "erdos-renyi-kernel": ErdosRenyiKernel,
}


def allocation_by_name(allocation: str | Mapping[str, float], sparsity: float) -> Allocation:
    """The allocation that a method's argument means.

    Args:
        allocation: "uniform", "uniform-dense-first", "global", "erdos-renyi-kernel", or a map from layer pattern to sparsity.
        sparsity: The target, in [0, 1].

    Raises:
        SparsebenchError: No such allocation, or a sparsity out of range.

    Example:
        >>> allocation_by_name("erdos-renyi-kernel", 0.5).groups({"small": (4, 4), "large": (40, 40)})[0]
        Group(names=('small',), sparsity=0.0)
    """
    if isinstance(allocation, Mapping):
        return LayerMap(sparsity, dict(allocation))
    if not isinstance(allocation, str) or allocation not in NAMED:
        names = ", ".join(repr(name) for name in NAMED)
        raise SparsebenchError(f"allocation={allocation!r}: expected {names}, or a map from layer pattern to sparsity")
    return NAMED[allocation](sparsity)


def _matches(name: str, pattern: str) -> bool:
    # A name is itself before it is a pattern: module names may hold brackets. A matrix has the name of its parameter too.
    whole = name.rpartition(".")[0]
    names = (name, name.removesuffix(".weight"), whole if name in matrix_names(whole) else name)
    return name == pattern or any(fnmatchcase(own, pattern) for own in names)


def _check_sparsity(field: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise SparsebenchError(f"{field}={value!r}: expected a fraction of the weights in [0, 1], such as 0.9")
