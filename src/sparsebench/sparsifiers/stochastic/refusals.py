"""What cannot have noisy weights, refused by name before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.named_weights import is_sharded
from sparsebench.sparsifiers.selection import SelectedWeight, is_left_out
from sparsebench.sparsifiers.sparsifier import LayerChoice

__all__ = ["refuse_foreign_users", "refuse_sharded", "refuse_unconvertible", "refuse_weight_readers"]

# These read the weights of their parts without calling them: converted parts would be passed over in silence.
WEIGHT_READERS = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)


def refuse_weight_readers(model: nn.Module, selected: Sequence[SelectedWeight], layers: LayerChoice) -> None:
    """Refuse modules that read weights without calling layers, unless the choice of layers leaves them out whole.

    Raises:
        SparsebenchError: There is one; the message names it.
    """
    chosen = [holder.name for weight in selected for holder in weight.holders]
    for name, module in model.named_modules():
        if not isinstance(module, WEIGHT_READERS):
            continue
        inside = any(layer.startswith(f"{name}." if name else "") for layer in chosen)
        if inside or not is_left_out(name, module, layers):
            where = repr(name) if name else "the model"
            raise SparsebenchError(
                f"{where} is a {type(module).__name__}, which reads weights without calling its layers, so noisy weights would "
                "be passed over: use linear layers with scaled_dot_product_attention, or leave it out with layers="
            )


def refuse_foreign_users(model: nn.Module, selected: Sequence[SelectedWeight]) -> None:
    """Refuse a weight that an unconverted layer uses too: it would be noisy here and plain there.

    Raises:
        SparsebenchError: There is one; the message names it and its other user.
    """
    chosen = {id(weight.parameter): weight for weight in selected}
    converted = {id(holder.layer) for weight in selected for holder in weight.holders}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in chosen and id(module) not in converted:
                raise SparsebenchError(
                    f"{chosen[id(parameter)].name!r} is also used by {name!r} ({type(module).__name__}), which cannot be "
                    "converted: leave it out with layers="
                )


def refuse_unconvertible(name: str, layer: nn.Module) -> None:
    """Refuse a layer of a type in the table whose options go with no noisy weights.

    Raises:
        SparsebenchError: The layer changes its weight by itself (an embedding's `max_norm`) or has sparse gradients.
    """
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
        option = "sparse=True" if layer.sparse else f"max_norm={layer.max_norm}"
        raise SparsebenchError(
            f"{name!r} is an Embedding with {option}: not possible with noisy weights; leave it out with layers="
        )


def refuse_sharded(weights: Mapping[str, nn.Parameter]) -> None:
    """Refuse weights of which this process holds only a part: penalty and sparsity would be those of the part.

    Raises:
        SparsebenchError: There is one; the message names it.
    """
    for name, weight in weights.items():
        if is_sharded(weight):
            raise SparsebenchError(
                f"{name!r} is spread over processes (fully_shard): variational dropout and L0 need whole weights; use "
                "DistributedDataParallel, or a pruning method"
            )
