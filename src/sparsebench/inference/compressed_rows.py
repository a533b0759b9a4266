"""A sparse matrix in compressed rows, and its product with dense ones."""

from __future__ import annotations

import warnings
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sparsebench.errors import SparsebenchError
from sparsebench.inference.native import Kernels, Layout, Product, load_kernels

__all__ = ["CompressedRows", "multiply_by_kernels", "product_with"]

MOST_ENTRIES = 2**31 - 1


class CompressedRows(NamedTuple):
    """A sparse matrix [rows, features] of float32: the entries that are not zero, row by row.

    Attributes:
        starts: int32 [rows + 1]; entries of row r are those from starts[r] up to starts[r + 1].
        columns: int32 [entries], ascending within a row.
        values: float32 [entries].
        features: Number of columns of the matrix.

    Example:
        >>> import torch
        >>> from sparsebench.inference.compressed_rows import CompressedRows
        >>> matrix = CompressedRows.of(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]]))
        >>> matrix.starts.tolist(), matrix.columns.tolist(), matrix.values.tolist()
        ([0, 1, 1, 3], [1, 0, 2], [2.0, 1.0, 3.0])
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    features: int

    @classmethod
    def of(cls, matrix: Tensor) -> CompressedRows:
        """Compress a dense matrix.

        Args:
            matrix: float32 on the CPU, [rows, features].

        Raises:
            SparsebenchError: More than 2^31 - 1 entries are not zero.
        """
        matrix = matrix.detach()
        rows, columns = matrix.nonzero(as_tuple=True)
        if len(rows) > MOST_ENTRIES:
            raise SparsebenchError(f"a matrix with {len(rows)} entries that are not zero: at most {MOST_ENTRIES} can be stored")
        starts = torch.zeros(len(matrix) + 1, dtype=torch.int32)
        starts[1:] = torch.bincount(rows, minlength=len(matrix)).cumsum(0)
        return cls(starts, columns.to(torch.int32), matrix[rows, columns].contiguous(), matrix.shape[1])

    def dense(self) -> Tensor:
        """The matrix [rows, features] with its zeros."""
        matrix = self.values.new_zeros(len(self.starts) - 1, self.features)
        rows = torch.repeat_interleave(torch.arange(len(matrix)), self.starts.diff())
        matrix[rows, self.columns.long()] = self.values
        return matrix

    @classmethod
    def held(cls, starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> CompressedRows:
        """From its parts.

        Args:
            starts: As the attribute.
            columns: As the attribute.
            values: As the attribute.
            shape: [rows, features].
        """
        return cls(starts, columns, values, shape[1])

    def product(self, bias: Tensor | None, rectify: bool) -> Product:
        """What the kernels are told about the matrix; x and y are still missing."""
        return product_with(self, len(self.starts) - 1, 1, bias, rectify)

    def multiply(self, x: Tensor, out: Tensor, bias: Tensor | None = None, rectify: bool = False) -> None:
        """Write W x[b, :, p] + bias, or its positive part, to out[b, :, p] for every image b and position p.

        Args:
            x: float32 on the CPU, [images, features, positions]. Where neither features nor positions are neighbours in
                memory it is copied first.
            out: float32 on the CPU, [images, rows, positions], contiguous or with features as neighbours in memory. It may be
                laid out otherwise than `x`.
            bias: float32 [rows], contiguous.
            rectify: Whether negative results become zero.

        Raises:
            ValueError: `out` is laid out in another way.
        """
        kernels = load_kernels()
        if kernels is None:
            self._multiply_by_torch(x, out, bias, rectify)
        else:
            multiply_by_kernels(kernels, self.product(bias, rectify), x, out)

    def _multiply_by_torch(self, x: Tensor, out: Tensor, bias: Tensor | None, rectify: bool) -> None:
        matrix = _sparse_tensor(self.starts, self.columns, self.values, (out.shape[1], self.features))
        # Features first: torch's product with the sparse matrix on the right is many times slower.
        product = matrix @ x.transpose(0, 1).reshape(self.features, -1)
        if bias is not None:
            product += bias[:, None]
        if rectify:
            product.relu_()
        out.copy_(product.view(out.shape[1], x.shape[0], x.shape[2]).transpose(0, 1))


class Compressed(Protocol):
    """What the kernels read of a matrix."""

    @property
    def starts(self) -> Tensor:
        """Where the entries of each row begin."""

    @property
    def columns(self) -> Tensor:
        """The column of each entry."""

    @property
    def values(self) -> Tensor:
        """The value, or values, of each entry."""

    @property
    def features(self) -> int:
        """Number of columns."""


def product_with(matrix: Compressed, rows: int, block: int, bias: Tensor | None, rectify: bool) -> Product:
    """What the kernels are told about a matrix with entries of `block` rows; x and y are still missing."""
    starts, columns, values = (tensor.data_ptr() for tensor in (matrix.starts, matrix.columns, matrix.values))
    address = None if bias is None else bias.data_ptr()
    return Product(rows, matrix.features, starts, columns, values, address, rectify, block=block)


def multiply_by_kernels(kernels: Kernels, product: Product, x: Tensor, out: Tensor) -> None:
    """Write a product with x [images, features, positions] to out [images, rows, positions], as `CompressedRows.multiply`."""
    x_layout, out_layout = _layout(x), _layout(out)
    if x_layout is None:
        x = x.contiguous()
        x_layout = _layout(x)
    if x_layout is None or out_layout is None:
        raise ValueError(f"out has strides {out.stride()}: expected features or positions to be neighbours in memory")
    product.x, product.y, product.x_layout, product.y_layout = x.data_ptr(), out.data_ptr(), x_layout, out_layout
    product.images, product.positions = x.shape[0], x.shape[2]
    kernels.multiply(product)


def _layout(tensor: Tensor) -> Layout | None:
    """Where the kernels find [images, features, positions]; None where neither features nor positions are neighbours."""
    image, feature, position = tensor.stride()
    if tensor.shape[2] == 1:
        # A single position is nobody's neighbour, whatever its stride says.
        position = 0
    if position == 1 or feature == 1:
        return Layout(feature, image, position)
    return Layout(1, image, position) if tensor.shape[1] == 1 else None


def _sparse_tensor(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        # Torch calls the layout a beta, once in a process.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)
