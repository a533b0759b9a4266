"""The Sparsifier protocol: what a training loop may rely on, whatever the method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from sparsebench.sparsifiers.attachment import Optimizers

__all__ = ["EvaluationPoint", "LayerChoice", "Sparsifier"]

LayerChoice: TypeAlias = str | Sequence[str] | Callable[[str, nn.Module], bool] | None
"""Which layers become sparse: None for the default, name patterns (`"!pattern"` excludes), or a predicate on (name, module)."""


class EvaluationPoint:
    """One sparse network that the training has produced; inside `with point:` the model *is* that network.

    Attributes:
        sparsity: Fraction in [0, 1] of the sparsified weights that are zero at this point.
        threshold: The log-alpha threshold above which a weight is dropped; None where the method has none.
    """

    def __init__(
        self,
        sparsity: float,
        threshold: float | None,
        activate: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self.sparsity = sparsity
        self.threshold = threshold
        self._activate = activate
        self._active = contextlib.ExitStack()

    def __enter__(self) -> EvaluationPoint:
        self._active.enter_context(self._activate())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._active.__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        return f"EvaluationPoint(sparsity={self.sparsity:.4f}, threshold={self.threshold})"


@runtime_checkable
class Sparsifier(Protocol):
    """What makes a network sparse during its training.

    The order of use: `prepare(model)`, make the optimizer, `attach(optimizer)`, train with `penalty()` added to the loss,
    evaluate at `points()`, `finalize()`. No other call has to be remembered; a step is a completed optimizer step.
    """

    @property
    def step(self) -> int:
        """Completed optimizer steps since `prepare`."""

    @property
    def sparsity(self) -> float:
        """Fraction in [0, 1] of the sparsified weights that are zero (stochastic methods: would be, at the first threshold)."""

    def prepare(self, model: nn.Module) -> None:
        """Pick the layers of `model`; before the optimizer, a scheduler or any wrapper for many devices sees it.

        Raises:
            SparsebenchError: A pattern matches no layer, the model has nothing to make sparse, or it holds layers that
                the method cannot treat.
        """

    def attach(self, optimizer: Optimizers) -> None:
        """Follow the steps of `optimizer` from here on, through its hooks; of several that share the parameters, given as a list.

        With several a step is complete once each has made one. The hooks are not part of a copy: after
        `copy.deepcopy(optimizer)` attach to the copy.

        Raises:
            SparsebenchError: A parameter that the method needs is in none of them.
        """

    def parameter_groups(self, lr: float, auxiliary_lr_scale: float = 1.0) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: the network's at `lr`, the method's own at `lr * auxiliary_lr_scale`."""

    def penalty(self) -> torch.Tensor:
        """The scalar to add to the loss at this step: zero for pruning, the KL or L0 term for the others."""

    def training_work(self) -> dict[str, float]:
        """For each weight, by name, the multiply-adds of the next step as multiples of those of a dense forward pass.

        3 is a dense step: forward pass, gradient of the input, gradient of the weight. What `accounting.TrainingCost` adds up.
        """

    def points(self) -> Iterator[EvaluationPoint]:
        """The evaluation points of the network as it is now."""

    def masks(self) -> dict[str, torch.Tensor]:
        """Bool masks by parameter name, True where a weight is kept."""

    def mask_gradients(self) -> None:
        """Zero the gradients of dropped weights, before norms are clipped, say; nothing where gradients are those of a loss."""

    def apply_masks(self, other: nn.Module) -> None:
        """Zero, in another model with the same parameter names, the weights that are dropped here (an averaged copy, say)."""

    def finalize(self) -> nn.Module:
        """End: the model, the same object, with ordinary layers and exact zeros (+0.0)."""

    def finalize_copy(self, other: nn.Module) -> nn.Module:
        """The same for a copy of the model, an averaged one, say, with its own weights; before `finalize`."""

    def state_dict(self) -> dict[str, Any]:
        """All that must be saved beside model and optimizer to go on exactly where this left off."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state.

        Raises:
            SparsebenchError: It belongs to another model, method or schedule; the message names the difference.
        """
