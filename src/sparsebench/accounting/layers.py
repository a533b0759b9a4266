"""The table of layer types: which weights each holds, and how often one call applies them.

To have another layer type accounted for, add a line to `LAYER_KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["LAYER_KINDS", "Call", "LayerKind", "Use", "kind_of"]

# A linear layer whose weight is [in, out]; by name, because transformers need not be installed.
HUGGING_FACE_CONV1D = ("transformers.pytorch_utils", "Conv1D")


class Call(NamedTuple):
    """One call of a layer, as a forward hook sees it."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at `position`, or the one called `name` if it was given by keyword."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def input(self) -> Any:
        """The first argument, whatever a subclass may call it."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


class Use(NamedTuple):
    """A weight, or some of its rows, applied at a number of positions."""

    weight: str
    positions: int
    rows: slice = slice(None)


@dataclass(frozen=True)
class LayerKind:
    """How layers of some types are accounted for.

    Attributes:
        types: The layer types; subclasses count as well.
        weights: The names of the weights a layer may hold, relative to the layer. Absent ones are passed over.
        uses: The weights one call applies. Names the layer does not hold are passed over.
    """

    types: tuple[type[nn.Module], ...]
    weights: Callable[[Any], tuple[str, ...]]
    uses: Callable[[Any, Call], Iterator[Use]]


def kind_of(layer: nn.Module) -> LayerKind | None:
    """The entry of the table for a layer, None for one that holds no weights of its own.

    Example:
        >>> from torch import nn
        >>> kind_of(nn.Linear(3, 2)).weights(None)
        ('weight',)
        >>> kind_of(nn.LayerNorm(3)) is None
        True
    """
    if any((base.__module__, base.__qualname__) == HUGGING_FACE_CONV1D for base in type(layer).__mro__):
        return LAYER_KINDS[0]
    return next((kind for kind in LAYER_KINDS if isinstance(layer, kind.types)), None)


def _size(tensor: Tensor, channel_dim: int) -> int:
    """The number of positions of a tensor whose `channel_dim` holds the channels."""
    # From the number of elements rather than the shape, which nested tensors do not have.
    channels = tensor.size(channel_dim)
    return tensor.numel() // channels if channels else 0


def _steps(sequence: Tensor | PackedSequence) -> int:
    """The number of time steps of all sequences together; padding is counted, a packed sequence has none."""
    return _size(sequence.data if isinstance(sequence, PackedSequence) else sequence, -1)


def _one_weight(layer: nn.Module | None) -> tuple[str, ...]:
    return ("weight",)


def _linear(layer: nn.Linear | nn.Bilinear, call: Call) -> Iterator[Use]:
    yield Use("weight", _size(call.input(), -1))


def _convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, call: Call) -> Iterator[Use]:
    # The weight's own shape holds in_channels / groups, so groups need no thought here. Products with the zeros of the
    # padding are counted, as is usual.
    yield Use("weight", _size(call.output, -len(layer.kernel_size) - 1))


def _transposed_convolution(layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, call: Call) -> Iterator[Use]:
    yield Use("weight", _size(call.input(), -len(layer.kernel_size) - 1))


def _look_up(layer: nn.Embedding | nn.EmbeddingBag, call: Call) -> Iterator[Use]:
    yield from ()


def _recurrent_weights(layer: nn.RNNBase) -> tuple[str, ...]:
    parts = ("ih", "hh", "hr") if layer.proj_size else ("ih", "hh")
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    return tuple(
        f"weight_{part}_l{depth}{direction}" for depth in range(layer.num_layers) for direction in directions for part in parts
    )


def _recurrent(layer: nn.RNNBase, call: Call) -> Iterator[Use]:
    steps = _steps(call.input())
    for weight in _recurrent_weights(layer):
        yield Use(weight, steps)


def _cell_weights(layer: nn.RNNCellBase) -> tuple[str, ...]:
    return ("weight_ih", "weight_hh")


def _cell(layer: nn.RNNCellBase, call: Call) -> Iterator[Use]:
    for weight in _cell_weights(layer):
        yield Use(weight, _size(call.input(), -1))


def _attention_weights(layer: nn.MultiheadAttention) -> tuple[str, ...]:
    return ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")


def _attention(layer: nn.MultiheadAttention, call: Call) -> Iterator[Use]:
    query = call.input()
    queries, keys, values = (
        _size(tensor, -1) for tensor in (query, call.argument(1, "key", query), call.argument(2, "value", query))
    )
    width = layer.embed_dim
    # The three projections are either rows of one matrix or three matrices; the layer holds one or the other.
    yield Use("in_proj_weight", queries, slice(0, width))
    yield Use("in_proj_weight", keys, slice(width, 2 * width))
    yield Use("in_proj_weight", values, slice(2 * width, 3 * width))
    yield Use("q_proj_weight", queries)
    yield Use("k_proj_weight", keys)
    yield Use("v_proj_weight", values)
    yield Use("out_proj.weight", queries)


LAYER_KINDS: tuple[LayerKind, ...] = (
    LayerKind((nn.Linear, nn.Bilinear), _one_weight, _linear),
    LayerKind((nn.Conv1d, nn.Conv2d, nn.Conv3d), _one_weight, _convolution),
    LayerKind((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _one_weight, _transposed_convolution),
    LayerKind((nn.Embedding, nn.EmbeddingBag), _one_weight, _look_up),
    LayerKind((nn.LSTM, nn.GRU, nn.RNN), _recurrent_weights, _recurrent),
    LayerKind((nn.LSTMCell, nn.GRUCell, nn.RNNCell), _cell_weights, _cell),
    LayerKind((nn.MultiheadAttention,), _attention_weights, _attention),
)
