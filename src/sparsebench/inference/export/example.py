"""An example of how a network is called, and which sizes of it may be others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsebench.errors import SparsebenchError

__all__ = ["Dynamic", "ExampleCall"]

Dynamic = Mapping[str, Mapping[int, str]]
"""By the name of an argument of `forward`: which of its dimensions may have other sizes, and what they are called.

Dimensions with the same name have the same size.
"""


class ExampleCall:
    """The arguments of one call of a network.

    Args:
        model: The network.
        example_input: A tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
        dynamic: Which sizes may be others; None for the first of every tensor, the batch.

    Raises:
        SparsebenchError: The network does not take such arguments, or `dynamic` names what they are not.
    """

    def __init__(self, model: nn.Module, example_input: Any, dynamic: Dynamic | None) -> None:
        signature = inspect.signature(model.forward)
        try:
            if isinstance(example_input, Mapping):
                self._bound = signature.bind(**example_input)
            elif isinstance(example_input, tuple | list):
                self._bound = signature.bind(*example_input)
            else:
                self._bound = signature.bind(example_input)
        except TypeError as error:
            raise SparsebenchError(f"example_input does not fit {type(model).__name__}.forward{signature}: {error}") from error
        self._leaves, self._tree = pytree.tree_flatten(dict(self._bound.arguments))
        self.dimensions = self._names(type(model).__name__, dynamic)
        """Of every leaf of the arguments, in order: the names of its dimensions that may have other sizes."""
        for leaf, names in zip(self._leaves, self.dimensions, strict=True):
            for dimension in names:
                if leaf.shape[dimension] == 0:
                    raise SparsebenchError(f"example_input has no elements in dimension {dimension}: expected at least one")

    def dynamic_shapes(self, of: Callable[[str], Any]) -> dict[str, Any]:
        """For `torch.export` and `torch.onnx`, by argument: what `of` makes of the name of each dimension that may change."""
        shapes = [{dimension: of(name) for dimension, name in names.items()} or None for names in self.dimensions]
        rebuilt: dict[str, Any] = pytree.tree_unflatten(shapes, self._tree)
        return rebuilt

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments as they were given."""
        return self._bound.args, self._bound.kwargs

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    def with_sizes(self, size: Callable[[int], int]) -> ExampleCall:
        """A call whose changeable dimensions have other sizes: what is there is repeated, or cut.

        Args:
            size: The new size of such a dimension from its size, at least 1.
        """
        other = object.__new__(ExampleCall)
        other._tree, other.dimensions = self._tree, self.dimensions
        other._leaves = []
        for leaf, names in zip(self._leaves, self.dimensions, strict=True):
            for dimension in names:
                present = leaf.shape[dimension]
                leaf = leaf.index_select(dimension, torch.arange(size(present)) % present)
            other._leaves.append(leaf)
        other._bound = inspect.BoundArguments(
            self._bound.signature, type(self._bound.arguments)(pytree.tree_unflatten(other._leaves, self._tree))
        )
        return other

    def _names(self, owner: str, dynamic: Dynamic | None) -> list[dict[int, str]]:
        if dynamic is None:
            return [{0: "batch"} if isinstance(leaf, Tensor) and leaf.dim() else {} for leaf in self._leaves]
        known = self._bound.arguments
        for name in dynamic:
            if not isinstance(known.get(name), Tensor):
                tensors = ", ".join(other for other, value in known.items() if isinstance(value, Tensor))
                raise SparsebenchError(
                    f"dynamic names {name!r}: expected an argument of {owner}.forward that is a tensor: {tensors}"
                )
            for dimension in dynamic[name]:
                if not 0 <= dimension < known[name].dim():
                    raise SparsebenchError(
                        f"dynamic[{name!r}] names dimension {dimension}: expected one of 0 to {known[name].dim() - 1}"
                    )
        by_tensor = {id(known[name]): dict(names) for name, names in dynamic.items()}
        return [by_tensor.get(id(leaf), {}) for leaf in self._leaves]
