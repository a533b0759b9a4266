"""Convolutions whose weight is kept without its zeros, for inference in float32 on the CPU."""

from __future__ import annotations

import math
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebench.errors import SparsebenchError
from sparsebench.inference.compressed_rows import CompressedRows
from sparsebench.inference.layers import require_inference
from sparsebench.inference.native import Axis, Convolution, Planes, load_kernels

__all__ = ["SparseConvolution", "reason_to_stay_dense"]

AnyConvolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
# As in convolution.h: an entry is an input channel and, in the low bits, an element of the kernel.
TAP_BITS = 8
MOST_TAPS, MOST_INPUTS = 2**TAP_BITS, 2 ** (31 - TAP_BITS)
# Input channels of which 128 numbers fit a first-level cache of 48 KB; with larger kernels, the padding and rows around them too.
# Where a row has fewer entries in a tile, fetching its sums again costs more than the cache spares.
POINTWISE_TILE, TILE, LEAST_IN_TILE = 64, 32, 3


def reason_to_stay_dense(layer: AnyConvolution) -> str:
    """What about a convolution `SparseConvolution` cannot do; empty where it can do all.

    Example:
        >>> from torch import nn
        >>> from sparsebench.inference.convolutions import reason_to_stay_dense
        >>> reason_to_stay_dense(nn.Conv2d(8, 8, 3, groups=2))
        'groups'
        >>> reason_to_stay_dense(nn.Conv2d(8, 8, 3))
        ''
    """
    if layer.groups != 1:
        return "groups"
    if layer.padding_mode != "zeros":
        return f"padding_mode={layer.padding_mode!r}"
    if math.prod(layer.kernel_size) > MOST_TAPS or layer.in_channels >= MOST_INPUTS:
        return f"a kernel of more than {MOST_TAPS} elements"
    is_pointwise = set(layer.kernel_size) == {1} and not any(before + after for before, after in _padding(layer))
    if len(layer.kernel_size) == 3 and not is_pointwise:
        return "a kernel in three dimensions"
    return ""


