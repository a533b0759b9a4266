"""Layers with noisy weights: the table of layer types that can be converted, and the conversion there and back.

A converted layer is the same module object, of a subclass that differs in its forward pass; weights and biases keep their names,
and one auxiliary parameter sits beside each noisy weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sparsebench.sparsifiers.layer_types import WeightNames, hugging_face_conv1d, layer_types
from sparsebench.sparsifiers.stochastic.distribution import Distribution
from sparsebench.sparsifiers.stochastic.operations import Convolution, LookUp, Matrix, Operation, TransposedMatrix

__all__ = ["Activity", "auxiliary_name", "convert", "convertible_types", "restore", "samples_outputs"]


@dataclass
class Activity:
    """What a converted layer knows of its method, and what the method asks of it: did it run?

    Attributes:
        distribution: The distribution over its weights.
        auxiliaries: The name of the auxiliary parameter of each weight that is noisy, by the weight's name.
        folded: True while the weights are those of an evaluation point, used as they are.
        trained: It ran in training mode since the last step.
        evaluated: It ran while folded.
    """

    distribution: Distribution
    auxiliaries: dict[str, str] = field(default_factory=dict)
    folded: bool = False
    trained: bool = False
    evaluated: bool = False


def _forward(operation_of: Callable[[Any, torch.Tensor], tuple[Operation, torch.Tensor]]) -> Callable[..., torch.Tensor]:
    """The forward pass of a layer with one weight, given what makes of layer and input an operation and its input."""

    def forward(layer: Any, input: torch.Tensor) -> torch.Tensor:
        activity: Activity = layer.activity
        weight, bias = layer.weight, getattr(layer, "bias", None)
        operation, input = operation_of(layer, input)
        if activity.folded:
            activity.evaluated = True
            return operation(input, weight, bias)
        auxiliary = getattr(layer, activity.auxiliaries["weight"])
        if not layer.training:
            return operation(input, activity.distribution.mean_weight(weight, auxiliary), bias)
        activity.trained = True
        return activity.distribution.sample_output(operation, input, weight, auxiliary, bias)

    return forward


def _recurrent_forward(ordinary: type[nn.RNNBase]) -> Callable[..., Any]:
    """The forward pass of a recurrent layer: its weights are sampled once for the whole batch of sequences.

    What happens inside the fused recurrence cannot be noisy at every step; one sample for all steps is the right thing anyhow
    (Lobacheva et al. 2017, arXiv 1708.00077, section 3; Gal and Ghahramani 2016).
    """

    def forward(layer: Any, *arguments: Any, **options: Any) -> Any:
        activity: Activity = layer.activity
        if activity.folded:
            activity.evaluated = True
            return ordinary.forward(layer, *arguments, **options)
        activity.trained |= layer.training
        distribution, auxiliaries = activity.distribution, activity.auxiliaries

        def weight_of(name: str, weight: torch.Tensor) -> torch.Tensor:
            if name not in auxiliaries:
                return weight
            auxiliary = getattr(layer, auxiliaries[name])
            if not layer.training:
                return distribution.mean_weight(weight, auxiliary)
            return distribution.sample_weight(weight, auxiliary, distribution.noise_like(auxiliary))

        parameters = layer._flat_weights
        layer._flat_weights = [weight_of(*named) for named in zip(layer._flat_weights_names, parameters, strict=True)]
        try:
            return ordinary.forward(layer, *arguments, **options)
        finally:
            layer._flat_weights = parameters

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


class StochasticRNN(nn.RNN):
    """A recurrent layer with noisy weights."""

    forward = _recurrent_forward(nn.RNN)


class StochasticLSTM(nn.LSTM):
    """A long short-term memory with noisy weights."""

    forward = _recurrent_forward(nn.LSTM)


class StochasticGRU(nn.GRU):
    """A gated recurrent unit with noisy weights."""

    forward = _recurrent_forward(nn.GRU)


class StochasticConv1D:
    """What makes Hugging Face's `Conv1D`, a linear layer with a weight [in, out], one with noisy weights."""

    forward = _forward(lambda layer, input: (TransposedMatrix(), input))


_CONVERTED: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StochasticLinear,
    nn.Conv1d: StochasticConv1d,
    nn.Conv2d: StochasticConv2d,
    nn.Conv3d: StochasticConv3d,
    nn.Embedding: StochasticEmbedding,
    nn.RNN: StochasticRNN,
    nn.LSTM: StochasticLSTM,
    nn.GRU: StochasticGRU,
}


def convertible_types() -> Mapping[type[nn.Module], WeightNames]:
    """Exact layer types that can have noisy weights, each with the names of the weights of a layer."""
    return {kind: names for kind, names in layer_types().items() if kind in _CONVERTED or kind is hugging_face_conv1d()}


def auxiliary_name(distribution: Distribution, weight: str) -> str:
    """The name of a weight's auxiliary parameter: "log_alpha" beside "weight", "log_alpha_hh_l0" beside "weight_hh_l0"."""
    return distribution.parameter + weight.removeprefix("weight")


def convert(layer: nn.Module, distribution: Distribution, weight: str, auxiliary: nn.Parameter) -> None:
    """Make one weight of a layer noisy, in place, with the given auxiliary parameter."""
    if type(layer) in convertible_types():
        layer.activity = Activity(distribution)  # type: ignore[assignment]
        layer.__class__ = _converted_type(type(layer))
    activity: Activity = layer.activity  # type: ignore[assignment]
    name = auxiliary_name(distribution, weight)
    layer.register_parameter(name, auxiliary)
    activity.auxiliaries[weight] = name


def samples_outputs(layer: nn.Module) -> bool:
    """Whether noise can enter in a layer's outputs; that of recurrent layers is always in their weights."""
    return not isinstance(layer, nn.RNNBase)


def restore(layer: nn.Module) -> None:
    """Make a converted layer an ordinary one again; its weights stay as they are."""
    activity: Activity = layer.activity  # type: ignore[assignment]
    for name in activity.auxiliaries.values():
        delattr(layer, name)
    del layer.activity
    layer.__class__ = next(kind for kind in convertible_types() if _converted_type(kind) is type(layer))


_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def _converted_type(kind: type[nn.Module]) -> type[nn.Module]:
    if kind in _CONVERTED:
        return _CONVERTED[kind]
    if kind not in _MADE:  # when transformers is there: it is not needed otherwise
        _MADE[kind] = type("StochasticConv1D", (StochasticConv1D, kind), {"__module__": __name__, "__reduce_ex__": _reduce})
    return _MADE[kind]


def _reduce(layer: Any, protocol: int) -> tuple[Any, ...]:
    """Pickle by the ordinary type, which can be found by its name; the made one cannot."""
    return _rebuild, (type(layer).__mro__[2],), layer.__getstate__()


def _rebuild(kind: type[nn.Module]) -> nn.Module:
    made = _converted_type(kind)
    layer: nn.Module = made.__new__(made)
    return layer
