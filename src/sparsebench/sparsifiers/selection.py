"""Which weights of a network become sparse: exact layer types, name patterns, tied parameters once."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import Parameter, UninitializedParameter

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.sparsifier import LayerChoice

__all__ = ["DEFAULT_TYPES", "SelectedWeight", "select_weights"]

DEFAULT_TYPES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
)


@dataclass(frozen=True)
class SelectedWeight:
    """A weight to make sparse.

    Attributes:
        name: The parameter's name in the model, as in `model.named_parameters()`.
        layers: The layers that hold it, by name; more than one where the parameter is tied.
    """

    name: str
    layers: tuple[tuple[str, nn.Module], ...]

    @property
    def parameter(self) -> Parameter:
        """The parameter, looked up now: wrappers and `load_state_dict(assign=True)` replace parameters."""
        weight = self.layers[0][1].weight
        assert isinstance(weight, Parameter)
        return weight


def select_weights(
    model: nn.Module, layers: LayerChoice = None, types: Collection[type[nn.Module]] = DEFAULT_TYPES
) -> list[SelectedWeight]:
    """Pick the weights to make sparse, in the model's order.

    By default all weights of the given types, embeddings only where they are tied to another chosen layer or named by a
    pattern. Layers are recognised by exact type: a subclass may use its weight in a way nobody knows.

    Args:
        model: Any module.
        layers: None for the default; one or several patterns in shell style over layer names (`"encoder.*"`), those that start
            with "!" excluding (alone they take from the default); or a predicate on (name, module).
        types: Exact layer types that may be chosen; each holds its weight as `weight`.

    Returns:
        The chosen weights; a parameter used by several layers comes once.

    Raises:
        SparsebenchError: A pattern matches no layer, or nothing is left.
    """
    candidates = [(name, module) for name, module in model.named_modules() if type(module) in types]
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in candidates:
        users.setdefault(id(module.weight), []).append((name, module))
    chosen = _chosen(candidates, users, layers)
    if not chosen:
        names = ", ".join(sorted({kind.__name__ for kind in types}))
        what = f"layers={layers!r} leaves no layer" if layers is not None else "the model has no layer"
        raise SparsebenchError(f"{what} to make sparse: expected at least one of the exact types {names}")
    if layers is None:
        _warn_of_dense(model, types)
    parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
    selected = []
    for identity, group in users.items():
        if identity not in chosen:
            continue
        for name, module in group:
            if isinstance(module.weight, UninitializedParameter):
                raise SparsebenchError(f"{name!r} has no weights yet: run the model once before prepare()")
        selected.append(SelectedWeight(parameter_names[identity], tuple(group)))
    return selected


def _chosen(
    candidates: Sequence[tuple[str, nn.Module]], users: dict[int, list[tuple[str, nn.Module]]], layers: LayerChoice
) -> set[int]:
    """Identities of the chosen parameters."""
    default = {
        id(module.weight)
        for _, module in candidates
        if not isinstance(module, nn.Embedding)
        or any(not isinstance(other, nn.Embedding) for _, other in users[id(module.weight)])
    }
    if layers is None:
        return default
    if callable(layers):
        return {id(module.weight) for name, module in candidates if layers(name, module)}
    patterns = [layers] if isinstance(layers, str) else list(layers)
    includes = [pattern for pattern in patterns if not pattern.startswith("!")]
    excludes = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    matched = {pattern: _matches(pattern, candidates) for pattern in includes + excludes}
    chosen = set().union(*(matched[pattern] for pattern in includes)) if includes else default
    # A tied weight that one of its layers excludes is excluded: it cannot be sparse here and dense there.
    return chosen.difference(*(matched[pattern] for pattern in excludes))


def _matches(pattern: str, candidates: Sequence[tuple[str, nn.Module]]) -> set[int]:
    found = {
        id(module.weight)
        for name, module in candidates
        if fnmatchcase(name, pattern) or fnmatchcase(f"{name}.weight".lstrip("."), pattern)
    }
    if not found:
        known = ", ".join(repr(name) for name, _ in candidates[:8]) + (", ..." if len(candidates) > 8 else "")
        raise SparsebenchError(f"layers: pattern {pattern!r} matches no layer; the layers are {known or 'none'}")
    return found


def _warn_of_dense(model: nn.Module, types: Collection[type[nn.Module]]) -> None:
    """A method for "all layers" that silently skips some surprises everybody: name what stays dense."""
    left = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if type(module) not in (*types, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)
        and any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))
    ]
    if left:
        warnings.warn(
            f"weights of these layers stay dense, their types are not supported: {', '.join(left)}", UserWarning, stacklevel=4
        )