class SparseConvolution(nn.Module):
    """A convolution, a sum of its output with something and a rectifier if asked, multiplying by what is not zero alone.

    Each channel of the output is summed up over its entries: one multiple of a shifted input channel each; the entries of some
    input channels for all outputs, then those of the next ones. Bias, sum and rectifier are part of the same pass.

    Args:
        layer: In one or two dimensions, or with a kernel of one element and no padding in three; float32 on the CPU. Its numbers
            are copied.
        rectify: Whether negative results become zero.

    Raises:
        SparsebenchError: The layer has groups, another padding than zeros, a kernel of more than 256 elements or one in three
            dimensions.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sparsebench.inference.convolutions import SparseConvolution
        >>> layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        >>> _ = nn.init.dirac_(layer.weight)
        >>> sparse = SparseConvolution(layer, rectify=True)
        >>> sparse(torch.tensor([[[[1.0, -2.0]]]]))
        tensor([[[[1., 0.]]]])
        >>> sparse(torch.tensor([[[[1.0, -2.0]]]]), torch.tensor([[[[3.0, 3.0]]]]))
        tensor([[[[4., 1.]]]])
        >>> sparse
        SparseConvolution(1, 1, kernel_size=(3, 3), stride=(1, 1), bias=False, relu=True, sparsity=0.889)
    """

    starts: Tensor
    entries: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, layer: AnyConvolution, rectify: bool) -> None:
        super().__init__()
        reason = reason_to_stay_dense(layer)
        if reason:
            raise SparsebenchError(f"a convolution with {reason} cannot run sparse")
        self.inputs, self.outputs, self.kernel_size = layer.in_channels, layer.out_channels, layer.kernel_size
        self.stride, self.dilation, self.padding = layer.stride, layer.dilation, _padding(layer)
        self.rectify = rectify
        rows, taps = CompressedRows.of(layer.weight.flatten(1)), math.prod(self.kernel_size)
        self.tile = _tile(rows, taps)
        row, channel = torch.repeat_interleave(torch.arange(self.outputs), rows.starts.diff()), rows.columns // taps
        place = channel // self.tile * self.outputs + row
        starts = torch.bincount(place, minlength=-(-self.inputs // self.tile) * self.outputs).cumsum(0)
        order = place.argsort(stable=True)
        self.register_buffer("starts", F.pad(starts, (1, 0)).to(torch.int32))
        self.register_buffer("entries", ((channel << TAP_BITS) | rows.columns % taps)[order])
        self.register_buffer("values", rows.values[order])
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.eval()

    @property
    def rows(self) -> CompressedRows:
        """The weight as a matrix [outputs, inputs x elements of the kernel]."""
        taps = math.prod(self.kernel_size)
        columns = (self.entries >> TAP_BITS) * taps + (self.entries & (MOST_TAPS - 1))
        if len(self.starts) == self.outputs + 1:
            return CompressedRows(self.starts, columns, self.values, self.inputs * taps)
        row = torch.repeat_interleave(torch.arange(len(self.starts) - 1), self.starts.diff()) % self.outputs
        order = row.argsort(stable=True)
        starts = F.pad(torch.bincount(row, minlength=self.outputs).cumsum(0), (1, 0)).to(torch.int32)
        return CompressedRows(starts, columns[order], self.values[order], self.inputs * taps)

    @property
    def weight(self) -> Tensor:
        """The weight with its zeros, made anew at every access: changing it changes nothing here."""
        return self.rows.dense().reshape(self.outputs, self.inputs, *self.kernel_size)

    def forward(self, x: Tensor, added: Tensor | float | None = None, out: Tensor | None = None) -> Tensor:
        """[images, inputs, ...] to [images, outputs, ...] in the same memory format; both may be without the first dimension.

        Args:
            x: float32 on the CPU.
            added: Added before rectifying: what can be added to a tensor, in the same pass where it has the output's shape and
                memory format.
            out: Memory that the result may take, where it is a batch and has the result's shape, type and memory format; it may
                be `added`, but must not overlap `x`.

        Raises:
            SparsebenchError: `x` has another number of dimensions or inputs or is smaller than the kernel; or as for
                `require_inference`.
        """
        dimensions = len(self.stride)
        if x.dim() == dimensions + 1:
            batched = added.unsqueeze(0) if isinstance(added, Tensor) and added.dim() > dimensions else added
            return self.forward(x.unsqueeze(0), batched).squeeze(0)
        if x.dim() != dimensions + 2 or x.shape[1] != self.inputs:
            expected = f"[images, {self.inputs}, {', '.join('...' for _ in self.stride)}]"
            raise SparsebenchError(f"a sparse convolution got an input of shape {tuple(x.shape)}: expected {expected}")
        require_inference(self, x, self.values)
        out = self._output(x, out)
        if added is None:
            self._convolve(x, None, out, self.rectify)
            return out
        if not isinstance(added, Tensor) or (added.shape, added.dtype) != (out.shape, out.dtype):
            self._convolve(x, None, out, False)
            out = out + added
            return out.relu_() if self.rectify else out
        require_inference(self, added, self.values)
        if added.stride() != out.stride():
            added = out.copy_(added)
        self._convolve(x, added, out, self.rectify)
        return out

    def _output(self, x: Tensor, offered: Tensor | None) -> Tensor:
        """Where the output goes: to what is offered, if that fits, or to new memory."""
        sizes = []
        for size, kernel, stride, dilation, padding in self._axes(x):
            sizes.append((size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1)
            if sizes[-1] < 1:
                raise SparsebenchError(f"a sparse convolution got an input of shape {tuple(x.shape)}: smaller than its kernel")
        if x.stride(1) == 1 and x.shape[2:].numel() > 1:
            out = x.new_empty(len(x), *sizes, self.outputs).movedim(-1, 1)
        else:
            out = x.new_empty(len(x), self.outputs, *sizes)
        wanted = (out.dtype, out.shape, out.stride())
        return offered if offered is not None and (offered.dtype, offered.shape, offered.stride()) == wanted else out

    def _axes(self, x: Tensor) -> list[tuple[int, int, int, int, tuple[int, int]]]:
        return list(zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, self.padding, strict=True))

    def _convolve(self, x: Tensor, added: Tensor | None, out: Tensor, rectify: bool) -> None:
        """Write to `out`; `added`, which may be `out`, has its strides."""
        kernels = load_kernels()
        if kernels is None:
            self._convolve_by_torch(x, added, out, rectify)
            return
        axes = [(*axis[:-1], axis[-1][0]) for axis in self._axes(x)]
        if len(axes) == 3:
            # A kernel of one element: the pixels it meets, in one row.
            x = self._met_pixels(x)
            out, axes = out.flatten(2), [(x.shape[2], 1, 1, 1, 0)]
        if len(axes) == 1:
            x, out, axes = x.unsqueeze(2), out.unsqueeze(2), [(1, 1, 1, 1, 0), *axes]
        if _planes(x) is None:
            x = x.contiguous()
        rows, columns = (
            Axis(size, after, kernel, stride, padding, dilation)
            for (size, kernel, stride, dilation, padding), after in zip(axes, out.shape[2:], strict=True)
        )
        kernels.convolve(
            Convolution(
                self.outputs,
                self.inputs,
                self.tile,
                self.starts.data_ptr(),
                self.entries.data_ptr(),
                self.values.data_ptr(),
                None if self.bias is None else self.bias.data_ptr(),
                rectify,
                x.data_ptr(),
                None if added is None else added.data_ptr(),
                out.data_ptr(),
                cast(Planes, _planes(x)),
                cast(Planes, _planes(out)),
                len(x),
                rows,
                columns,
            )
        )

    def _convolve_by_torch(self, x: Tensor, added: Tensor | None, out: Tensor, rectify: bool) -> None:
        if set(self.kernel_size) == {1} and not any(map(sum, self.padding)):
            columns = self._met_pixels(x)
        else:
            before_and_after = [side for padding in reversed(self.padding) for side in padding]
            padded = F.pad(x, before_and_after)
            two = padded.unsqueeze(2) if len(self.stride) == 1 else padded
            kernel, dilation, stride = ((1, *sizes)[-2:] for sizes in (self.kernel_size, self.dilation, self.stride))
            columns = F.unfold(two, kernel, dilation, 0, stride)
        product = out if added is None else torch.empty_like(out)
        self.rows.multiply(columns, product.flatten(2), self.bias, rectify and added is None)
        if added is not None:
            torch.add(product, added, out=out)
            if rectify:
                out.relu_()

    def _met_pixels(self, x: Tensor) -> Tensor:
        """[images, inputs, pixels] that a kernel of one element meets."""
        index: tuple[Any, ...] = (..., *(slice(None, None, stride) for stride in self.stride))
        return x[index].flatten(2)

    def extra_repr(self) -> str:
        """Sizes, as the layers of torch print theirs."""
        sparsity = 1 - len(self.values) / max(1, self.inputs * self.outputs * math.prod(self.kernel_size))
        return (
            f"{self.inputs}, {self.outputs}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"bias={self.bias is not None}, relu={self.rectify}, sparsity={sparsity:.3f}"
        )


def _tile(rows: CompressedRows, taps: int) -> int:
    """So many input channels that what is read of them stays in the first-level cache; all where that does not pay."""
    tile = POINTWISE_TILE if taps == 1 else TILE
    in_tile = tile * taps * len(rows.values) / max(1, (len(rows.starts) - 1) * rows.features)
    inputs = rows.features // taps
    return max(1, inputs if in_tile < LEAST_IN_TILE else min(tile, inputs))


def _padding(layer: AnyConvolution) -> tuple[tuple[int, int], ...]:
    """Before and after, in each dimension."""
    if isinstance(layer.padding, tuple):
        return tuple((padding, padding) for padding in layer.padding)
    if layer.padding == "valid":
        return tuple((0, 0) for _ in layer.kernel_size)
    missing = [dilation * (kernel - 1) for dilation, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
    return tuple((all_ // 2, all_ - all_ // 2) for all_ in missing)


def _planes(images: Tensor) -> Planes | None:
    """Where the kernels find [images, channels, rows, columns]; None where neither channels nor columns are neighbours."""
    image, channel, row, column = images.stride()
    if images.shape[3] == 1:
        # A single column is nobody's neighbour, whatever its stride says.
        column = 1
    if column != 1 and images.shape[1] == 1:
        channel = 1
    return Planes(image, channel, row, column) if 1 in (channel, column) else None
