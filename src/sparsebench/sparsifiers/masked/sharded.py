"""Masks of weights whose rows are spread over processes (FSDP2): exact selection by counting, and the way between part and whole.

Under `torch.distributed.fsdp.fully_shard` a weight is a DTensor: each process holds consecutive rows of it, in the order of its
mesh. Masks are spread like their weights. Everything here but `local_rows` and `shards_of` talks to the other processes: all of
them must call it at the same point, and an error must be raised by all or by none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.masks import order_preserving_bits
from sparsebench.sparsifiers.selection import WeightMatrix

__all__ = ["Shards", "all_rows", "choose_sharded_masks", "local_rows", "sharded_top_scores", "shards_of", "spread"]

DIGIT_BITS = 16


@dataclass(frozen=True)
class Shards:
    """The processes that hold a weight's rows between them.

    Attributes:
        group: Those processes.
        position: Which part this process holds, counted from the first rows.
        count: The number of parts.
    """

    group: distributed.ProcessGroup
    position: int
    count: int

    def sum(self, numbers: Sequence[int], device: torch.device) -> list[int]:
        """Sums over all processes, number by number."""
        return self.reduced(torch.tensor(numbers, dtype=torch.int64, device=device)).tolist()

    def reduced(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, which holds the sum over all processes from here on."""
        distributed.all_reduce(tensor, group=self.group)
        return tensor


def shards_of(name: str, weight: DTensor) -> Shards:
    """Who holds the rows of a weight.

    Args:
        name: The weight's name, for the message.
        weight: As `fully_shard` leaves it. Copies on a second mesh dimension (hybrid sharding) are each complete: every copy's
            processes choose among themselves, and choose alike.

    Raises:
        SparsebenchError: It is divided otherwise than by rows, or its mesh is not in the order of ranks; in every process.
    """
    mesh, divided = weight.device_mesh, [axis for axis, placement in enumerate(weight.placements) if placement != Replicate()]
    if len(divided) != 1 or type(weight.placements[divided[0]]) is not Shard or weight.placements[divided[0]] != Shard(0):
        where = ", ".join(str(placement) for placement in weight.placements)
        raise SparsebenchError(
            f"{name!r} is divided as ({where}): expected rows over one mesh dimension, Shard(0), as fully_shard does by default"
        )
    axis = divided[0]
    if not bool((mesh.mesh.diff(dim=axis) > 0).all()):
        # torch itself then disagrees on who holds the first rows: a process's place in the mesh, or its rank in the group.
        raise SparsebenchError(f"{name!r} is spread over a mesh that lists processes out of order: expected ascending ranks")
    return Shards(mesh.get_group(axis), mesh.get_local_rank(axis), mesh.size(axis))


def local_rows(tensor: torch.Tensor, like: DTensor) -> torch.Tensor:
    """This process's rows of a tensor that has the weight's full shape; shares its memory where it is a DTensor already.

    Args:
        tensor: A DTensor divided like the weight, or the same full tensor in every process.
        like: The weight.
    """
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    # Without a source nothing is sent: every process takes its part of what it has.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()


def all_rows(part: torch.Tensor, like: DTensor) -> torch.Tensor:
    """The full tensor, in every process, from each process's rows.

    Args:
        part: Rows of this process; bool is sent as bytes.
        like: The weight.
    """
    sent = part.to(torch.uint8) if part.dtype == torch.bool else part
    gathered = spread(sent, like).full_tensor()
    return gathered.bool() if part.dtype == torch.bool else gathered


def spread(part: torch.Tensor, like: DTensor) -> DTensor:
    """A DTensor, divided like another, of each process's rows.

    Args:
        part: Rows of this process.
        like: The weight.
    """
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=_contiguous_stride(like.shape)
    )


def choose_sharded_masks(
    matrices: Sequence[WeightMatrix],
    scores: Sequence[torch.Tensor],
    candidates: Sequence[torch.Tensor] | None,
    sparsity: float,
) -> list[torch.Tensor]:
    """Masks of this process's rows of weights that share a budget: `choose_masks` of single weights, over processes.

    Args:
        matrices: The weights, DTensors.
        scores: Their scores: DTensors divided like them, or full tensors, the same in every process.
        candidates: This process's rows of the masks outside of which nothing may be kept; None where every weight competes.
        sparsity: Fraction of the weights to drop, in [0, 1].

    Raises:
        SparsebenchError: The weights are divided in different ways, or otherwise than by rows; in every process.
    """
    weights: list[Any] = [matrix.tensor for matrix in matrices]
    shards = [shards_of(matrix.name, weight) for matrix, weight in zip(matrices, weights, strict=True)]
    for matrix, other in zip(matrices, shards, strict=True):
        if other != shards[0]:
            raise SparsebenchError(f"{matrix.name!r} is spread over other processes than {matrices[0].name!r}: one mesh for all")
    own = [local_rows(score, weight) for score, weight in zip(scores, weights, strict=True)]
    total = sum(weight.numel() for weight in weights)
    keep = total - math.floor(sparsity * total + 0.5)
    if candidates is not None:
        device = own[0].device
        (left,) = shards[0].sum([sum(int(mask.count_nonzero()) for mask in candidates)], device)
        keep = min(keep, left)
        # Below any score, minus infinity too: what is gone must not win a tie.
        own = [
            score.clamp(min=torch.finfo(score.dtype).min).masked_fill(mask == 0, -math.inf)
            for score, mask in zip(own, candidates, strict=True)
        ]
    return sharded_top_scores(own, keep, shards[0])


