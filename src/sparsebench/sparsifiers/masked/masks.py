"""Masks: exact selection of the highest scores over any number of tensors, packing to bits, unpacking."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from sparsebench.sparsifiers.storage_order import flat

__all__ = ["count_kept", "order_preserving_bits", "pack", "top_scores", "unpack"]

# Below this many candidates k-th value selection is faster than another pass of counting.
FEW_CANDIDATES = 1 << 14
DIGIT_BITS = 16
# Above this many scores a sample says where the threshold lies, and only what is near it is looked at more closely.
MANY_SCORES = 1 << 18
SAMPLE = 1 << 16


def top_scores(scores: Sequence[torch.Tensor], keep: int, candidates: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """Bool masks of the `keep` highest scores over all tensors together.

    The count is exact: of equal scores the first are kept, in order of tensors and then of row-major index, whatever the memory
    format. Nothing is ever sorted: a sample brackets the threshold, and the few scores within the bracket are counted by their
    bit patterns, 16 bits at a time. Where the sample misled, all scores are.

    Args:
        scores: Floating-point tensors of any shapes, without NaN.
        keep: How many to keep, between 0 and the number of all scores, or of the candidates.
        candidates: Tensors of the shapes of the scores, nonzero where a score may be kept at all; None: everywhere.

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
    wide = torch.float64 if any(score.dtype == torch.float64 for score in scores) else torch.float32
    exact = [score.to(wide) for score in scores]
    allowed = (
        [None] * len(exact) if candidates is None else [_laid_out_like(*pair) for pair in zip(candidates, exact, strict=True)]
    )
    threshold, ties, equal = _threshold(exact, allowed, keep, total)
    masks = []
    for score, may in zip(exact, allowed, strict=True):
        mask = score >= threshold
        if may is not None:
            mask &= may.bool()
        if equal > ties:
            tied = mask & (score == threshold)
            count = count_kept(tied)
            if count > ties:
                row_major = tied.reshape(-1)
                mask &= ~(row_major & (row_major.cumsum(0) > ties)).view(tied.shape)
            ties -= min(count, ties)
            equal -= count
        masks.append(mask)
    return masks


def _laid_out_like(candidates: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    if candidates.stride() == score.stride():
        return candidates
    return torch.empty_like(score, dtype=torch.bool).copy_(candidates)


def _threshold(
    scores: Sequence[torch.Tensor], candidates: Sequence[torch.Tensor | None], keep: int, total: int
) -> tuple[float, int, int]:
    """The lowest score that is kept, how many equal to it are kept, and how many there are."""
    rows = [flat(score) for score in scores]
    may = [None if own is None else flat(own) for own in candidates]
    near = _near_threshold(rows, may, keep, total) if total > MANY_SCORES else None
    parts, k = near or ([part if own is None else part[own != 0] for part, own in zip(rows, may, strict=True)], keep)
    return _kth_largest(parts, k)


def _near_threshold(
    scores: Sequence[torch.Tensor], candidates: Sequence[torch.Tensor | None], keep: int, total: int
) -> tuple[list[torch.Tensor], int] | None:
    """The scores between two bounds that enclose the threshold, and its rank among them; None where the sample misled."""
    step = max(sum(score.numel() for score in scores) // SAMPLE, 4)
    sample = torch.cat(
        [score[::step] if may is None else score[::step][may[::step] != 0] for score, may in zip(scores, candidates, strict=True)]
    )
    size, share = sample.numel(), keep / total
    # Five standard deviations of the rank that the threshold has in a random sample.
    margin = 5.0 * math.sqrt(size * share * (1.0 - share)) + 8.0
    ranks = [math.floor(size * (1.0 - share) + sign * margin) for sign in (-1, 1)]
    low = float(sample.kthvalue(ranks[0]).values) if ranks[0] >= 1 else -math.inf
    high = float(sample.kthvalue(ranks[1]).values) if ranks[1] <= size else math.inf
    if low == high:
        return None
    above, near = 0, []
    for score, may in zip(scores, candidates, strict=True):
        within, beyond = score >= low, score > high
        if may is not None:
            within &= may.bool()
            beyond &= within
        above += count_kept(beyond)
        within ^= beyond
        near.append(score[_positions(within)])
    return (near, keep - above) if 0 < keep - above <= sum(part.numel() for part in near) else None


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
    rest = torch.cat(candidates)
    threshold = rest.kthvalue(rest.numel() - k + 1).values
    return _score(threshold), k - int((rest > threshold).sum()), int((rest == threshold).sum())


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


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Indices of the true entries of a one-dimensional bool tensor; NumPy finds few of them four times faster than torch."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


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
