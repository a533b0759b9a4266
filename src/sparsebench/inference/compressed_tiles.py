"""A sparse matrix in tiles of compressed rows, and its product with dense ones: for many columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparsebench.inference.compressed_rows import CompressedRows, multiply_by_kernels, product_with
from sparsebench.inference.native import Product, load_kernels

__all__ = ["TILE", "CompressedTiles"]

# Rows and columns, as in kernels.c.
TILE = (256, 128)


class CompressedTiles(NamedTuple):
    """A sparse matrix [rows, features] of float32: the entries that are not zero, in tiles of 256 rows and 128 columns.

    Tiles follow each other along the columns, then along the rows; within one, entries do row by row. What the entries of a tile
    read of 64 columns of the other matrix fits a first-level cache, where compressed rows read all of it from the second level
    for each row: faster for many columns, as long as a row has several entries in a tile. Rows of a tile with equally many
    entries follow each other: where a row ends is then foreseen, which for so few entries is half of the time.

    Attributes:
        starts: int32 [512 * tiles + 1]. Entries of the i-th row of tile t are from starts[256 * t + i] up to the next element;
            starts[256 * tiles + 1 + 256 * t + i] says which row of the tile that is. The last tiles may have rows that the
            matrix does not have; they are empty, and last.
        columns: int32 [entries], those of the matrix.
        values: float32 [entries].
        rows: Number of rows of the matrix.
        features: Number of columns of the matrix.

    Example:
        >>> import torch
        >>> from sparsebench.inference.compressed_tiles import CompressedTiles
        >>> matrix = torch.zeros(2, 200)
        >>> matrix[0, 150], matrix[1, 3] = 5.0, 7.0
        >>> tiles = CompressedTiles.of(matrix)
        >>> tiles.columns.tolist(), tiles.starts[[0, 1, 2, 256, 257, 258]].tolist(), tiles.starts[[513, 514, 769, 770]].tolist()
        ([3, 150], [0, 0, 1, 1, 1, 2], [0, 1, 1, 0])
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    rows: int
    features: int

    @classmethod
    def of(cls, matrix: Tensor) -> CompressedTiles:
        """Compress a dense matrix.

        Args:
            matrix: float32 on the CPU, [rows, features].

        Raises:
            SparsebenchError: More than 2^31 - 1 entries are not zero.
        """
        kept = CompressedRows.of(matrix)
        rows, features = matrix.shape
        down, across = -(-rows // TILE[0]), -(-features // TILE[1])
        row = torch.repeat_interleave(torch.arange(rows), kept.starts.diff())
        tile = row // TILE[0] * across + kept.columns // TILE[1]
        counts = torch.bincount(tile * TILE[0] + row % TILE[0], minlength=down * across * TILE[0]).view(down, across, TILE[0])
        is_missing = torch.arange(down * TILE[0]).view(down, 1, TILE[0]) >= rows
        order = (counts + is_missing * (TILE[1] + 1)).argsort(dim=2, stable=True)
        place = order.argsort(dim=2).flatten(0, 1)  # of each row of a tile
        entries = (tile * TILE[0] + place[tile, row % TILE[0]]).argsort(stable=True)
        ends = counts.gather(2, order).flatten().cumsum(0)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends, order.flatten()]).to(torch.int32)
        return cls(starts, kept.columns[entries], kept.values[entries], rows, features)

    @classmethod
    def held(cls, starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> CompressedTiles:
        """From its parts.

        Args:
            starts: As the attribute.
            columns: As the attribute.
            values: As the attribute.
            shape: [rows, features].
        """
        return cls(starts, columns, values, *shape)

    def dense(self) -> Tensor:
        """The matrix [rows, features] with its zeros."""
        matrix = torch.zeros(self.rows, self.features)
        across, places = -(-self.features // TILE[1]), len(self.starts) // 2
        counts, order = self.starts[: places + 1].diff(), self.starts[places + 1 :]
        place = torch.repeat_interleave(torch.arange(places), counts)
        row = place // (TILE[0] * max(across, 1)) * TILE[0] + order[place]
        matrix[row, self.columns.long()] = self.values
        return matrix

    def product(self, bias: Tensor | None, rectify: bool) -> Product:
        """What the kernels are told about the matrix; x and y are still missing."""
        product = product_with(self, self.rows, 1, bias, rectify)
        product.is_tiled = 1
        return product

    def multiply(self, x: Tensor, out: Tensor, bias: Tensor | None = None, rectify: bool = False) -> None:
        """Write W x[b, :, p] + bias, or its positive part, to out[b, :, p]: as `CompressedRows.multiply`."""
        kernels = load_kernels()
        if kernels is not None:
            multiply_by_kernels(kernels, self.product(bias, rectify), x, out)
            return
        # Tiles are chosen where there are kernels: this is for a network that was compiled elsewhere.
        CompressedRows.of(self.dense()).multiply(x, out, bias, rectify)
