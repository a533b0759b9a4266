"""Regrowth by the momentum that an optimizer keeps anyway: nothing is stored, and nothing is done between two updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from sparsebench.sparsifiers.attachment import Attachment
from sparsebench.sparsifiers.masked.movement import Movement, Mover, dense
from sparsebench.sparsifiers.masked.optimizer_state import all_but_grown
from sparsebench.sparsifiers.selection import WeightMatrix

__all__ = ["BorrowedMomentum", "averages_gradients", "movement_with", "own_movement"]

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
    return type(optimizer) in ENTRIES and all(map(_averages, optimizer.param_groups))


def movement_with(
    movement: Movement | BorrowedMomentum, optimizers: Sequence[torch.optim.Optimizer]
) -> Movement | BorrowedMomentum:
    """The same movement with other optimizers: by theirs where it may be, all keep one, and it has not begun its own."""
    begun = isinstance(movement, Movement) and movement.momentum is not None
    if movement.mover.regrowth.borrows_momentum and not begun and all(map(averages_gradients, optimizers)):
        return BorrowedMomentum(movement.mover)
    return own_movement(movement)


def own_movement(movement: Movement | BorrowedMomentum) -> Movement:
    """The same movement by a momentum of its own, zero at first where it was another's."""
    return movement if isinstance(movement, Movement) else Movement(movement.mover)


class BorrowedMomentum:
    """Has the next masks chosen once the step is completed, from the optimizer's momentum.

    The gradients of dropped weights reach the optimizer's memory of these weights, and nothing else.

    Args:
        mover: What chooses the masks.

    Attributes:
        mover: The same.
        every_step: False: nothing is to be done between two updates.
        remembered: What optimizers remember when masks move.
    """

    every_step: Final = False
    remembered = staticmethod(all_but_grown)

    def __init__(self, mover: Mover) -> None:
        self.mover = mover

    @torch.no_grad()
    def finish(self, masks: Sequence[torch.Tensor], step: int, attachment: Attachment | None) -> list[torch.Tensor] | None:
        """The step is completed: the masks after it, bool, where they move with it.

        Raises:
            SparsebenchError: The momentum is not finite.
        """
        if attachment is None or not self.mover.regrowth.updates_at(step):
            return None
        momenta = [dense(self._momentum(matrix, attachment.optimizers)) for matrix in self.mover.weights]
        # Gradients may be gone by now: another optimizer's loop, or a hook, has set them to None.
        return self.mover.choose(masks, self.mover.gradients(), momenta, [momentum is not None for momentum in momenta], step)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the optimizer saves its momentum."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing: the optimizer loads its momentum."""

    @staticmethod
    def _momentum(matrix: WeightMatrix, optimizers: Sequence[torch.optim.Optimizer]) -> torch.Tensor | None:
        for optimizer in optimizers:
            momentum = optimizer.state.get(matrix.weight.parameter, {}).get(ENTRIES[type(optimizer)])
            if momentum is not None:
                return matrix.part(momentum.detach())
        return None


def _averages(group: Mapping[str, Any]) -> bool:
    if "momentum" in group:
        return bool(group["momentum"] > 0.0 and group["dampening"] < 1.0)
    return bool(group["betas"][0] > 0.0)
