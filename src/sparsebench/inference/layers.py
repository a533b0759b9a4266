"""Layers whose weight is kept without its zeros, for inference in float32 on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsebench.errors import SparsebenchError
from sparsebench.inference.compressed_blocks import CompressedBlocks
from sparsebench.inference.compressed_rows import CompressedRows
from sparsebench.inference.compressed_tiles import CompressedTiles

__all__ = ["SparseLinear", "SparseWeight", "Storage", "require_inference"]

Storage = type[CompressedRows] | type[CompressedTiles] | type[CompressedBlocks]


def require_inference(layer: nn.Module, x: Tensor, values: Tensor) -> None:
    """Check that a layer is asked for what it can do.

    Args:
        layer: With a weight without its zeros.
        x: An input of it.
        values: What is left of the weight.

    Raises:
        SparsebenchError: The layer is in training mode, gradients are asked for, or `x` or `values` are not float32 on the CPU.
    """
    if layer.training:
        raise SparsebenchError("a sparse layer cannot be trained: call model.eval(), or train the model it was compiled from")
    if x.requires_grad and torch.is_grad_enabled():
        raise SparsebenchError("a sparse layer gives no gradients: call it under torch.no_grad() or torch.inference_mode()")
    for name, tensor in (("its input", x), ("the sparse layer", values)):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise SparsebenchError(f"{name} is {tensor.dtype} on {tensor.device}: expected torch.float32 on the CPU")


class SparseWeight(nn.Module):
    """The weight [outputs, inputs] of a layer without its zeros, and its bias, as buffers.

    Args:
        weight: float32 [outputs, inputs] on the CPU; what is zero is not kept.
        bias: float32 [outputs].
        rectify: Whether negative results become zero.
        storage: How the weight is kept: `CompressedRows`; `CompressedTiles`, which is faster for many columns and slower for one;
            or `CompressedBlocks` for one whose zeros come in blocks of 16 outputs.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, rectify: bool, storage: Storage = CompressedRows) -> None:
        super().__init__()
        matrix = storage.of(weight)
        self.outputs, self.inputs = weight.shape
        self.rectify = rectify
        self.storage = storage
        self.register_buffer("starts", matrix.starts)
        self.register_buffer("columns", matrix.columns)
        self.register_buffer("values", matrix.values)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.eval()

    @property
    def matrix(self) -> CompressedRows | CompressedTiles | CompressedBlocks:
        """The weight."""
        return self.storage.held(self.starts, self.columns, self.values, (self.outputs, self.inputs))

    def multiply(self, x: Tensor, out: Tensor) -> None:
        """Write the product with [images, inputs, positions] to [images, outputs, positions].

        Raises:
            SparsebenchError: The layer is in training mode, gradients are asked for, or `x` or the layer is not float32 on
                the CPU.
        """
        require_inference(self, x, self.values)
        self.matrix.multiply(x, out, self.bias, self.rectify)

    def extra_repr(self) -> str:
        """Sizes, as the layers of torch print theirs."""
        sparsity = 1 - int(self.values.count_nonzero()) / max(1, self.inputs * self.outputs)
        return f"{self.inputs}, {self.outputs}, bias={self.bias is not None}, relu={self.rectify}, sparsity={sparsity:.3f}"


class SparseLinear(SparseWeight):
    """`nn.Linear`, and a rectifier after it if asked, that multiplies by what is not zero alone.

    Args:
        weight: float32 [outputs, inputs] on the CPU.
        bias: float32 [outputs].
        rectify: Whether negative results become zero.
        storage: As for `SparseWeight`.

    Example:
        >>> import torch
        >>> from sparsebench.inference.layers import SparseLinear
        >>> layer = SparseLinear(torch.tensor([[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0]]), bias=torch.tensor([1.0, 0.0]), rectify=True)
        >>> layer(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[5., 0.]])
        >>> layer
        SparseLinear(3, 2, bias=True, relu=True, sparsity=0.667)
    """

    @property
    def weight(self) -> Tensor:
        """The weight with its zeros, made anew at every access: changing it changes nothing here."""
        return self.matrix.dense()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], contiguous.

        Raises:
            SparsebenchError: As for `multiply`, or the last dimension is not `inputs`.
        """
        if x.dim() == 0 or x.shape[-1] != self.inputs:
            raise SparsebenchError(f"a sparse linear layer got an input of shape {tuple(x.shape)}: expected [..., {self.inputs}]")
        flat = x.reshape(-1, self.inputs)
        out = flat.new_empty(len(flat), self.outputs)
        self.multiply(flat.unsqueeze(2), out.unsqueeze(2))
        return out.view(*x.shape[:-1], self.outputs)
