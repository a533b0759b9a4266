"""A sparse matrix in compressed rows of blocks, 16 outputs by one input, and its product with dense ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparsebench.inference.compressed_rows import CompressedRows, multiply_by_kernels, product_with
from sparsebench.inference.native import Product, load_kernels

__all__ = ["BLOCK", "CompressedBlocks"]

# As ROW_BLOCK in kernels.c.
BLOCK = 16


class CompressedBlocks(NamedTuple):
    """A sparse matrix [rows, features] of float32: the blocks of 16 rows and one column that are not all zero.

    Blocks begin at rows 0, 16, 32 ... as those of the structure "block:16x1"; the last may reach beyond the last row.

    Attributes:
        starts: int32 [rows of blocks + 1]; those in row r of blocks are from starts[r] up to starts[r + 1].
        columns: int32 [blocks], ascending within a row of blocks.
        values: float32 [blocks, 16], zero beyond the last row.
        rows: Number of rows of the matrix.
        features: Number of columns of the matrix.

    Example:
        >>> import torch
        >>> from sparsebench.inference.compressed_blocks import CompressedBlocks
        >>> matrix = torch.zeros(20, 3)
        >>> matrix[:16, 1], matrix[16:, 2] = 5.0, 7.0
        >>> blocks = CompressedBlocks.of(matrix)
        >>> blocks.starts.tolist(), blocks.columns.tolist(), blocks.fill
        ([0, 1, 2], [1, 2], 1.0)
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    rows: int
    features: int

    @classmethod
    def of(cls, matrix: Tensor) -> CompressedBlocks:
        """Compress a dense matrix.

        Args:
            matrix: float32 on the CPU, [rows, features].

        Raises:
            SparsebenchError: More than 2^31 - 1 blocks are not zero.
        """
        rows, features = matrix.shape
        padded = matrix.new_zeros(-(-rows // BLOCK), BLOCK, features)
        padded.flatten(0, 1)[:rows] = matrix.detach()
        by_column = padded.transpose(1, 2)
        kept = CompressedRows.of(by_column.ne(0).any(2).float())
        return cls(kept.starts, kept.columns, by_column[by_column.ne(0).any(2)], rows, features)

    @classmethod
    def held(cls, starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> CompressedBlocks:
        """From its parts.

        Args:
            starts: As the attribute.
            columns: As the attribute.
            values: As the attribute.
            shape: [rows, features].
        """
        return cls(starts, columns, values, *shape)

    @property
    def fill(self) -> float:
        """Fraction of the matrix within the blocks that is not zero; 1 for a matrix of zeros."""
        last = len(self.starts) - 2
        in_last = int(self.starts[-1] - self.starts[last]) if last >= 0 else 0
        within = BLOCK * len(self.columns) - in_last * (BLOCK * (last + 1) - self.rows)
        return int(self.values.count_nonzero()) / within if within else 1.0

    def dense(self) -> Tensor:
        """The matrix [rows, features] with its zeros."""
        matrix = self.values.new_zeros(len(self.starts) - 1, self.features, BLOCK)
        rows = torch.repeat_interleave(torch.arange(len(matrix)), self.starts.diff())
        matrix[rows, self.columns.long()] = self.values
        return matrix.transpose(1, 2).flatten(0, 1)[: self.rows]

    def product(self, bias: Tensor | None, rectify: bool) -> Product:
        """What the kernels are told about the matrix; x and y are still missing."""
        return product_with(self, self.rows, BLOCK, bias, rectify)

    def multiply(self, x: Tensor, out: Tensor, bias: Tensor | None = None, rectify: bool = False) -> None:
        """Write W x[b, :, p] + bias, or its positive part, to out[b, :, p]: as `CompressedRows.multiply`."""
        kernels = load_kernels()
        if kernels is not None:
            multiply_by_kernels(kernels, self.product(bias, rectify), x, out)
            return
        # Blocks are chosen where there are kernels: this is for a network that was compiled elsewhere.
        product = torch.matmul(self.dense(), x)
        if bias is not None:
            product += bias[:, None]
        out.copy_(product.relu_() if rectify else product)
