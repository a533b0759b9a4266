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

    Tiles follow each other along the columns, then along the rows. What the entries of a tile read of 64 columns of the other
    matrix fits a first-level cache, where compressed rows read all of it from the second level for each row: faster for many
    columns, as long as a row has several entries in a tile. Rows of a tile come in pairs of about as many entries, by how many
    these are: where they end is then foreseen, and two sums go on at a time.

    Attributes:
        starts: int32 [384 * tiles + 1]. The rows of pair i have an entry each for every step from starts[i] up to starts[i + 1],
            the shorter one zeros at its end; pair i is in tile i // 128. starts[128 * tiles + 1 + r] says which row of its tile
            the first row of pair r / 2 is, or the second for an odd r. The last tiles may have rows that the matrix does not
            have; they are empty, and last.
        columns: uint8 [steps, 2], in the tile.
        values: float32 [steps, 2].
        rows: Number of rows of the matrix.
        features: Number of columns of the matrix.

    Example:
        >>> import torch
        >>> from sparsebench.inference.compressed_tiles import CompressedTiles
        >>> matrix = torch.zeros(2, 200)
        >>> matrix[0, 150], matrix[1, 3], matrix[1, 5] = 5.0, 7.0, 8.0
        >>> tiles = CompressedTiles.of(matrix)
        >>> tiles.values.tolist(), tiles.columns.tolist()
        ([[0.0, 7.0], [0.0, 8.0], [0.0, 5.0]], [[3, 3], [5, 5], [22, 22]])
        >>> tiles.starts[[0, 1, 2, 128, 129, 256]].tolist(), tiles.starts[[257, 258, 513, 514]].tolist()
        ([0, 2, 2, 2, 3, 3], [0, 1, 1, 0])
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
        place = tile * TILE[0] + order.argsort(dim=2).flatten(0, 1)[tile, row % TILE[0]]  # of the row of each entry
        counts = counts.gather(2, order).flatten()
        steps = counts.view(-1, 2).amax(1)
        begins = torch.cat([torch.zeros(1, dtype=torch.int64), steps.cumsum(0)])
        # Entries of a row of a tile follow each other in compressed rows: which one of them it is.
        by_place = place.argsort(stable=True)
        number = torch.arange(len(place)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        at = (begins[place[by_place] // 2] + number, place[by_place] % 2)
        values, columns = kept.values.new_zeros(int(begins[-1]), 2), torch.full((int(begins[-1]), 2), -1, dtype=torch.int16)
        values[at] = kept.values[by_place]
        columns[at] = (kept.columns[by_place] % TILE[1]).to(torch.int16)
        # What is multiplied by a zero is what the other row reads.
        columns = torch.where(columns < 0, columns.flip(1), columns).to(torch.uint8)
        return cls(torch.cat([begins, order.flatten()]).to(torch.int32), columns, values, rows, features)

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
        across, pairs = -(-self.features // TILE[1]), len(self.starts) // 3
        steps, order = self.starts[: pairs + 1].diff(), self.starts[pairs + 1 :].view(-1, 2)
        pair = torch.repeat_interleave(torch.arange(pairs), steps)
        tile = pair.unsqueeze(1) // (TILE[0] // 2)
        row = tile // max(across, 1) * TILE[0] + order[pair]
        matrix = self.values.new_zeros(-(-self.rows // TILE[0]) * TILE[0], self.features)
        matrix.index_put_((row, tile % max(across, 1) * TILE[1] + self.columns), self.values, accumulate=True)
        return matrix[: self.rows]

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
