"""What an optimizer remembers of weights that were dropped or came back: nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sparsebench.sparsifiers.masked.masking import multiply
from sparsebench.sparsifiers.masked.placement import local

__all__ = ["all_but_grown", "clean_optimizer_state", "kept_throughout", "treats_weights_alone"]

# What these do to a weight depends on the gradient and the state of no other.
EACH_ALONE = frozenset(
    [
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.Rprop,
        torch.optim.Adadelta,
    ]
)

# State entries that do not begin at zero: where an optimizer keeps them, and the option that they begin at.
NONZERO_BEGINNINGS: dict[tuple[type[torch.optim.Optimizer], str], str] = {
    (torch.optim.Rprop, "step_size"): "lr",
    (torch.optim.Adagrad, "sum"): "initial_accumulator_value",
}


def treats_weights_alone(optimizer: torch.optim.Optimizer) -> bool:
    """Whether gradients and state of dropped weights cannot reach those that are kept; by exact type, as a subclass may differ.

    Example:
        >>> treats_weights_alone(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        True
    """
    return type(optimizer) in EACH_ALONE


def kept_throughout(mask: torch.Tensor, new: torch.Tensor) -> None:
    """Turn a mask, in place, into one of the weights that are kept before and after a change of masks.

    Args:
        mask: The mask before: zeros and ones in the weight's dtype, or bytes.
        new: The one after, bytes.
    """
    mask.mul_(new if mask.dtype == new.dtype else torch.empty_like(mask).copy_(new))


def all_but_grown(mask: torch.Tensor, new: torch.Tensor) -> None:
    """The same, into one of all weights but those that come back with a change of masks."""
    mask.masked_fill_(new == 0, 1)


def clean_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor], keep: Sequence[torch.Tensor]
) -> None:
    """Set an optimizer's memory of single weights to what it is before their first step.

    Entries of a weight's state that have its shape are cleaned element by element, those of optimizers inside it too (of
    ZeroRedundancyOptimizer the inner one remembers, and of this process's weights alone). State that is shared between weights
    (the rows and columns of Adafactor) stays. LBFGS, whose memory is one history over all weights, begins its history anew.

    Args:
        optimizer: Any torch optimizer; weights that it does not hold are passed over.
        parameters: The weights, as in the optimizer.
        keep: For each weight a tensor of its shape (of this process's rows, where it is spread over processes) and dtype, or of
            bytes: 1 where the memory stays, 0 where it is cleaned.
    """
    for own in _with_inner(optimizer):
        if isinstance(own, torch.optim.LBFGS):
            own.state.clear()
            continue
        options = {id(p): group for group in own.param_groups for p in group["params"]}
        for parameter, kept in zip(parameters, keep, strict=True):
            for name, value in own.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.dim() > 0:
                    _clean(local(value), kept, _beginning(own, options[id(parameter)], name))


def _with_inner(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """An optimizer, and those that it holds, each state once: some share theirs."""
    waiting, seen = [optimizer], set[int]()
    while waiting:
        own = waiting.pop()
        if id(own.state) not in seen:
            seen.add(id(own.state))
            yield own
            waiting += [value for value in vars(own).values() if isinstance(value, torch.optim.Optimizer)]


def _beginning(optimizer: torch.optim.Optimizer, options: dict[str, Any], name: str) -> float:
    for (kind, entry), option in NONZERO_BEGINNINGS.items():
        if isinstance(optimizer, kind) and entry == name:
            return float(options[option])
    return 0.0


def _clean(value: torch.Tensor, kept: torch.Tensor, beginning: float) -> None:
    if beginning == 0.0:
        multiply([value], [kept])
        # An infinity times zero is NaN. Filling takes many times as long as product and sum, so it is for those who need it.
        if not bool(value.sum().isfinite()):
            value.masked_fill_(kept == 0, 0.0)
    else:
        value.copy_(torch.where(kept.bool(), value, beginning))
