"""The table of layer types that hold weights to make sparse, and under which names they hold them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

__all__ = ["EMBEDDINGS", "WeightNames", "hugging_face_conv1d", "layer_types", "matrix_names"]

WeightNames: TypeAlias = Callable[[Any], tuple[str, ...]]

# The only parameter of that name is that of nn.MultiheadAttention.
PACKED = "in_proj_weight"
EMBEDDINGS: tuple[type[nn.Module], ...] = (nn.Embedding,)


def _weight(layer: nn.Module) -> tuple[str, ...]:
    return ("weight",)


def _recurrent(layer: nn.RNNBase) -> tuple[str, ...]:
    return tuple(name for name in layer._flat_weights_names if name.startswith("weight"))


def _cell(layer: nn.RNNCellBase) -> tuple[str, ...]:
    return ("weight_ih", "weight_hh")


def _attention(layer: nn.MultiheadAttention) -> tuple[str, ...]:
    projections = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return tuple(name for name in projections if getattr(layer, name) is not None)


_TYPES: Mapping[type[nn.Module], WeightNames] = {
    nn.Linear: _weight,
    # The output projection of nn.MultiheadAttention.
    NonDynamicallyQuantizableLinear: _weight,
    nn.Conv1d: _weight,
    nn.Conv2d: _weight,
    nn.Conv3d: _weight,
    nn.ConvTranspose1d: _weight,
    nn.ConvTranspose2d: _weight,
    nn.ConvTranspose3d: _weight,
    nn.Embedding: _weight,
    nn.RNN: _recurrent,
    nn.LSTM: _recurrent,
    nn.GRU: _recurrent,
    nn.RNNCell: _cell,
    nn.LSTMCell: _cell,
    nn.GRUCell: _cell,
    nn.MultiheadAttention: _attention,
}


def layer_types() -> Mapping[type[nn.Module], WeightNames]:
    """Exact layer types, each with the names of the weights of a layer.

    Example:
        >>> layer_types()[nn.LSTM](nn.LSTM(2, 3))
        ('weight_ih_l0', 'weight_hh_l0')
    """
    conv1d = hugging_face_conv1d()
    return _TYPES if conv1d is None else {**_TYPES, conv1d: _weight}


def hugging_face_conv1d() -> type[nn.Module] | None:
    """The linear layer of GPT-2, weight [in, out], where transformers is loaded: a model that has one has loaded it."""
    module = sys.modules.get("transformers.pytorch_utils")
    found: type[nn.Module] | None = getattr(module, "Conv1D", None)
    return found


def matrix_names(weight: str) -> tuple[str, ...]:
    """Names of the separate matrices that a weight holds, one below the other: itself, but for attention's packed projections.

    Example:
        >>> matrix_names("encoder.in_proj_weight")
        ('encoder.in_proj_weight.query', 'encoder.in_proj_weight.key', 'encoder.in_proj_weight.value')
    """
    if weight.rpartition(".")[2] == PACKED:
        return tuple(f"{weight}.{part}" for part in ("query", "key", "value"))
    return (weight,)
