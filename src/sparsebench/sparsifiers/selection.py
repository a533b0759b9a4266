"""Which weights of a network become sparse: exact layer types, name patterns, tied parameters once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import Parameter, UninitializedParameter

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.layer_types import EMBEDDINGS, WeightNames, layer_types, matrix_names
from sparsebench.sparsifiers.sparsifier import LayerChoice

__all__ = [
    "Holder",
    "SelectedWeight",
    "WeightMatrix",
    "by_parameter",
    "check_still_there",
    "is_left_out",
    "matrices_of",
    "select_weights",
    "shapes_of",
    "warn_of_dense",
]

# Masks multiply in these.
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Holder(NamedTuple):
    """A layer that holds a weight, by its name in the model, and the weight's name in the layer."""

    name: str
    layer: nn.Module
    weight: str


@dataclass(frozen=True)
class SelectedWeight:
    """A weight to make sparse.

    Attributes:
        name: The parameter's name in the model, as in `model.named_parameters()`.
        holders: The layers that hold it; more than one where the parameter is tied.
    """

    name: str
    holders: tuple[Holder, ...]

    @property
    def parameter(self) -> Parameter:
        """The parameter, looked up now: wrappers and `load_state_dict(assign=True)` replace parameters."""
        holder = self.holders[0]
        # Where `getattr` looks for it in the end.
        weight = holder.layer._parameters.get(holder.weight)
        if weight is None:
            raise SparsebenchError(
                f"{self.name!r} is no longer a parameter of its layer: something (weight_norm, torch.nn.utils.prune, "
                "FullyShardedDataParallel) took it away after prepare()"
            )
        return weight


