"""The Workload protocol, and the recipe that says how one is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

__all__ = ["Recipe", "Split", "Workload"]

Split: TypeAlias = Literal["validation", "test"]


class Recipe(BaseModel):
    """How a network is trained, apart from its sparsity. Part of a run's identity.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples a step.
        optimizer: "adamw" (torch's, fused, default betas) or "sgd" (Nesterov momentum 0.9).
        learning_rate: At its height.
        learning_rate_schedule: "constant", "cosine" (half a wave down to zero at the last step), or "trapezoid" (constant for
            half of the training, then linearly down to zero).
        warmup_steps: Steps of linear rise to the learning rate.
        weight_decay: As the optimizer means it: decoupled in adamw, a gradient in sgd.
        label_smoothing: Probability mass spread over all classes, in [0, 1).
        auxiliary_lr_scale: Learning rate of a method's own parameters, as a multiple; None where it has none.
        threads: CPU threads; results differ in the last bits between numbers of threads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    optimizer: Literal["adamw", "sgd"]
    learning_rate: Annotated[float, Field(gt=0)]
    learning_rate_schedule: Literal["constant", "cosine", "trapezoid"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    auxiliary_lr_scale: Annotated[float, Field(gt=0)] | None = None
    threads: Annotated[int, Field(ge=1)] = 1


class Workload(Protocol):
    """A task: what the training loop asks of it.

    Data order and augmentation are functions of (seed, epoch, example) alone, so that a run resumes anywhere and two methods with
    the same seed see the same batches.
    """

    @property
    def name(self) -> str:
        """As studies and the command line name it."""

    @property
    def summary(self) -> str:
        """One line for lists and reports."""

    @property
    def revision(self) -> int:
        """Raised when data, model or metric change, so that old results are not taken for new ones."""

    @property
    def metric(self) -> str:
        """The primary metric, one of those that `evaluate` gives; higher is better, percentages in per cent."""

    @property
    def recipe(self) -> Recipe:
        """The reference recipe."""

    @property
    def training_examples(self) -> int:
        """N, the number of training examples."""

    def build_model(self) -> nn.Module:
        """A new network, its weights drawn from torch's default generator."""

    def batch(self, seed: int, step: int, batch_size: int) -> Any:
        """The training batch of a step, counted from 0."""

    def loss(self, model: nn.Module, batch: Any, label_smoothing: float) -> torch.Tensor:
        """The training loss of a batch, a scalar."""

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """All metrics of a split; the model's training flag is put back."""
