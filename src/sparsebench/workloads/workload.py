"""The Workload protocol, and the recipe that says how one is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from torch import nn

__all__ = [
    "AveragesTerms",
    "CountsSteps",
    "DataNote",
    "ExampleInput",
    "HeadsOfWeight",
    "NamesHeads",
    "NotesData",
    "ReadsParts",
    "Recipe",
    "ShowsUse",
    "SignsScores",
    "Split",
    "Workload",
    "without_later_defaults",
]

Split: TypeAlias = Literal["validation", "test"]


def without_later_defaults(model: type[BaseModel], later: frozenset[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a model's fields, without those of later fields that are the default.

    Args:
        model: The model.
        later: Fields that came after its first format, each with a default that means what was meant before.
        values: All values by field.
    """
    fields = model.model_fields

    def is_default(name: str, value: Any) -> bool:
        default = fields[name].default
        return bool(value == (list(default) if isinstance(value, list) and isinstance(default, tuple) else default))

    return {name: value for name, value in values.items() if name not in later or not is_default(name, value)}


class Recipe(BaseModel):
    """How a network is trained, apart from its sparsity. Part of a run's identity.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples a step; where the workload says so, tokens.
        optimizer: "adamw" (torch's, fused; without weight decay it is Adam) or "sgd" (Nesterov momentum 0.9).
        learning_rate: At its height.
        learning_rate_schedule: "constant", "cosine" (half a wave down to zero at the last step), "trapezoid" (constant for
            half of the training, then linearly down to zero), "step" (multiplied by `learning_rate_decay` at each milestone), or
            "inverse-square-root" (Vaswani et al. 2017, arXiv 1706.03762, eq. 3: after the warm-up it falls with the root of the
            steps; its height is their d^-0.5 * warmup_steps^-0.5).
        warmup_steps: Steps of linear rise to the learning rate.
        weight_decay: As the optimizer means it: decoupled in adamw, a gradient in sgd.
        label_smoothing: Probability mass spread over all classes, in [0, 1).
        auxiliary_lr_scale: Learning rate of a method's own parameters, as a multiple; None where it has none.
        threads: CPU threads; results differ in the last bits between numbers of threads.
        adam_beta1: Decay of the mean of gradients, in [0, 1); adamw only.
        adam_beta2: Decay of the mean of squared gradients, in [0, 1); adamw only.
        adam_epsilon: Added to their root; adamw only.
        dropout: Probability of every dropout layer of the network, in [0, 1); None as the workload has it.
        averaged_checkpoints: The final weights are the mean of those after so many steps; 1 takes the last step's.
        averaging_interval: Steps between those, counted back from the last. What resolves a configuration fills it in where
            it was left out, so that 1 here always means successive steps; see `training.averaging.default_interval`.
        milestones: Fractions of training at which "step" lowers the learning rate, in (0, 1).
        learning_rate_decay: The factor that "step" lowers it by, in (0, 1).
        precision: "float32", or "bfloat16" for autocast to it, in training and in evaluation; weights stay float32.
        weight_decay_on: "all" parameters, or the "weights" of more than one dimension: not biases, not batch norm.
        batch_norm_batches: Batch norm's statistics are estimated anew over so many training batches at every evaluation point,
            after thresholding; 0 leaves those of the training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    optimizer: Literal["adamw", "sgd"]
    learning_rate: Annotated[float, Field(gt=0)]
    learning_rate_schedule: Literal["constant", "cosine", "trapezoid", "step", "inverse-square-root"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    auxiliary_lr_scale: Annotated[float, Field(gt=0)] | None = None
    threads: Annotated[int, Field(ge=1)] = 1
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    averaged_checkpoints: Annotated[int, Field(ge=1)] = 1
    averaging_interval: Annotated[int, Field(ge=1, validate_default=True)] = 1
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    learning_rate_decay: Annotated[float, Field(gt=0, lt=1)] = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"
    weight_decay_on: Literal["all", "weights"] = "all"
    batch_norm_batches: Annotated[int, Field(ge=0)] = 0

    # Fields that came after format 1.
    LATER: ClassVar[frozenset[str]] = frozenset(
        {
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "dropout",
            "averaged_checkpoints",
            "averaging_interval",
            "milestones",
            "learning_rate_decay",
            "precision",
            "weight_decay_on",
            "batch_norm_batches",
        }
    )

    @field_validator("averaged_checkpoints")
    @classmethod
    def _averages_no_more_steps_than_there_are(cls, averaged: int, given: ValidationInfo) -> int:
        steps = given.data.get("steps")
        if steps is not None and averaged > steps:
            raise ValueError(f"so many checkpoints do not fit into {steps} steps; expected at most {steps}")
        return averaged

    @field_validator("averaging_interval")
    @classmethod
    def _averages_steps_that_there_are(cls, interval: int, given: ValidationInfo) -> int:
        averaged, steps = given.data.get("averaged_checkpoints", 1), given.data.get("steps")
        if steps is not None and (averaged - 1) * interval >= steps:
            most = (steps - 1) // (averaged - 1)
            raise ValueError(f"{averaged} checkpoints so far apart do not fit into {steps} steps; expected at most {most}")
        return interval

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A field that came later is left out where it has its default, so that configurations keep their ids."""
        return without_later_defaults(type(self), self.LATER, handler(self))


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


