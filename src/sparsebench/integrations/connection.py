"""A sparsifier in somebody else's training loop: what the callbacks of all frameworks have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.integrations.penalty_gradient import PenaltyGradient
from sparsebench.sparsifiers.distributed import verify_same_masks
from sparsebench.sparsifiers.sparsifier import Sparsifier

__all__ = ["Connection"]


class Connection:
    """Prepares a sparsifier once, and attaches it to an optimizer together with its penalty's gradient.

    Args:
        sparsifier: Any Sparsifier, prepared already or not.

    Raises:
        SparsebenchError: Not a sparsifier.
    """

    def __init__(self, sparsifier: Sparsifier) -> None:
        # Not isinstance(): before Python 3.12 it evaluates `sparsity`, which there is none of before prepare().
        if not all(hasattr(type(sparsifier), name) for name in ("prepare", "attach", "penalty", "state_dict")):
            raise SparsebenchError(f"SparsebenchCallback expects a sparsifier, got {type(sparsifier).__name__}")
        self.sparsifier = sparsifier
        self._prepared = False
        self._penalty_gradient: PenaltyGradient | None = None

    @property
    def is_prepared(self) -> bool:
        """Whether the sparsifier has a model: not before `prepare`, and not after a `finalize` that ended it."""
        try:
            self.sparsifier.penalty()
        except SparsebenchError:
            return False
        return True

    def prepare(self, model: nn.Module) -> None:
        """Prepare the sparsifier, unless that was done before, here or by the user.

        A second fit or a test of the finalized network must not begin to make it sparse anew.
        """
        if not self._prepared and not self.is_prepared:
            self.sparsifier.prepare(model)
        self._prepared = True

    def attach(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Attach to the optimizer that holds the sparsified weights, and let go of an earlier one.

        Raises:
            SparsebenchError: None of them holds these weights (the message names the first that is missing), or processes of a
                distributed training have different masks.
        """
        refusal = SparsebenchError("there is no optimizer: nothing can be made sparse without training")
        for number, optimizer in enumerate(optimizers):
            # First, so that the gradient of the penalty is masked too.
            penalty_gradient = PenaltyGradient(self.sparsifier, optimizer)
            try:
                self.sparsifier.attach(optimizer)
            except SparsebenchError as error:
                penalty_gradient.detach()
                refusal = error if number == 0 else refusal
                continue
            if self._penalty_gradient is not None:
                self._penalty_gradient.detach()
            self._penalty_gradient = penalty_gradient
            # Here every process is known to train the same network, and to have come to this line.
            verify_same_masks(self.sparsifier.masks())
            return
        raise refusal
