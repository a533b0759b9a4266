"""What a layer does with its weight: a linear operation, and its adjoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["Convolution", "LinearOperation", "LookUp", "Matrix", "Operation", "TransposedMatrix"]

Gradients = tuple[torch.Tensor | None, torch.Tensor | None]


class Operation(Protocol):
    """A layer's operation on (input, weight, bias)."""

    def __call__(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The output."""


class LinearOperation(Operation, Protocol):
    """An operation that is linear in input and weight, the bias apart."""

    def gradients(
        self, gradient: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, needed: tuple[bool, bool]
    ) -> Gradients:
        """Gradients with respect to input and weight, given that of the output; None where not needed. All of one dtype."""


class Matrix(NamedTuple):
    """Multiplication of the last axis, [..., in] to [..., out], by a weight [out, in]."""

    def __call__(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`input @ weight.T + bias`."""
        return F.linear(input, weight, bias)

    def gradients(
        self, gradient: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, needed: tuple[bool, bool]
    ) -> Gradients:
        """See LinearOperation."""
        rows, values = gradient.reshape(-1, gradient.shape[-1]), input.reshape(-1, input.shape[-1])
        return gradient @ weight if needed[0] else None, rows.t() @ values if needed[1] else None


class TransposedMatrix(NamedTuple):
    """Multiplication of the last axis, [..., in] to [..., out], by a weight [in, out]."""

    def __call__(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`input @ weight + bias`."""
        return F.linear(input, weight.t(), bias)

    def gradients(
        self, gradient: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, needed: tuple[bool, bool]
    ) -> Gradients:
        """See LinearOperation."""
        of_input, of_transposed = Matrix().gradients(gradient, input, weight.t(), needed)
        return of_input, None if of_transposed is None else of_transposed.t()


_CONVOLVE: Mapping[int, Callable[..., torch.Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class Convolution(NamedTuple):
    """A convolution of [batch, channels, *positions] or [channels, *positions]; what numbers cannot say is padded before."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @staticmethod
    def of(layer: Any, input: torch.Tensor) -> tuple[Convolution, torch.Tensor]:
        """The convolution of an `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`, and its input, padded where zeros alike won't do."""
        # Pairs of begin and end, from the last axis to the first; made for every kind of padding, "same" included.
        sides = layer._reversed_padding_repeated_twice
        if layer.padding_mode == "zeros" and sides[0::2] == sides[1::2]:
            return Convolution(layer.stride, tuple(sides[-2::-2]), layer.dilation, layer.groups), input
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        nothing = (0,) * len(layer.stride)
        return Convolution(layer.stride, nothing, layer.dilation, layer.groups), F.pad(input, sides, mode=mode)

    def __call__(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The convolution."""
        return _CONVOLVE[weight.dim()](input, weight, bias, *self)

    def gradients(
        self, gradient: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, needed: tuple[bool, bool]
    ) -> Gradients:
        """See LinearOperation."""
        if input.dim() < weight.dim():
            of_input, of_weight = self.gradients(gradient.unsqueeze(0), input.unsqueeze(0), weight, needed)
            return None if of_input is None else of_input.squeeze(0), of_weight
        no_output_padding = [0] * len(self.stride)
        backward: Callable[..., Gradients] = torch.ops.aten.convolution_backward
        return backward(
            gradient,
            input,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            no_output_padding,
            self.groups,
            [*needed, False],
        )[:2]


class LookUp(NamedTuple):
    """Rows of a weight [rows, features] by index: multiplication by one-hot vectors."""

    padding_idx: int | None
    scale_grad_by_freq: bool

    @staticmethod
    def of(layer: nn.Embedding) -> LookUp:
        """The look-up of an embedding."""
        return LookUp(layer.padding_idx, layer.scale_grad_by_freq)

    def __call__(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The rows; there is no bias."""
        return F.embedding(input, weight, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)
