"""Back to earlier weights, or to new ones, under given masks: lottery tickets and sparse networks from scratch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.sparsifiers.masked.held_masks import HeldAllocation, HeldLayers, by_matrix, check_masks
from sparsebench.sparsifiers.masked.layout import from_matrix, to_matrix
from sparsebench.sparsifiers.named_weights import zero_dropped
from sparsebench.sparsifiers.selection import SelectedWeight, matrices_of, select_weights, shapes_of

__all__ = ["reinitialize", "rewind"]


@torch.no_grad()
def rewind(model: nn.Module, snapshot: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> None:
    """Set a model back to an earlier state, and zero what masks drop: a lottery ticket.

    Frankle and Carbin 2019, arXiv 1803.03635. All parameters and buffers are set back. Train on with `fixed_masks(masks)` and a
    new optimizer.

    Args:
        model: The model.
        snapshot: What `copy.deepcopy(model.state_dict())` gave earlier: before training, or after a few steps (Frankle et al.
            2020, arXiv 1912.05671).
        masks: Bool masks by parameter name, True where kept, as `masks()` gives them.

    Raises:
        SparsebenchError: Snapshot or masks do not fit the model, or the snapshot is the model's own memory; nothing is changed.

    Example:
        >>> import copy
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> snapshot = copy.deepcopy(model.state_dict())
        >>> _ = nn.init.zeros_(model.weight)
        >>> rewind(model, snapshot, {"weight": torch.tensor([[True, False]])})
        >>> model.weight.tolist()
        [[1.0, 0.0]]
    """
    check_masks(masks)
    _selected(model, masks)
    if not isinstance(snapshot, Mapping):
        raise SparsebenchError(f"snapshot={snapshot!r:.60}: expected what copy.deepcopy(model.state_dict()) gave")
    now = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    for name in [*now, *(name for name in snapshot if name not in model.state_dict())]:
        if name not in snapshot or name not in now:
            where = "the model and not in the snapshot" if name in now else "the snapshot and not in the model"
            raise SparsebenchError(f"snapshot: {name!r} is in {where}")
        if snapshot[name].shape != now[name].shape:
            raise SparsebenchError(
                f"snapshot[{name!r}] has the shape {tuple(snapshot[name].shape)}, the model's is {tuple(now[name].shape)}"
            )
        if snapshot[name].data_ptr() == now[name].data_ptr() and now[name].numel():
            raise SparsebenchError(
                f"snapshot[{name!r}] is the model's own memory and has changed with it: keep copy.deepcopy(model.state_dict())"
            )
    model.load_state_dict(dict(snapshot))
    zero_dropped(model, masks)


@torch.no_grad()
def reinitialize(model: nn.Module, masks: Mapping[str, torch.Tensor], *, gain: float = 2.0**0.5, seed: int = 0) -> None:
    """Draw the weights of a sparse network anew, each output by the number of inputs that its mask leaves it.

    A kept weight of an output with n kept inputs is normal with mean 0 and variance `gain^2 / n` (Evci et al. 2020b, "Gradient
    flow in sparse neural networks", arXiv 2010.03533, section 3.1, with He et al.'s gain for ReLU); a dense initialization makes
    signals vanish in sparse networks. Weights without a mask, biases and normalization stay as they are.

    Args:
        model: The model.
        masks: Bool masks by parameter name, True where kept.
        gain: The gain of the nonlinearity, above 0: `torch.nn.init.calculate_gain`.
        seed: Seed of the draw.

    Raises:
        SparsebenchError: Masks do not fit the model, or the gain is out of range; nothing is changed.

    Example:
        >>> model = nn.Linear(4, 1, bias=False)
        >>> reinitialize(model, {"weight": torch.tensor([[True, False, False, True]])})
        >>> (model.weight != 0).tolist()
        [[True, False, False, True]]
    """
    check_masks(masks)
    if isinstance(gain, bool) or not isinstance(gain, (int, float)) or not 0.0 < gain < float("inf"):
        raise SparsebenchError(f"gain={gain!r}: expected a number above 0, such as 2 ** 0.5 for ReLU")
    for selected in _selected(model, masks):
        weight, layer = selected.parameter, selected.holders[0].layer
        mask = to_matrix(masks[selected.name].to(weight.device), layer)
        inputs = mask.sum(1, keepdim=True).clamp(min=1)
        scale = from_matrix((mask * gain / inputs.sqrt()).contiguous(), weight.shape, layer)
        drawn = torch.randn(weight.shape, generator=keyed_generator(seed, "reinitialize", selected.name))
        weight.copy_(drawn.to(weight.device) * scale)
        weight.masked_fill_(~masks[selected.name].to(weight.device), 0.0)


def _selected(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> list[SelectedWeight]:
    """The weights that the masks are for."""
    selected = select_weights(model, HeldLayers(frozenset(masks)))
    shapes = shapes_of(matrices_of(selected))
    HeldAllocation.of(by_matrix(masks)).groups(shapes)
    return [weight for weight in selected if weight.name in masks]
