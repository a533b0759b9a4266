"""The matrix that a layer multiplies by: one row for each output, whatever the layer stores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparsebench.sparsifiers.layer_types import hugging_face_conv1d

__all__ = ["from_matrix", "to_matrix"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def to_matrix(tensor: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """A weight, or its scores or mask, as the matrix [outputs, inputs].

    A linear layer's weight and an embedding are that matrix. A convolution's weight [out, in, *kernel] has the columns
    [*kernel, in], input channels running fastest: consecutive columns are consecutive input channels at the same place of the
    kernel, as matrix kernels for channels-last images read them. A transposed convolution's weight [in, out / groups, *kernel]
    and that of Hugging Face's `Conv1D` [in, out] have the rows of their outputs too.

    Args:
        tensor: Of the weight's shape, at least two dimensions.
        layer: The layer that holds the weight.

    Returns:
        Two dimensions; a view where the memory layout allows it.

    Example:
        >>> to_matrix(torch.zeros(8, 3, 5, 5), nn.Conv2d(3, 8, 5)).shape
        torch.Size([8, 75])
    """
    if type(layer) is hugging_face_conv1d():
        return tensor.t()
    if isinstance(layer, _TRANSPOSED):
        inputs, outputs, *kernel = tensor.shape
        tensor = tensor.reshape(layer.groups, inputs // layer.groups, outputs, *kernel).transpose(1, 2).flatten(0, 1)
    return tensor.movedim(1, -1).flatten(1)


def from_matrix(matrix: torch.Tensor, shape: Sequence[int], layer: nn.Module) -> torch.Tensor:
    """The inverse of `to_matrix`: a tensor of the weight's shape from its matrix."""
    if type(layer) is hugging_face_conv1d():
        return matrix.t()
    if isinstance(layer, _TRANSPOSED):
        inputs, outputs, *kernel = shape
        split = matrix.view(layer.groups, outputs, *kernel, inputs // layer.groups)
        return split.movedim(-1, 1).flatten(0, 1)
    rows, inputs, *kernel = shape
    return matrix.view(rows, *kernel, inputs).movedim(-1, 1)
