"""Layers with noisy weights: the table of layer types that can be converted, and the conversion there and back.

A converted layer is the same module object, of a subclass that differs in its forward pass; `weight` and `bias` keep their names,
and one auxiliary parameter sits beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsebench.sparsifiers.stochastic.distribution import Distribution
from sparsebench.sparsifiers.stochastic.operations import Convolution, LookUp, Matrix, Operation

__all__ = ["CONVERTIBLE", "Activity", "convert", "restore"]


@dataclass
class Activity:
    """What a converted layer knows of its method, and what the method asks of it: did it run?

    Attributes:
        distribution: The distribution over its weights.
        folded: True while `weight` holds the weights of an evaluation point, used as they are.
        trained: It ran in training mode since the last step.
        evaluated: It ran while folded.
    """

    distribution: Distribution
    folded: bool = False
    trained: bool = False
    evaluated: bool = False


def _forward(operation_of: Callable[[Any, torch.Tensor], tuple[Operation, torch.Tensor]]) -> Callable[..., torch.Tensor]:
    """The forward pass of a converted layer, given what makes of layer and input an operation and its input."""

    def forward(layer: Any, input: torch.Tensor) -> torch.Tensor:
        activity: Activity = layer.activity
        weight, bias = layer.weight, getattr(layer, "bias", None)
        auxiliary = getattr(layer, activity.distribution.parameter)
        operation, input = operation_of(layer, input)
        if activity.folded:
            activity.evaluated = True
            return operation(input, weight, bias)
        if not layer.training:
            return operation(input, activity.distribution.mean_weight(weight, auxiliary), bias)
        activity.trained = True
        return activity.distribution.sample_output(operation, input, weight, auxiliary, bias)

    return forward


class StochasticLinear(nn.Linear):
    """A linear layer with noisy weights."""

    forward = _forward(lambda layer, input: (Matrix(), input))


class StochasticConv1d(nn.Conv1d):
    """A one-dimensional convolution with noisy weights."""

    forward = _forward(Convolution.of)


class StochasticConv2d(nn.Conv2d):
    """A two-dimensional convolution with noisy weights."""

    forward = _forward(Convolution.of)


class StochasticConv3d(nn.Conv3d):
    """A three-dimensional convolution with noisy weights."""

    forward = _forward(Convolution.of)


class StochasticEmbedding(nn.Embedding):
    """An embedding with noisy weights."""

    forward = _forward(lambda layer, input: (LookUp.of(layer), input))


CONVERTIBLE: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StochasticLinear,
    nn.Conv1d: StochasticConv1d,
    nn.Conv2d: StochasticConv2d,
    nn.Conv3d: StochasticConv3d,
    nn.Embedding: StochasticEmbedding,
}


def convert(layer: nn.Module, distribution: Distribution, auxiliary: nn.Parameter) -> None:
    """Give a layer, in place, noisy weights with the given auxiliary parameter."""
    layer.register_parameter(distribution.parameter, auxiliary)
    layer.activity = Activity(distribution)  # type: ignore[assignment]
    layer.__class__ = CONVERTIBLE[type(layer)]


def restore(layer: nn.Module) -> None:
    """Make a converted layer an ordinary one again; its `weight` stays as it is."""
    activity: Activity = layer.activity  # type: ignore[assignment]
    delattr(layer, activity.distribution.parameter)
    del layer.activity
    layer.__class__ = next(ordinary for ordinary, converted in CONVERTIBLE.items() if converted is type(layer))