def sharded_top_scores(scores: Sequence[torch.Tensor], keep: int, shards: Shards) -> list[torch.Tensor]:
    """Bool masks of this process's rows that together keep the `keep` highest scores over all tensors and processes.

    What `top_scores` gives for the full tensors: the count is exact, of equal scores the first are kept in order of tensors and
    then of row-major index of the full tensor. Counts 16 bits of the scores' bit patterns at a time; histograms of 512 KiB are
    summed over processes, twice (four times for float64), scores themselves are never sent.

    Args:
        scores: This process's rows of floating-point tensors of any shapes, without NaN; none where it has no rows.
        keep: How many to keep of the scores of all processes.
        shards: Who holds the rows; the same for all tensors.

    Returns:
        One mask for each tensor, of the shape of its part here.

    Raises:
        ValueError: `keep` is negative or above the number of scores, in every process.
    """
    device = scores[0].device
    (total,) = shards.sum([sum(score.numel() for score in scores)], device)
    if not 0 <= keep <= total:
        raise ValueError(f"keep={keep}: expected between 0 and the {total} scores")
    if keep in (0, total):
        return [torch.full_like(score, keep > 0, dtype=torch.bool) for score in scores]
    wide = torch.float64 if any(score.dtype == torch.float64 for score in scores) else torch.float32
    keys = [order_preserving_bits(score.to(wide)) for score in scores]
    threshold, ties = _kth_largest(keys, keep, shards)
    return [
        (key > threshold) | _first(key == threshold, allowed)
        for key, allowed in zip(keys, _allowances(keys, threshold, ties, shards), strict=True)
    ]


def _kth_largest(keys: Sequence[torch.Tensor], k: int, shards: Shards) -> tuple[int, int]:
    """The k-th largest key of all processes, and how many keys equal to it are among the k largest."""
    bits = torch.iinfo(keys[0].dtype).bits
    candidates, threshold = [key.reshape(-1) for key in keys], 0
    for shift in range(bits - DIGIT_BITS, -1, -DIGIT_BITS):
        # The arithmetic shift leaves the topmost digit signed; the offset makes all digits count from zero.
        offset = 1 << (DIGIT_BITS - 1) if shift == bits - DIGIT_BITS else 0
        counts = torch.zeros(1 << DIGIT_BITS, dtype=torch.int64, device=keys[0].device)
        for part in candidates:
            counts += _digits(part, shift, offset).bincount(minlength=1 << DIGIT_BITS)
        at_least = shards.reduced(counts).flip(0).cumsum(0).flip(0)
        digit = int((at_least >= k).nonzero()[-1])
        k -= int(at_least[digit] - counts[digit])
        threshold += (digit - offset) << shift
        if shift:
            candidates = [part[_digits(part, shift, offset) == digit] for part in candidates]
    return threshold, k


def _digits(keys: torch.Tensor, shift: int, offset: int) -> torch.Tensor:
    return ((keys >> shift) + offset) & ((1 << DIGIT_BITS) - 1)


def _allowances(keys: Sequence[torch.Tensor], threshold: int, ties: int, shards: Shards) -> list[int]:
    """How many of the keys equal to the threshold this process keeps of each tensor."""
    counts = torch.zeros(len(keys), shards.count, dtype=torch.int64, device=keys[0].device)
    for row, key in enumerate(keys):
        counts[row, shards.position] = (key == threshold).count_nonzero()
    # In the order in which equal scores are kept: tensor by tensor, and each from its first rows on.
    ordered = shards.reduced(counts).reshape(-1)
    before = (ordered.cumsum(0) - ordered).reshape(counts.shape)
    allowed: list[int] = (ties - before).clamp(min=0).minimum(counts)[:, shards.position].tolist()
    return allowed


def _first(tied: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` of the true elements, in row-major order."""
    row_major = tied.reshape(-1)
    return (row_major & (row_major.cumsum(0) <= count)).view(tied.shape)


def _contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    strides, stride = [], 1
    for length in reversed(shape):
        strides.append(stride)
        stride *= length
    return tuple(reversed(strides))