@dataclass(frozen=True)
class WeightMatrix:
    """A matrix to make sparse: a weight, or one of those that a weight holds one below the other.

    Attributes:
        name: The parameter's name, with that of the matrix where there are several.
        weight: The weight.
        index: Its place among the weight's matrices.
        count: How many there are.
    """

    name: str
    weight: SelectedWeight
    index: int = 0
    count: int = 1

    @property
    def layer(self) -> nn.Module:
        """The layer that holds it, the first where there are several."""
        return self.weight.holders[0].layer

    @property
    def tensor(self) -> torch.Tensor:
        """The parameter itself, or the rows of it that are this matrix, a view."""
        return self.part(self.weight.parameter)

    @property
    def gradient(self) -> torch.Tensor | None:
        """The gradient, or these rows of it."""
        gradient = self.weight.parameter.grad
        return None if gradient is None else self.part(gradient)

    def part(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part of a tensor of the parameter's shape that belongs to this matrix, a view."""
        return tensor if self.count == 1 else tensor.chunk(self.count)[self.index]


def check_still_there(model: nn.Module, weights: Iterable[SelectedWeight]) -> None:
    """Find weights whose layers are no longer part of the model, or no longer share them.

    Raises:
        SparsebenchError: Something was replaced since the weights were chosen.
    """
    parameters = {id(parameter) for parameter in model.parameters()}
    for weight in weights:
        for holder in weight.holders:
            if holder.layer._parameters.get(holder.weight) is not weight.parameter:
                raise SparsebenchError(
                    f"{holder.name!r} no longer has {weight.name!r}, to which it was tied: call prepare() again"
                )
        if id(weight.parameter) not in parameters:
            raise SparsebenchError(
                f"{weight.name!r} is no longer in the model: its layer was replaced after prepare(), call it again"
            )


def matrices_of(weights: Iterable[SelectedWeight]) -> list[WeightMatrix]:
    """The matrices of weights, in order."""
    found = []
    for weight in weights:
        names = matrix_names(weight.name)
        found += [WeightMatrix(name, weight, index, len(names)) for index, name in enumerate(names)]
    return found


def shapes_of(matrices: Iterable[WeightMatrix]) -> dict[str, tuple[int, ...]]:
    """The shapes of matrices, by name."""
    return {matrix.name: tuple(matrix.tensor.shape) for matrix in matrices}


def by_parameter(matrices: Sequence[WeightMatrix], tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of matrices as tensors of the parameters that hold them, by parameter name."""
    parts: dict[str, list[torch.Tensor]] = {}
    for matrix, tensor in zip(matrices, tensors, strict=True):
        parts.setdefault(matrix.weight.name, []).append(tensor)
    return {name: held[0] if len(held) == 1 else torch.cat(held) for name, held in parts.items()}


def select_weights(
    model: nn.Module, layers: LayerChoice = None, types: Mapping[type[nn.Module], WeightNames] | None = None
) -> list[SelectedWeight]:
    """Pick the weights to make sparse, in the model's order.

    By default all weights of the given types, embeddings only where they are tied to another chosen layer or named by a
    pattern. Layers are recognised by exact type: a subclass may use its weight in a way nobody knows.

    Args:
        model: Any module.
        layers: None for the default; one or several patterns in shell style over the names of layers (`"encoder.*"`) or weights
            (`"*.weight_hh_l0"`), those that start with "!" excluding, any module (alone they take from the default); or a
            predicate on (name, module).
        types: Exact layer types that may be chosen, with the names of their weights; None for all that are known.

    Returns:
        The chosen weights; a parameter used by several layers comes once.

    Raises:
        SparsebenchError: A pattern matches no layer, nothing is left, or a weight is not a parameter, or not yet one, or of
            complex numbers or 8 bits; or `layers` is no choice of layers.
    """
    _check_choice(layers)
    for name, module in model.named_modules():
        if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters(recurse=False)):
            raise SparsebenchError(f"{name!r} ({type(module).__name__}) has no weights yet: run the model once before prepare()")
    types = layer_types() if types is None else types
    candidates = [
        Holder(name, module, weight)
        for name, module in model.named_modules()
        if type(module) in types
        for weight in types[type(module)](module)
    ]
    holders: dict[int, list[Holder]] = {}
    for holder in candidates:
        holders.setdefault(_identity(holder), []).append(holder)
    chosen = _chosen(model, candidates, holders, layers)
    if not chosen:
        names = ", ".join(sorted({kind.__name__ for kind in types}))
        what = f"layers={layers!r} leaves no layer" if layers is not None else "the model has no layer"
        raise SparsebenchError(f"{what} to make sparse: expected at least one of the exact types {names}")
    parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
    selected = []
    for identity, group in holders.items():
        if identity not in chosen:
            continue
        if identity not in parameter_names:
            raise SparsebenchError(
                f"the weight of {group[0].name!r} is not a parameter but computed from others (as by torch.nn.utils.prune or "
                "weight_norm): undo that before prepare(), or leave the layer out with layers="
            )
        selected.append(SelectedWeight(parameter_names[identity], tuple(group)))
    for weight in selected:
        if weight.parameter.dtype not in DTYPES:
            raise SparsebenchError(
                f"{weight.name!r} has the dtype {weight.parameter.dtype}: expected one of {', '.join(map(str, DTYPES))}; leave "
                "the layer out with layers="
            )
    return selected


def _check_choice(layers: LayerChoice) -> None:
    if layers is None or (callable(layers) and not isinstance(layers, type)):
        return
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise SparsebenchError(
            f"layers={layers!r}: expected None, a pattern over names such as 'encoder.*', several of them, or a function of "
            "(name, module)"
        )


def is_left_out(name: str, module: nn.Module, layers: LayerChoice) -> bool:
    """Whether a choice of layers leaves a module out by name, whatever its type."""
    if layers is None:
        return False
    if callable(layers):
        return not layers(name, module)
    includes, excludes = _patterns(layers)
    if any(_names(pattern, name) for pattern in excludes):
        return True
    return bool(includes) and not any(_names(pattern, name) for pattern in includes)


def _identity(holder: Holder) -> int:
    return id(getattr(holder.layer, holder.weight))


def _chosen(
    model: nn.Module, candidates: Sequence[Holder], holders: Mapping[int, Sequence[Holder]], layers: LayerChoice
) -> set[int]:
    """Identities of the chosen parameters."""
    default = {identity for identity, group in holders.items() if any(type(holder.layer) not in EMBEDDINGS for holder in group)}
    if layers is None:
        return default
    if callable(layers):
        return {_identity(holder) for holder in candidates if layers(holder.name, holder.layer)}
    includes, excludes = _patterns(layers)
    matched = {
        pattern: {
            _identity(holder) for holder in candidates if _names(pattern, holder.name) or _names(pattern, _full_name(holder))
        }
        for pattern in includes + excludes
    }
    for pattern, found in matched.items():
        # Something to exclude need not be of a type that could be chosen.
        if not found and not (pattern in excludes and any(_names(pattern, name) for name, _ in model.named_modules())):
            names = list(dict.fromkeys(holder.name for holder in candidates))
            known = ", ".join(repr(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
            others = [(name, module) for name, module in model.named_modules() if _names(pattern, name)]
            why = f" whose exact type is known ({others[0][0]!r} is a {type(others[0][1]).__name__})" if others else ""
            raise SparsebenchError(f"layers: pattern {pattern!r} matches no layer{why}; the layers are {known or 'none'}")
    chosen = set().union(*(matched[pattern] for pattern in includes)) if includes else default
    # A tied weight that one of its layers excludes is excluded: it cannot be sparse here and dense there.
    return chosen.difference(*(matched[pattern] for pattern in excludes))


def _patterns(layers: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Patterns that include, and those that exclude."""
    patterns = [layers] if isinstance(layers, str) else list(layers)
    return [p for p in patterns if not p.startswith("!")], [p[1:] for p in patterns if p.startswith("!")]


def _full_name(holder: Holder) -> str:
    return f"{holder.name}.{holder.weight}".lstrip(".")


def _names(pattern: str, name: str) -> bool:
    # "encoder.*" names the module "encoder" too.
    return fnmatchcase(name, pattern) or fnmatchcase(f"{name}.weight".lstrip("."), pattern)


def warn_of_dense(model: nn.Module, layers: LayerChoice, types: Mapping[type[nn.Module], WeightNames] | None = None) -> None:
    """Name what stays dense though it was chosen: a method for "all layers" that silently skips some surprises everybody."""
    types = layer_types() if types is None else types
    known = (*types, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)

    def chosen(name: str, module: nn.Module) -> bool:
        # A predicate expects what it may choose.
        return not (callable(layers) and not isinstance(module, tuple(types))) and not is_left_out(name, module, layers)

    left = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if type(module) not in known
        and any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))
        and chosen(name, module)
    ]
    if left:
        warnings.warn(
            f"weights of these layers stay dense, their types are not supported: {', '.join(left)}", UserWarning, stacklevel=3
        )
