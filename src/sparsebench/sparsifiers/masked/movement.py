"""What regrowth keeps between the moment at which gradients are dense and the end of the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.attachment import Attachment
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.sparsifiers.masked.regrowth import Regrowth
from sparsebench.sparsifiers.masked.scores import LayerState
from sparsebench.sparsifiers.masked.structures import Structure
from sparsebench.sparsifiers.selection import WeightMatrix

__all__ = ["Movement"]


class Movement:
    """Chooses the next masks before gradients are masked, and hands them out once the step is completed.

    A step that is skipped leaves everything as it was: what was taken is dropped when the next gradients come. Between two
    updates nothing is done, and nothing is kept but the dense momentum of a regrowth that has one.

    Args:
        regrowth: When masks move, how far, and by which scores.
        structure: The units that move.
        weights: The weights.
        seed: Seed of scores that draw random numbers.
    """

    def __init__(self, regrowth: Regrowth, structure: Structure, weights: Sequence[WeightMatrix], seed: int) -> None:
        self._regrowth, self._structure, self._weights, self._seed = regrowth, structure, weights, seed
        self.momentum: list[torch.Tensor] | None = None
        if regrowth.momentum is not None:
            self.momentum = [torch.zeros_like(matrix.tensor, requires_grad=False) for matrix in weights]
        self.forget()

    def forget(self) -> None:
        """Drop what was taken from the last gradients."""
        self._taken = False
        self._problem: SparsebenchError | None = None
        self._next_momentum: list[torch.Tensor] | None = None
        self._chosen: dict[int, torch.Tensor] | None = None

    @torch.no_grad()
    def take(self, masks: Sequence[torch.Tensor], step: int, attachment: Attachment | None) -> None:
        """Take from the dense gradients what the step that completes `step` steps needs of them.

        Gradients that were masked since they were taken are not looked at again; new ones (of a later evaluation of a closure, or
        after a step that GradScaler skipped) replace what was taken from the old ones. Where the step is certain there will
        be nothing to undo, and the momentum is averaged in its own memory: to find memory for a copy of it in every step takes
        up to eight times as long as averaging. Where it is not there is a second copy until the step is completed.
        """
        if self.momentum is None and not self._regrowth.updates_at(step):
            return
        if self._taken and self._problem is None and self._are_masked(masks):
            return
        self.forget()
        self._taken = True
        scales = (getattr(optimizer, "grad_scale", None) for optimizer in (attachment.optimizers if attachment else ()))
        scale = next((scale for scale in scales if scale is not None), None)
        gradients = [_dense(matrix.gradient) for matrix in self._weights]
        try:
            if self.momentum is not None and self._regrowth.momentum is not None:
                lerp = torch.Tensor.lerp_ if attachment is not None and attachment.certain else torch.lerp
                self._next_momentum = self._averaged(lerp, gradients, 1.0 - self._regrowth.momentum, scale)
            if self._regrowth.updates_at(step):
                self._chosen = self._choose(masks, gradients, step)
        except SparsebenchError as problem:
            # The step may yet be skipped, for that very reason.
            self._next_momentum, self._chosen, self._problem = None, None, problem

    def finish(self) -> dict[int, torch.Tensor]:
        """The step is completed: its momentum holds; the masks that move with it, by position.

        Raises:
            SparsebenchError: The gradients could not be ranked.
        """
        problem, chosen, momentum = self._problem, self._chosen, self._next_momentum
        self.forget()
        if problem is not None:
            raise problem
        if momentum is not None:
            self.momentum = momentum
        return chosen or {}

    def state_dict(self) -> dict[str, Any]:
        """The dense momentum by parameter name, where there is one.

        Raises:
            SparsebenchError: It is not finite.
        """
        if self.momentum is None:
            return {}
        named = {matrix.name: momentum for matrix, momentum in zip(self._weights, self.momentum, strict=True)}
        for name, momentum in named.items():
            _check_finite(name, momentum)
        return {"momentum": {name: momentum.clone() for name, momentum in named.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the dense momentum of a saved state, and forget what was taken from gradients.

        Raises:
            SparsebenchError: It is damaged.
        """
        self.forget()
        if self.momentum is None:
            return
        saved, loaded = state.get("momentum"), []
        for matrix in self._weights:
            value, weight = saved.get(matrix.name) if isinstance(saved, Mapping) else None, matrix.tensor
            if not isinstance(value, torch.Tensor) or value.shape != weight.shape or not value.is_floating_point():
                raise SparsebenchError(
                    f"the saved state is damaged: no momentum of shape {tuple(weight.shape)} for {matrix.name!r}"
                )
            loaded.append(torch.empty_like(weight, requires_grad=False).copy_(value))
        self.momentum = loaded

    def _averaged(
        self,
        lerp: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
        weight: float,
        scale: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        # Whether it is finite is asked where masks move: in every step that would read all of it again, and on CUDA wait for it.
        new = []
        for old, gradient in zip(self.momentum or [], gradients, strict=True):
            if gradient is not None:
                unscaled = gradient if scale is None else gradient / scale.to(gradient.device)
                # Where the weights have gone since `prepare`.
                old = old if old.device == gradient.device else old.to(gradient.device)
                old = lerp(old, unscaled.to(old.dtype), weight)
            new.append(old)
        return new

    def _choose(
        self, masks: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None], step: int
    ) -> dict[int, torch.Tensor]:
        momentum: Sequence[torch.Tensor | None] = self._next_momentum or [None] * len(gradients)
        # A layer without a gradient did not take part: nothing is known about it.
        positions = [position for position, gradient in enumerate(gradients) if gradient is not None]
        for position in positions:
            _check_finite(self._weights[position].name, momentum[position])
        layers = [
            LayerState(
                self._weights[position].name,
                self._weights[position].tensor.detach(),
                masks[position],
                gradients[position],
                keyed_generator(self._seed, step, self._weights[position].name),
                momentum[position],
            )
            for position in positions
        ]
        chosen = self._regrowth.choose(self._structure, [self._weights[position] for position in positions], layers, step)
        return dict(zip(positions, chosen, strict=True))

    def _are_masked(self, masks: Sequence[torch.Tensor]) -> bool:
        for matrix, mask in zip(self._weights, masks, strict=True):
            gradient = _dense(matrix.gradient)
            if gradient is not None and bool(gradient.masked_fill(mask.bool(), 0.0).any()):
                return False
        return True


def _check_finite(name: str, momentum: torch.Tensor | None) -> None:
    if momentum is not None and not bool(momentum.sum(dtype=torch.promote_types(momentum.dtype, torch.float32)).isfinite()):
        raise SparsebenchError(f"the momentum of {name!r} is not finite: a gradient since the last update was not")


def _dense(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient
