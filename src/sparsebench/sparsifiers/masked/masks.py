"""Masks: exact selection of the highest scores over any number of tensors, packing to bits, unpacking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sparsebench.sparsifiers.masked.bracket import bracket, kth_smallest, split
from sparsebench.sparsifiers.storage_order import flat, flat_like, storage_order

__all__ = ["count_kept", "order_preserving_bits", "pack", "top_scores", "unpack"]

# Below this many candidates k-th value selection is faster than another pass of counting.
FEW_CANDIDATES = 1 << 20
DIGIT_BITS = 16
# Above this many scores a sample says where the threshold lies, and only what is near it is looked at more closely.
MANY_SCORES = 1 << 13


def top_scores(
    scores: Sequence[torch.Tensor],
    keep: int,
    candidates: Sequence[torch.Tensor] | None = None,
    key: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Bool masks of the `keep` highest scores over all tensors together.

    The count is exact: of equal scores the first are kept, in order of tensors and then of row-major index, whatever the memory
    format. Nothing is ever sorted: a sample brackets the threshold, which is then selected among the few scores within the
    bracket. Where the sample misled, all scores are counted by their bit patterns, 16 bits at a time, until few are left.

    Args:
        scores: Floating-point tensors of any shapes, without NaN.
        keep: How many to keep, between 0 and the number of all scores, or of the candidates.
        candidates: Tensors of the shapes of the scores, nonzero where a score may be kept at all; None: everywhere.
        key: What makes of any part of `scores` the scores proper, entry by entry, as in `sorted`; they are then never all there.
            None: they are the scores.

    Returns:
        One mask for each tensor, of its shape.

    Example:
        >>> top_scores([torch.tensor([1.0, 3.0]), torch.tensor([3.0, 2.0])], keep=2)
        [tensor([False,  True]), tensor([ True, False])]
    """
    total = sum(score.numel() for score in scores) if candidates is None else sum(map(count_kept, candidates))
    if not 0 <= keep <= total:
        raise ValueError(f"keep={keep}: expected between 0 and the {total} scores")
    if keep == 0 or (keep == total and candidates is None):
        return [torch.full_like(score, keep > 0, dtype=torch.bool) for score in scores]
    scores = [_dense(score) for score in scores]
    may = [None] * len(scores) if candidates is None else [_laid_out_like(*pair) for pair in zip(candidates, scores, strict=True)]
    wide = torch.float64 if any(score.dtype == torch.float64 for score in scores) else torch.float32
    key = key or _itself
    chosen = _by_bracket(scores, may, keep, total, wide, key) if total > MANY_SCORES else None
    masks, threshold, ties, equal = chosen or _by_digits([key(score) for score in scores], may, keep, wide)
    for mask, score in zip(masks, scores, strict=True):
        if equal <= ties:
            break
        tied = mask & (key(score).to(wide) == threshold)
        count = count_kept(tied)
        if count > ties:
            row_major = tied.reshape(-1)
            mask &= ~(row_major & (row_major.cumsum(0) > ties)).view(tied.shape)
        ties -= min(count, ties)
        equal -= count
    return masks


class _Chosen(NamedTuple):
    """Masks of all scores that reach the threshold, how many equal to it are to be kept, and how many there are."""

    masks: list[torch.Tensor]
    threshold: float
    ties: int
    equal: int


def _itself(scores: torch.Tensor) -> torch.Tensor:
    """The key of what is a score already."""
    return scores


def _dense(score: torch.Tensor) -> torch.Tensor:
    """The tensor without gaps and repetitions in memory, so that all that is made like it has its strides."""
    score = score.detach()
    expected = 1
    for axis in reversed(storage_order(score)):
        if score.shape[axis] != 1 and score.stride(axis) != expected:
            return score.contiguous()
        expected *= score.shape[axis]
    return score


