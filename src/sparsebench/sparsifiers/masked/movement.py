"""What regrowth keeps between the moment at which gradients are dense and the end of the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.attachment import Attachment
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.sparsifiers.masked.optimizer_state import kept_throughout
from sparsebench.sparsifiers.masked.regrowth import Regrowth
from sparsebench.sparsifiers.masked.scores import LayerState
from sparsebench.sparsifiers.masked.structures import Structure
from sparsebench.sparsifiers.selection import WeightMatrix

__all__ = ["Movement", "Mover", "dense"]


@dataclass(frozen=True)
class Mover:
    """Chooses the masks that regrowth moves to.

    Args:
        regrowth: When masks move, how far, and by which scores.
        structure: The units that move.
        weights: The weights.
        seed: Seed of scores that draw random numbers.
    """

    regrowth: Regrowth
    structure: Structure
    weights: Sequence[WeightMatrix]
    seed: int

    def gradients(self) -> list[torch.Tensor | None]:
        """The gradients that are there now, dense ones."""
        return [dense(matrix.gradient) for matrix in self.weights]

    def choose(
        self,
        masks: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
        momenta: Sequence[torch.Tensor | None],
        taking_part: Sequence[bool],
        step: int,
    ) -> list[torch.Tensor]:
        """New masks, bool; weights that took no part in the training keep theirs: nothing is known about them.

        Raises:
            SparsebenchError: What the scores are computed from is not finite.
        """
        positions = [position for position, takes_part in enumerate(taking_part) if takes_part]
        for position in positions:
            _check_finite(self.weights[position].name, momenta[position])
        layers = [
            LayerState(
                self.weights[position].name,
                self.weights[position].tensor.detach(),
                masks[position],
                gradients[position],
                keyed_generator(self.seed, step, self.weights[position].name),
                momenta[position],
            )
            for position in positions
        ]
        chosen = self.regrowth.choose(self.structure, [self.weights[position] for position in positions], layers, step)
        moved = dict(zip(positions, chosen, strict=True))
        return [moved[position] if position in moved else mask.bool() for position, mask in enumerate(masks)]


class Movement:
    """Has the next masks chosen before gradients are masked, and hands them out once the step is completed.

    A step that is skipped leaves everything as it was: what was taken is dropped when the next gradients come. Between two
    updates nothing is done, and nothing is kept but the dense momentum of a regrowth that has one.

    Args:
        mover: What chooses them.

    Attributes:
        mover: The same.
        every_step: Whether something is to be done in every step.
        remembered: What optimizers remember when masks move.
    """

    remembered = staticmethod(kept_throughout)

    def __init__(self, mover: Mover) -> None:
        self.mover = mover
        self.every_step = mover.regrowth.momentum is not None
        self.momentum: list[torch.Tensor] | None = None
        if self.every_step and not mover.regrowth.borrows_momentum:
            self._begin()
        self.forget()

    def forget(self) -> None:
        """Drop what was taken from the last gradients."""
        self._taken = False
        self._problem: SparsebenchError | None = None
        self._next_momentum: list[torch.Tensor] | None = None
        self._chosen: list[torch.Tensor] | None = None

    @torch.no_grad()
    def before_step(self, masks: Sequence[torch.Tensor], step: int, attachment: Attachment | None) -> None:
        """Take from the dense gradients what the step that completes `step` steps needs of them.

        Gradients that were masked since they were taken are not looked at again; new ones (of a later evaluation of a closure, or
        after a step that GradScaler skipped) replace what was taken from the old ones. Where the step is certain there will
        be nothing to undo, and the momentum is averaged in its own memory: to find memory for a copy of it in every step takes
        up to eight times as long as averaging. Where it is not there is a second copy until the step is completed.
        """
        regrowth = self.mover.regrowth
        if not self.every_step and not regrowth.updates_at(step):
            return
        if self._taken and self._problem is None and self._are_masked(masks):
            return
        self.forget()
        self._taken = True
        scales = (getattr(optimizer, "grad_scale", None) for optimizer in (attachment.optimizers if attachment else ()))
        scale = next((scale for scale in scales if scale is not None), None)
        gradients = self.mover.gradients()
        try:
            if regrowth.momentum is not None:
                lerp = torch.Tensor.lerp_ if attachment is not None and attachment.certain else torch.lerp
                self._next_momentum = self._averaged(lerp, gradients, 1.0 - regrowth.momentum, scale)
            if regrowth.updates_at(step):
                momenta: Sequence[torch.Tensor | None] = self._next_momentum or [None for _ in gradients]
                taking_part = [gradient is not None for gradient in gradients]
                self._chosen = self.mover.choose(masks, gradients, momenta, taking_part, step)
        except SparsebenchError as problem:
            # The step may yet be skipped, for that very reason.
            self._next_momentum, self._chosen, self._problem = None, None, problem

    def finish(self, masks: Sequence[torch.Tensor], step: int, attachment: Attachment | None) -> list[torch.Tensor] | None:
        """The step is completed: its momentum holds; the masks after it, bool, where they move with it.

        Raises:
            SparsebenchError: The gradients could not be ranked.
        """
        problem, chosen, momentum = self._problem, self._chosen, self._next_momentum
        self.forget()
        if problem is not None:
            raise problem
        if momentum is not None:
            self.momentum = momentum
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """The dense momentum by parameter name, where there is one.

        Raises:
            SparsebenchError: It is not finite.
        """
        if self.momentum is None:
            return {}
        named = {matrix.name: momentum for matrix, momentum in zip(self.mover.weights, self.momentum, strict=True)}
        for name, momentum in named.items():
            _check_finite(name, momentum)
        return {"momentum": {name: momentum.clone() for name, momentum in named.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the dense momentum of a saved state, and forget what was taken from gradients.

        Raises:
            SparsebenchError: It is damaged.
        """
        self.forget()
        saved, loaded = state.get("momentum"), []
        if not self.every_step or (saved is None and self.mover.regrowth.borrows_momentum):
            self.momentum = None
            return
        for matrix in self.mover.weights:
            value, weight = saved.get(matrix.name) if isinstance(saved, Mapping) else None, matrix.tensor
            if not isinstance(value, torch.Tensor) or value.shape != weight.shape or not value.is_floating_point():
                raise SparsebenchError(
                    f"the saved state is damaged: no momentum of shape {tuple(weight.shape)} for {matrix.name!r}"
                )
            loaded.append(torch.empty_like(weight, requires_grad=False).copy_(value))
        self.momentum = loaded

    def _begin(self) -> list[torch.Tensor]:
        self.momentum = [torch.zeros_like(matrix.tensor, requires_grad=False) for matrix in self.mover.weights]
        return self.momentum

    def _averaged(
        self,
        lerp: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
        weight: float,
        scale: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        # Whether it is finite is asked where masks move: in every step that would read all of it again, and on CUDA wait for it.
        new = []
        for old, gradient in zip(self.momentum or self._begin(), gradients, strict=True):
            if gradient is not None:
                unscaled = gradient if scale is None else gradient / scale.to(gradient.device)
                # Where the weights have gone since `prepare`.
                old = old if old.device == gradient.device else old.to(gradient.device)
                old = lerp(old, unscaled.to(old.dtype), weight)
            new.append(old)
        return new

    def _are_masked(self, masks: Sequence[torch.Tensor]) -> bool:
        for gradient, mask in zip(self.mover.gradients(), masks, strict=True):
            if gradient is not None and bool(gradient.masked_fill(mask.bool(), 0.0).any()):
                return False
        return True


def dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A gradient, dense where it is a sparse tensor."""
    return tensor.to_dense() if tensor is not None and tensor.is_sparse else tensor


def _check_finite(name: str, momentum: torch.Tensor | None) -> None:
    if momentum is not None and not bool(momentum.sum(dtype=torch.promote_types(momentum.dtype, torch.float32)).isfinite()):
        raise SparsebenchError(f"the momentum of {name!r} is not finite: a gradient since the last update was not")
