"""The baseline: a sparsifier that leaves the network as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.attachment import Attachment, Optimizers
from sparsebench.sparsifiers.saved_state import check_saved_state
from sparsebench.sparsifiers.sparsifier import EvaluationPoint

__all__ = ["DenseBaseline"]


class DenseBaseline:
    """Implements the Sparsifier protocol and drops nothing, so that a dense run is trained by the very same loop."""

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._attachment: Attachment | None = None
        self._step = 0

    @property
    def step(self) -> int:
        """Completed optimizer steps since `prepare`."""
        return self._step

    @property
    def sparsity(self) -> float:
        """Always 0."""
        return 0.0

    def prepare(self, model: nn.Module) -> None:
        """Take note of the model."""
        self._model, self._step = model, 0

    def attach(self, optimizer: Optimizers) -> None:
        """Count the optimizer's steps."""
        if self._attachment is not None:
            self._attachment.detach()
        self._attachment = Attachment(optimizer, {}, after=self._count)

    def _count(self) -> None:
        self._step += 1

    def parameter_groups(self, lr: float, auxiliary_lr_scale: float = 1.0) -> list[dict[str, Any]]:
        """One group with all parameters."""
        return [{"params": [p for p in self._prepared().parameters() if p.requires_grad], "lr": lr}]

    def penalty(self) -> torch.Tensor:
        """Zero."""
        return torch.zeros((), device=next(self._prepared().parameters()).device)

    def training_work(self) -> dict[str, float]:
        """Nothing to name: all weights are dense."""
        return {}

    def points(self) -> Iterator[EvaluationPoint]:
        """One point of sparsity 0."""
        yield EvaluationPoint(0.0, None, contextlib.nullcontext)

    def masks(self) -> dict[str, torch.Tensor]:
        """No masks."""
        return {}

    def mask_gradients(self) -> None:
        """Change nothing."""

    def apply_masks(self, other: nn.Module) -> None:
        """Change nothing."""

    def finalize_copy(self, other: nn.Module) -> nn.Module:
        """The other model."""
        return other

    def finalize(self) -> nn.Module:
        """The model."""
        return self._prepared()

    def state_dict(self) -> dict[str, Any]:
        """The step counter."""
        return {"description": {"method": "dense"}, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved step counter."""
        check_saved_state(state, {"method": "dense"})
        self._step = state["step"]

    def _prepared(self) -> nn.Module:
        if self._model is None:
            raise SparsebenchError("call prepare(model) first")
        return self._model
