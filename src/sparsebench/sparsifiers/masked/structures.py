"""Structures: the units that are kept or dropped together.

A unit's score is the mean of its weights' scores. Units other than single weights lie in the matrix [outputs, inputs] of a layer
(`layout.to_matrix`); they are counted and, where equal, told apart in row-major order of that matrix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.allocation import Allocation, ErdosRenyiKernel, Global, Group
from sparsebench.sparsifiers.masked.layout import from_matrix, to_matrix
from sparsebench.sparsifiers.masked.masks import count_kept, top_scores
from sparsebench.sparsifiers.selection import WeightMatrix, shapes_of

__all__ = ["Block", "Channel", "Element", "NOfM", "Structure", "all_but", "checked_groups", "structure_by_name"]

# How far a stated sparsity may be from that of an n:m pattern, which it then stands for: 0.667 for 1:3.
NEAR = 1e-3


class Structure(Protocol):
    """Between weights and the units that compete. Dataclass fields are part of the method's description."""

    def check_allocation(self, allocation: Allocation) -> None:
        """Refuse an allocation that this structure cannot have with any network.

        Raises:
            SparsebenchError: The message says what would be right.
        """

    def check(self, matrix: WeightMatrix, group: Group) -> None:
        """Refuse a weight, or its share of the sparsity, that this structure cannot have.

        Raises:
            SparsebenchError: The message names the weight and what would be right.
        """

    def reduce(self, scores: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """From scores of weights to scores of units, floating-point."""

    def expand(self, kept: torch.Tensor, shape: Sequence[int], layer: nn.Module) -> torch.Tensor:
        """From a bool tensor over units to a bool mask over weights."""

    def choose(
        self, scores: Sequence[torch.Tensor], candidates: Sequence[torch.Tensor] | None, sparsity: float
    ) -> list[torch.Tensor]:
        """Bool tensors over units: those to keep at a sparsity, of the scores of tensors that share a budget.

        `candidates` is nonzero where a unit may be kept at all; None says that all may.
        """


@dataclass(frozen=True)
class Element:
    """Every weight for itself: unstructured sparsity."""

    def check_allocation(self, allocation: Allocation) -> None:
        """Any allocation will do."""

    def check(self, matrix: WeightMatrix, group: Group) -> None:
        """Any weight will do."""

    def reduce(self, scores: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """The scores themselves."""
        return scores

    def expand(self, kept: torch.Tensor, shape: Sequence[int], layer: nn.Module) -> torch.Tensor:
        """The mask itself."""
        return kept

    def choose(
        self, scores: Sequence[torch.Tensor], candidates: Sequence[torch.Tensor] | None, sparsity: float
    ) -> list[torch.Tensor]:
        """All but `floor(sparsity * weights + 0.5)` weights."""
        return all_but(scores, candidates, sparsity)


@dataclass(frozen=True)
class Block:
    """Rectangles of the matrix [outputs, inputs], as in WaveRNN (Kalchbrenner et al. 2018, arXiv 1802.08435, 16x1 and 4x4).

    The blocks begin at the first row and column. Where they do not divide the matrix, the partial blocks at its last rows and
    columns are units like the others, scored by the mean over the weights that they have.

    Args:
        rows: Outputs that a block spans, at least 1.
        columns: Inputs that it spans, at least 1.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SparsebenchError(f"{name}={value!r}: expected the size of a block, an integer of at least 1")

    def check_allocation(self, allocation: Allocation) -> None:
        """Any allocation will do."""

    def check(self, matrix: WeightMatrix, group: Group) -> None:
        """Refuse a matrix smaller than one block: it would be kept or dropped as a whole."""
        rows, columns = _matrix_shape(matrix)
        if self.rows > rows or self.columns > columns:
            raise SparsebenchError(
                f"structure='block:{self.rows}x{self.columns}': {matrix.name!r} is smaller, a matrix of {rows}x{columns} "
                "(outputs x inputs): choose smaller blocks, or leave the layer out with layers="
            )

    def reduce(self, scores: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """Mean scores of the blocks, float64, [ceil(outputs / rows), ceil(inputs / columns)]."""
        matrix = to_matrix(scores, layer)
        return self._sums(matrix.double()) / self._sums(torch.ones_like(matrix, dtype=torch.float64))

    def expand(self, kept: torch.Tensor, shape: Sequence[int], layer: nn.Module) -> torch.Tensor:
        """Each block's weights share its fate."""
        rows = math.prod(shape) // self._columns(shape, layer)
        wide = kept.repeat_interleave(self.rows, 0)[:rows].repeat_interleave(self.columns, 1)
        return from_matrix(wide[:, : self._columns(shape, layer)].contiguous(), shape, layer)

    def choose(
        self, scores: Sequence[torch.Tensor], candidates: Sequence[torch.Tensor] | None, sparsity: float
    ) -> list[torch.Tensor]:
        """All but `floor(sparsity * blocks + 0.5)` blocks."""
        return all_but(scores, candidates, sparsity)

    def _sums(self, matrix: torch.Tensor) -> torch.Tensor:
        rows, columns = matrix.shape
        padded = nn.functional.pad(matrix, (0, -columns % self.columns, 0, -rows % self.rows))
        return padded.reshape(-(-rows // self.rows), self.rows, -(-columns // self.columns), self.columns).sum((1, 3))

    @staticmethod
    def _columns(shape: Sequence[int], layer: nn.Module) -> int:
        return to_matrix(torch.empty(tuple(shape), device="meta"), layer).shape[1]


@dataclass(frozen=True)
class Channel:
    """Whole output channels: rows of the matrix [outputs, inputs]. They become zero, the layer keeps its shape."""

    def check_allocation(self, allocation: Allocation) -> None:
        """Any allocation will do."""

    def check(self, matrix: WeightMatrix, group: Group) -> None:
        """Any weight will do."""

    def reduce(self, scores: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """Mean scores of the outputs, float64, [outputs]."""
        return to_matrix(scores, layer).mean(1, dtype=torch.float64)

    def expand(self, kept: torch.Tensor, shape: Sequence[int], layer: nn.Module) -> torch.Tensor:
        """All weights of an output share its fate."""
        wide = kept.unsqueeze(1).expand(-1, math.prod(shape) // max(kept.numel(), 1))
        return from_matrix(wide.contiguous(), shape, layer)

    def choose(
        self, scores: Sequence[torch.Tensor], candidates: Sequence[torch.Tensor] | None, sparsity: float
    ) -> list[torch.Tensor]:
        """All but `floor(sparsity * outputs + 0.5)` outputs."""
        return all_but(scores, candidates, sparsity)


@dataclass(frozen=True)
class NOfM:
    """At most n of m consecutive inputs of every output, 2:4 above all (Mishra et al. 2021, arXiv 2104.08378).

    Weights compete only within their m. The pattern fixes the sparsity: every layer that takes part ends at `1 - n / m`, so no
    ranking over layers is possible. While a schedule rises, `floor(sparsity * m + 0.5)` of every m are dropped: 4:4, 3:4, 2:4
    on the way to 2:4 (decaying n: Kao et al. 2022, arXiv 2209.07617). Where m does not divide the inputs of an output, its
    last r inputs lose `floor(sparsity * r + 0.5)`.

    Args:
        n: Weights that are kept, at least 1.
        m: Of how many, more than n.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if (
            not all(isinstance(value, int) and not isinstance(value, bool) for value in (self.n, self.m))
            or not 0 < self.n < self.m
        ):
            raise SparsebenchError(f"structure='{self.n}:{self.m}': expected n of m with 0 < n < m, such as '2:4'")

    def check_allocation(self, allocation: Allocation) -> None:
        """Refuse another sparsity than the pattern's, or none, and allocations that give each layer its own."""
        if isinstance(allocation, (Global, ErdosRenyiKernel)):
            raise SparsebenchError(
                f"structure='{self.n}:{self.m}' fixes every layer's sparsity at {self._sparsity:.6g}: expected "
                "allocation='uniform', or a map from layer pattern to that sparsity or 0"
            )
        self._check_sparsity("sparsity", allocation.sparsity)

    def check(self, matrix: WeightMatrix, group: Group) -> None:
        """Refuse another sparsity than the pattern's, or none; one budget for several layers; fewer inputs than m."""
        if len(group.names) > 1:
            raise SparsebenchError(f"structure='{self.n}:{self.m}': layers cannot share a budget: {', '.join(group.names)}")
        self._check_sparsity(f"the sparsity of {matrix.name!r}", group.sparsity)
        columns = _matrix_shape(matrix)[1]
        if columns < self.m:
            raise SparsebenchError(
                f"structure='{self.n}:{self.m}': {matrix.name!r} has only {columns} inputs for each output: "
                "leave the layer out with layers="
            )

    @property
    def _sparsity(self) -> float:
        return 1.0 - self.n / self.m

    def _check_sparsity(self, field: str, value: float) -> None:
        if not any(abs(value - possible) <= NEAR for possible in (self._sparsity, 0.0)):
            raise SparsebenchError(
                f"{field}={value!r}: structure='{self.n}:{self.m}' keeps {self.n} of {self.m} weights: expected "
                f"{self._sparsity:.6g}, or 0 for layers that stay dense"
            )

    def reduce(self, scores: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """The scores, [outputs, inputs]."""
        return to_matrix(scores, layer)

    def expand(self, kept: torch.Tensor, shape: Sequence[int], layer: nn.Module) -> torch.Tensor:
        """The mask, in the weight's shape."""
        return from_matrix(kept, shape, layer)

    def choose(
        self, scores: Sequence[torch.Tensor], candidates: Sequence[torch.Tensor] | None, sparsity: float
    ) -> list[torch.Tensor]:
        """All but `floor(sparsity * m + 0.5)` of every m."""
        if candidates is None:
            return [self._choose(score, sparsity) for score in scores]
        # Below any score, minus infinity too: what is no candidate must not win a tie.
        only = [
            score.clamp(min=torch.finfo(score.dtype).min).masked_fill(may == 0, -math.inf)
            for score, may in zip(scores, candidates, strict=True)
        ]
        return [self._choose(score, sparsity) & (may != 0) for score, may in zip(only, candidates, strict=True)]

    def _choose(self, scores: torch.Tensor, sparsity: float) -> torch.Tensor:
        sparsity = self._sparsity if abs(sparsity - self._sparsity) <= NEAR else sparsity
        columns = scores.shape[1]
        sizes = torch.full((-(-columns // self.m), 1), self.m, device=scores.device)
        if columns % self.m:
            sizes[-1] = columns % self.m
        keep = sizes - (sparsity * sizes.double() + 0.5).floor().long()
        padded = nn.functional.pad(scores, (0, -columns % self.m), value=-math.inf).reshape(scores.shape[0], -1, self.m)
        # A stable order twice gives each weight its rank among its m; of equal ones the first ranks higher.
        ranks: torch.Tensor = padded.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return (ranks < keep).flatten(1)[:, :columns].contiguous()


def structure_by_name(structure: str | int) -> Structure:
    """The structure that a method's argument means.

    Args:
        structure: "element", "channel", "block:RxC" (rows x columns: outputs x inputs) or "N:M".

    Raises:
        SparsebenchError: No such structure, or an impossible size.

    Example:
        >>> structure_by_name("block:4x1"), structure_by_name("2:4")
        (Block(rows=4, columns=1), NOfM(n=2, m=4))
    """
    text = structure if isinstance(structure, str) else ""
    if text == "element":
        return Element()
    if text == "channel":
        return Channel()
    if match := re.fullmatch(r"block:([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text):
        return Block(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text):
        return NOfM(int(match[1]), int(match[2]))
    # YAML reads an unquoted 2:4 as two minutes and four seconds.
    quotes = ' (YAML needs quotes around "2:4")' if isinstance(structure, int) else ""
    raise SparsebenchError(
        f"structure={structure!r}: expected 'element', 'channel', 'block:4x4' (outputs x inputs, any size) or '2:4' "
        f"(any n:m){quotes}"
    )


def checked_groups(allocation: Allocation, structure: Structure, matrices: Sequence[WeightMatrix]) -> list[Group]:
    """The groups of an allocation over matrices that can have the structure.

    Raises:
        SparsebenchError: One of them cannot.
    """
    groups = allocation.groups(shapes_of(matrices))
    by_name = {matrix.name: matrix for matrix in matrices}
    for group in groups:
        for name in group.names:
            structure.check(by_name[name], group)
    return groups


def all_but(
    scores: Sequence[torch.Tensor],
    candidates: Sequence[torch.Tensor] | None,
    sparsity: float,
    key: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Bool masks of all but the `floor(sparsity * scores + 0.5)` lowest scores; arguments otherwise as of `top_scores`."""
    units = sum(score.numel() for score in scores)
    keep = units - math.floor(sparsity * units + 0.5)
    if candidates is not None:
        keep = min(keep, sum(map(count_kept, candidates)))
    return top_scores(scores, keep, candidates, key)


def _matrix_shape(matrix: WeightMatrix) -> tuple[int, int]:
    rows, columns = to_matrix(torch.empty(matrix.tensor.shape, device="meta"), matrix.layer).shape
    return rows, columns