def _laid_out_like(candidates: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    if candidates.stride() == score.stride():
        return candidates
    return torch.empty_like(score, dtype=torch.bool).copy_(candidates)


def _by_bracket(
    scores: Sequence[torch.Tensor],
    candidates: Sequence[torch.Tensor | None],
    keep: int,
    total: int,
    wide: torch.dtype,
    key: Callable[[torch.Tensor], torch.Tensor],
) -> _Chosen | None:
    """By bounds from a sample; None where the sample misled, or the scores cannot be told apart by it."""
    rows = [flat(score) for score in scores]
    may = [None if own is None else flat(own) for own in candidates]
    low, high = bracket(rows, may, keep, total, key)
    if low == high:
        return None
    parts, most = [], max(total // 8, FEW_CANDIDATES)
    for row, own in zip(rows, may, strict=True):
        part = split(row, own, low, high, most, key)
        if part is None:
            return None
        parts.append(part)
        most -= part.near.numel()
    values = [key(row.index_select(0, part.near)).to(wide) for row, part in zip(rows, parts, strict=True)]
    rank = keep - sum(part.above for part in parts)
    if not 0 < rank <= sum(value.numel() for value in values):
        return None
    bound, ties, equal = _select(torch.cat(values), rank)
    threshold = float(bound)
    for part, value in zip(parts, values, strict=True):
        part.beyond.index_copy_(0, part.near, value >= threshold)
    return _Chosen([flat_like(part.beyond, score) for part, score in zip(parts, scores, strict=True)], threshold, ties, equal)


def _by_digits(
    scores: Sequence[torch.Tensor], candidates: Sequence[torch.Tensor | None], keep: int, wide: torch.dtype
) -> _Chosen:
    """By counting all scores."""
    exact = [score.to(wide) for score in scores]
    allowed = [None if own is None else own.bool() for own in candidates]
    parts = [flat(score) if own is None else score[own] for score, own in zip(exact, allowed, strict=True)]
    threshold, ties, equal = _kth_largest(parts, keep)
    masks = [score >= threshold for score in exact]
    return _Chosen(
        [mask if own is None else mask & own for mask, own in zip(masks, allowed, strict=True)], threshold, ties, equal
    )


def _kth_largest(scores: Sequence[torch.Tensor], k: int) -> tuple[float, int, int]:
    """The k-th largest score, how many scores equal to it are among the k largest, and how many there are."""
    candidates = [order_preserving_bits(score) for score in scores]
    dtype = candidates[0].dtype
    top = torch.iinfo(dtype).bits - DIGIT_BITS
    shift = top
    while shift >= 0 and sum(part.numel() for part in candidates) > FEW_CANDIDATES:
        # The arithmetic shift leaves the topmost digit signed; the offset makes all digits count from zero.
        offset = 1 << (DIGIT_BITS - 1) if shift == top else 0
        digits = [((part >> shift) + offset) & ((1 << DIGIT_BITS) - 1) for part in candidates]
        counts = torch.stack([digit.bincount(minlength=1 << DIGIT_BITS) for digit in digits]).sum(0)
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= k).nonzero()[-1])
        k -= int(at_least[digit] - counts[digit])
        candidates = [part[own == digit] for part, own in zip(candidates, digits, strict=True)]
        shift -= DIGIT_BITS
    if shift < 0:
        # All digits are settled: the candidates left are equal, however many they are.
        threshold = next(part[:1] for part in candidates if part.numel())
        return _score(threshold), k, sum(part.numel() for part in candidates)
    threshold, ties, equal = _select(torch.cat(candidates), k)
    return _score(threshold), ties, equal


def _select(values: torch.Tensor, k: int) -> tuple[torch.Tensor, int, int]:
    """The k-th largest value, how many equal to it are among the k largest, and how many there are."""
    threshold = kth_smallest(values, values.numel() - k + 1)
    return threshold, k - count_kept(values > threshold), count_kept(values == threshold)


def order_preserving_bits(score: torch.Tensor) -> torch.Tensor:
    """Signed integers in the order of the scores, float32 or float64."""
    integer, sign = (torch.int64, 63) if score.dtype == torch.float64 else (torch.int32, 31)
    # Adding zero turns -0.0 into +0.0: they are equal, their bits are not.
    bits = (score + 0.0).view(integer)
    return bits ^ ((bits >> sign) & torch.iinfo(integer).max)


def _score(bits: torch.Tensor) -> float:
    """The score of such an integer."""
    floating, sign = (torch.float64, 63) if bits.dtype == torch.int64 else (torch.float32, 31)
    return float((bits ^ ((bits >> sign) & torch.iinfo(bits.dtype).max)).view(floating))


def count_kept(mask: torch.Tensor) -> int:
    """The number of kept entries of a mask: a bool tensor, or zeros and ones in a weight's dtype.

    `count_nonzero` of float32 is forty times slower than a sum, that of bool eight times slower than NumPy's.

    Example:
        >>> count_kept(torch.tensor([True, False, True]))
        2
    """
    if mask.dtype != torch.bool:
        # Float32 counts exactly up to 2^24.
        return int(mask.sum(dtype=torch.float64 if mask.numel() > 1 << 24 else torch.float32))
    return int(np.count_nonzero(flat(mask).numpy())) if mask.device.type == "cpu" else int(mask.count_nonzero())


def pack(mask: torch.Tensor) -> torch.Tensor:
    """A bool tensor as bits, eight to a byte, in row-major order.

    Returns:
        uint8 tensor of `ceil(numel / 8)` bytes, on the CPU.
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().contiguous().numpy().reshape(-1)))


def unpack(bits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The bool tensor that `pack` was given.

    Example:
        >>> unpack(pack(torch.tensor([[True, False], [False, True]])), (2, 2))
        tensor([[ True, False],
                [False,  True]])
    """
    count = int(np.prod(shape, dtype=np.int64))
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)).reshape(tuple(shape))
