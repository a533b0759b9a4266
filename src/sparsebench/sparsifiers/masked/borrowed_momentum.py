"""Regrowth by the momentum that an optimizer keeps anyway: nothing is stored, and nothing is done between two updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from sparsebench.sparsifiers.attachment import Attachment
from sparsebench.sparsifiers.masked.movement import Movement, Mover, dense
from sparsebench.sparsifiers.masked.optimizer_state import all_but_grown

__all__ = ["BorrowedMomentum", "averages_gradients", "movement_with"]

# Where optimizers that treat every weight alone (`optimizer_state.EACH_ALONE`) keep an average of its gradients.
ENTRIES: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.SGD: "momentum_buffer",
    torch.optim.Adam: "exp_avg",
    torch.optim.AdamW: "exp_avg",
    torch.optim.NAdam: "exp_avg",
    torch.optim.RAdam: "exp_avg",
    torch.optim.Adamax: "exp_avg",
}


def averages_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer keeps an average of the gradients of every weight, up to a factor.

    Example:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> averages_gradients(torch.optim.AdamW([weight])), averages_gradients(torch.optim.SGD([weight], lr=0.1))
        (True, False)
    """
    return type(optimizer) in ENTRIES and all(group.get("momentum", 1.0) != 0.0 for group in optimizer.param_groups)


def movement_with(
    movement: Movement | BorrowedMomentum, optimizers: Sequence[torch.optim.Optimizer]
) -> Movement | BorrowedMomentum:
    """The same movement with other optimizers: by their momentum where it may be and all of them keep one."""
    borrows = movement.mover.regrowth.borrows_momentum and all(map(averages_gradients, optimizers))
    suited = BorrowedMomentum if borrows else Movement
    return movement if isinstance(movement, suited) else suited(movement.mover)


class BorrowedMomentum:
    """Has the next masks chosen once the step is completed, from the optimizer's momentum.

    The gradients of dropped weights reach the optimizer's memory of these weights, and nothing else. Where they are masked by
    hand, for a norm without them, they are put aside, and given back before the optimizer sees them.

    Args:
        mover: What chooses the masks.

    Attributes:
        mover: The same.
        every_step: False: nothing is to be done between two updates.
        leaves_gradients: True: the optimizer must see the gradients of dropped weights.
        remembered: What optimizers remember when masks move.
    """

    every_step: Final = False
    leaves_gradients: Final = True
    remembered = staticmethod(all_but_grown)

    def __init__(self, mover: Mover) -> None:
        self.mover = mover
        self._aside: list[torch.Tensor | None] | None = None

    @torch.no_grad()
    def before_masking(self, masks: Sequence[torch.Tensor], step: int, attachment: Attachment | None) -> None:
        """Put the gradients of dropped weights aside; those of gradients that were masked already stay there."""
        if self._aside is not None and self.mover.are_masked(masks):
            return
        self._aside = [
            None if gradient is None else gradient.masked_fill(mask.bool(), 0.0)
            for gradient, mask in zip(self.mover.gradients(), masks, strict=True)
        ]

    @torch.no_grad()
    def before_step(self, masks: Sequence[torch.Tensor], step: int, attachment: Attachment | None) -> None:
        """Give back what was put aside, unless other gradients have come since."""
        if self._aside is not None and self.mover.are_masked(masks):
            for matrix, aside in zip(self.mover.weights, self._aside, strict=True):
                gradient = matrix.gradient
                if gradient is not None and aside is not None:
                    if gradient.is_sparse:
                        matrix.weight.parameter.grad = aside.add_(gradient)
                    else:
                        gradient.add_(aside)
        self._aside = None

    @torch.no_grad()
    def finish(self, masks: Sequence[torch.Tensor], step: int, attachment: Attachment | None) -> list[torch.Tensor] | None:
        """The step is completed: the masks after it, bool, where they move with it.

        Raises:
            SparsebenchError: The momentum is not finite.
        """
        self._aside = None
        if attachment is None or not self.mover.regrowth.updates_at(step):
            return None
        momenta = [dense(self._momentum(position, attachment.optimizers)) for position in range(len(self.mover.weights))]
        gradients = [
            None if momentum is None else gradient for gradient, momentum in zip(self.mover.gradients(), momenta, strict=True)
        ]
        return self.mover.choose(masks, gradients, momenta, step)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the optimizer saves its momentum."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Forget what was put aside."""
        self._aside = None

    def _momentum(self, position: int, optimizers: Sequence[torch.optim.Optimizer]) -> torch.Tensor | None:
        matrix = self.mover.weights[position]
        for optimizer in optimizers:
            momentum = optimizer.state.get(matrix.weight.parameter, {}).get(ENTRIES[type(optimizer)])
            if momentum is not None:
                return matrix.part(momentum.detach())
        return None
