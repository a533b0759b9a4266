"""What a model holds: its weights, each once, and the size of everything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsebench.accounting.layers import LayerKind, kind_of
from sparsebench.errors import SparsebenchError

__all__ = ["Inventory", "Weight", "count_nonzeros", "take_inventory"]


@dataclass
class Weight:
    """One weight tensor, however many layers share it."""

    name: str
    layer_types: list[str]
    value: Tensor
    nonzeros: int


@dataclass
class Inventory:
    """What a model holds.

    Attributes:
        weights: The weight tensors, in the order of the model.
        layers: The layers that hold them.
        index: Where in `weights` the weight of a layer is, by the layer's `id` and the weight's name in it.
        other_parameters: Number of elements of all other parameters.
        other_bytes: Their size.
        buffer_bytes: The size of the buffers.
    """

    weights: list[Weight] = field(default_factory=list)
    layers: list[tuple[nn.Module, LayerKind]] = field(default_factory=list)
    index: dict[tuple[int, str], int] = field(default_factory=dict)
    other_parameters: int = 0
    other_bytes: int = 0
    buffer_bytes: int = 0


def take_inventory(model: nn.Module) -> Inventory:
    """List the weights of a model.

    Args:
        model: Any module. It should be in eval mode, because reading a parametrized weight computes it.

    Returns:
        The inventory.

    Raises:
        SparsebenchError: A parameter or buffer has no values yet (lazy, or on the meta device).

    Example:
        >>> from torch import nn
        >>> inventory = take_inventory(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)))
        >>> [weight.name for weight in inventory.weights], inventory.other_parameters
        (['0.weight'], 6)
    """
    _refuse_tensors_without_values(model)
    inventory = Inventory()
    parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
    accounted: dict[int, int] = {}  # id of a tensor -> its weight
    # The projection inside an attention layer is that layer's weight: it is read without calling the projection.
    inner = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    for prefix, layer in model.named_modules():
        kind = kind_of(layer)
        if kind is None or id(layer) in inner:
            continue
        inventory.layers.append((layer, kind))
        for local_name in kind.weights(layer):
            value = _read(layer, local_name)
            if value is None:
                continue
            layer_type = type(layer).__name__
            if id(value) in accounted:
                position = accounted[id(value)]
                if layer_type not in inventory.weights[position].layer_types:
                    inventory.weights[position].layer_types.append(layer_type)
            else:
                position = len(inventory.weights)
                name = parameter_names.get(id(value), f"{prefix}.{local_name}" if prefix else local_name)
                inventory.weights.append(Weight(name, [layer_type], value, count_nonzeros(value)))
                accounted[id(value)] = position
                accounted.update((id(source), position) for source in _sources(layer, local_name))
            inventory.index[id(layer), local_name] = position
    for parameter in model.parameters():
        if id(parameter) not in accounted:
            inventory.other_parameters += parameter.numel()
            inventory.other_bytes += parameter.numel() * parameter.element_size()
    for buffer in model.buffers():
        if id(buffer) not in accounted:
            inventory.buffer_bytes += buffer.numel() * buffer.element_size()
    return inventory


def count_nonzeros(tensor: Tensor) -> int:
    """The number of elements other than 0.0 and -0.0; a NaN is one of them."""
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # torch has no count for 8-bit floats
    return int(torch.count_nonzero(tensor))


def _refuse_tensors_without_values(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise SparsebenchError(f"{name} has no shape yet (a lazy layer): run the model once on real data first")
        if tensor.is_meta:
            raise SparsebenchError(f"{name} is on the meta device and has no values: load the weights first")


def _read(layer: nn.Module, name: str) -> Tensor | None:
    """The weight as the layer reads it, None if this layer has none."""
    try:
        value = attrgetter(name)(layer)
    except AttributeError:
        return None
    return value if isinstance(value, Tensor) else None


def _sources(layer: nn.Module, name: str) -> Iterator[Tensor]:
    """The parameters a weight is computed from under `parametrize`, `prune`, `weight_norm` or `spectral_norm`."""
    parent, _, leaf = name.rpartition(".")
    holder = layer.get_submodule(parent)
    computed_from = {f"{leaf}_orig", f"{leaf}_g", f"{leaf}_v"}
    if leaf not in dict(holder.named_parameters(recurse=False)):
        for source, parameter in holder.named_parameters():
            if source in computed_from or source.startswith(f"parametrizations.{leaf}."):
                yield parameter
