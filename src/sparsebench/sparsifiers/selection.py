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

__all__ = ["DEFAULT_TYPES", "SelectedWeight", "is_left_out", "select_weights", "warn_of_dense"]

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
            with "!" excluding, any module (alone they take from the default); or a predicate on (name, module).
        types: Exact layer types that may be chosen; each holds its weight as `weight`.

    Returns:
        The chosen weights; a parameter used by several layers comes once.

    Raises:
        SparsebenchError: A pattern matches no layer, nothing is left, or a weight is not a parameter, or not yet one.
    """
    for name, module in model.named_modules():
        if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters(recurse=False)):
            raise SparsebenchError(f"{name!r} ({type(module).__name__}) has no weights yet: run the model once before prepare()")
    candidates = [(name, module) for name, module in model.named_modules() if type(module) in types]
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in candidates:
        users.setdefault(id(module.weight), []).append((name, module))
    chosen = _chosen(model, candidates, users, layers)
    if not chosen:
        names = ", ".join(sorted({kind.__name__ for kind in types}))
        what = f"layers={layers!r} leaves no layer" if layers is not None else "the model has no layer"
        raise SparsebenchError(f"{what} to make sparse: expected at least one of the exact types {names}")
    parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
    selected = []
    for identity, group in users.items():
        if identity not in chosen:
            continue
        if identity not in parameter_names:
            raise SparsebenchError(
                f"the weight of {group[0][0]!r} is not a parameter but computed from others (as by torch.nn.utils.prune or "
                "weight_norm): undo that before prepare(), or leave the layer out with layers="
            )
        selected.append(SelectedWeight(parameter_names[identity], tuple(group)))
    return selected


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


def _chosen(
    model: nn.Module,
    candidates: Sequence[tuple[str, nn.Module]],
    users: dict[int, list[tuple[str, nn.Module]]],
    layers: LayerChoice,
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
    includes, excludes = _patterns(layers)
    matched = {pattern: {id(m.weight) for name, m in candidates if _names(pattern, name)} for pattern in includes + excludes}
    for pattern, found in matched.items():
        # Something to exclude need not be of a type that could be chosen.
        if not found and not (pattern in excludes and any(_names(pattern, name) for name, _ in model.named_modules())):
            known = ", ".join(repr(name) for name, _ in candidates[:8]) + (", ..." if len(candidates) > 8 else "")
            raise SparsebenchError(f"layers: pattern {pattern!r} matches no layer; the layers are {known or 'none'}")
    chosen = set().union(*(matched[pattern] for pattern in includes)) if includes else default
    # A tied weight that one of its layers excludes is excluded: it cannot be sparse here and dense there.
    return chosen.difference(*(matched[pattern] for pattern in excludes))


def _patterns(layers: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Patterns that include, and those that exclude."""
    patterns = [layers] if isinstance(layers, str) else list(layers)
    return [p for p in patterns if not p.startswith("!")], [p[1:] for p in patterns if p.startswith("!")]


def _names(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(f"{name}.weight".lstrip("."), pattern)


def warn_of_dense(model: nn.Module, types: Collection[type[nn.Module]] = DEFAULT_TYPES) -> None:
    """Name what stays dense by default: a method for "all layers" that silently skips some surprises everybody."""
    left = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if type(module) not in (*types, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)
        and any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))
    ]
    if left:
        warnings.warn(
            f"weights of these layers stay dense, their types are not supported: {', '.join(left)}", UserWarning, stacklevel=3
        )
