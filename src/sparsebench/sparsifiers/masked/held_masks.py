"""Masks that are given: a score and an allocation which together keep exactly them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.layer_types import matrix_names
from sparsebench.sparsifiers.masked.allocation import Group, Shapes
from sparsebench.sparsifiers.masked.scores import LayerState

__all__ = ["HeldAllocation", "HeldLayers", "HeldScore", "by_matrix", "check_masks"]


def check_masks(masks: Mapping[str, torch.Tensor]) -> None:
    """Refuse what is no mapping from parameter names to masks.

    Raises:
        SparsebenchError: The message names the entry.
    """
    if not isinstance(masks, Mapping) or not masks:
        raise SparsebenchError(f"masks={masks!r}: expected bool tensors by parameter name, as masks() gives them")
    for name, mask in masks.items():
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            what = str(mask.dtype) if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise SparsebenchError(f"masks[{name!r}]: expected a bool tensor, True where a weight is kept, got {what}")


def by_matrix(masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Masks by parameter name as masks by the names of the matrices that the parameters hold."""
    parts: dict[str, torch.Tensor] = {}
    for name, mask in masks.items():
        names = matrix_names(name)
        if mask.dim() == 0 or mask.shape[0] % len(names):  # it fits no weight, and will be refused by its own name
            names = (name,)
        parts.update(zip(names, mask.chunk(len(names)), strict=True))
    return parts


@dataclass(frozen=True)
class HeldAllocation:
    """Every layer at the sparsity of its given mask.

    Args:
        kept: Kept weights by the name of the matrix.
        shapes: Shapes likewise.
    """

    kept: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, masks: Mapping[str, torch.Tensor]) -> HeldAllocation:
        """The allocation of given masks, by the name of the matrix."""
        kept = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
        return cls(kept, {name: tuple(mask.shape) for name, mask in masks.items()})

    @property
    def sparsity(self) -> float:
        """The sparsity of all masks together."""
        return 1.0 - sum(self.kept.values()) / max(sum(math.prod(shape) for shape in self.shapes.values()), 1)

    def groups(self, shapes: Shapes) -> list[Group]:
        """One group for each tensor.

        Raises:
            SparsebenchError: A mask fits no weight of the model.
        """
        for name, shape in self.shapes.items():
            if name not in shapes:
                raise SparsebenchError(f"masks: the model has no weight {name!r} to make sparse; it has {', '.join(shapes)}")
            if tuple(shapes[name]) != shape:
                raise SparsebenchError(f"masks[{name!r}] has the shape {shape}, the weight {tuple(shapes[name])}")
        # Of a layer with several weights only some may have a mask.
        kept = {name: self.kept.get(name, math.prod(shape)) for name, shape in shapes.items()}
        return [Group((name,), 1.0 - kept[name] / max(math.prod(shape), 1)) for name, shape in shapes.items()]


@dataclass(frozen=True, eq=False)
class HeldScore:
    """1 where a given mask, by the name of the matrix, keeps a weight, 0 elsewhere; weights without a mask are kept."""

    masks: Mapping[str, torch.Tensor]

    def __call__(self, layer: LayerState) -> torch.Tensor:
        """The score of a layer."""
        if layer.name not in self.masks:
            return torch.ones_like(layer.weight)
        return self.masks[layer.name].to(layer.weight.device, torch.float32)


@dataclass(frozen=True)
class HeldLayers:
    """The predicate that chooses the layers whose weights have a given mask."""

    names: frozenset[str]

    def __call__(self, name: str, module: nn.Module) -> bool:
        """Whether a layer is chosen."""
        return any(f"{name}.{own}".lstrip(".") in self.names for own, _ in module.named_parameters(recurse=False))

    def __repr__(self) -> str:
        return f"those of the masks {', '.join(sorted(self.names))}"