@runtime_checkable
class CountsSteps(Protocol):
    """A Workload whose batches are not counted in examples, so that it must say itself how many an epoch has."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps of one pass over the training set; an error where no such batch is possible."""


@runtime_checkable
class AveragesTerms(Protocol):
    """A Workload whose loss is not a mean over examples, so that it must say itself what it is a mean over."""

    def terms(self, batch: Any) -> int:
        """How many terms the loss of a batch is the mean of."""


@runtime_checkable
class ReadsParts(Protocol):
    """A Workload whose examples take long to read, so that each of several processes reads only its part of a batch."""

    def part_of_batch(self, seed: int, step: int, batch_size: int, index: int, count: int) -> tuple[Any, float]:
        """The `index`-th of `count` parts of a step's batch, and what its mean loss counts: `epochs.part_of_examples`."""


@runtime_checkable
class SignsScores(Protocol):
    """A Workload whose scores have settings that must be told with them."""

    def signatures(self) -> dict[str, str]:
        """What exactly each score measures, by its name."""


class DataNote(NamedTuple):
    """What became of a part of the data as it was read, in words; remarkable where something was left out or is unusual."""

    part: str
    told: str
    remarkable: bool


@runtime_checkable
class NotesData(Protocol):
    """A Workload that does not train on all it is given, so that it must say on what."""

    def data_notes(self) -> Sequence[DataNote]:
        """What became of each part of the data."""


class HeadsOfWeight(NamedTuple):
    """How attention heads share a weight: equal, consecutive parts of a dimension, one for each head."""

    dimension: int
    heads: int


@runtime_checkable
class NamesHeads(Protocol):
    """A Workload whose networks have attention heads, so that the sparsity of each can be told."""

    def attention_heads(self, model: nn.Module) -> Mapping[str, HeadsOfWeight]:
        """Of each weight that heads share, by its name."""


class ExampleInput(NamedTuple):
    """What a network is called with, made of validation examples.

    Attributes:
        arguments: The tensors that `forward` takes, in order.
        dynamic: Which of their dimensions may have other sizes, by the name of the argument, and what they are called; None for
            the first of each, the batch.
    """

    arguments: tuple[torch.Tensor, ...]
    dynamic: Mapping[str, Mapping[int, str]] | None = None


@runtime_checkable
class ShowsUse(Protocol):
    """A Workload that shows how its finished networks are used, so that they can be exported and timed."""

    def example_input(self, examples: int) -> ExampleInput:
        """The first validation examples, from the beginning again where there are fewer."""

    def use(self, model: nn.Module, example: ExampleInput) -> Any:
        """Do with a batch of examples what the network is for; the network is in evaluation mode, gradients are off."""
