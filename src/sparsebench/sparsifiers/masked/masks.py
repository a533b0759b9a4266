"""Masks: exact selection of the highest scores over any number of tensors, packing to bits, unpacking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["pack", "top_scores", "unpack"]

# Below this many candidates k-th value selection is faster than another pass of counting.
FEW_CANDIDATES = 1 << 14
DIGIT_BITS = 16


def top_scores(scores: Sequence[torch.Tensor], keep: int) -> list[torch.Tensor]:
    """Bool masks of the `keep` highest scores over all tensors together.

    The count is exact: of equal scores the first are kept, in order of tensors and then of row-major index, whatever the memory
    format. Works on the scores' bit patterns, by counting 16 bits at a time, so that nothing is ever sorted.

    Args:
        scores: Floating-point tensors of any shapes, without NaN.
        keep: How many to keep, between 0 and the number of all scores.

    Returns:
        One mask for each tensor, of its shape.

    Example:
        >>> top_scores([torch.tensor([1.0, 3.0]), torch.tensor([3.0, 2.0])], keep=2)
        [tensor([False,  True]), tensor([ True, False])]
    """
    total = sum(score.numel() for score in scores)
    if not 0 <= keep <= total:
        raise ValueError(f"keep={keep}: expected between 0 and the {total} scores")
    if keep in (0, total):
        return [torch.full_like(score, keep > 0, dtype=torch.bool) for score in scores]
    wide = any(score.dtype == torch.float64 for score in scores)
    keys = [_order_preserving_bits(score, wide) for score in scores]
    threshold, ties = _kth_largest(keys, keep)
    masks = []
    for key in keys:
        mask = key > threshold
        if ties > 0:
            tied = key == threshold
            count = int(tied.sum())
            if count > ties:
                row_major = tied.reshape(-1)
                tied = (row_major & (row_major.cumsum(0) <= ties)).view(tied.shape)
            mask |= tied
            ties -= min(count, ties)
        masks.append(mask)
    return masks


def _order_preserving_bits(score: torch.Tensor, wide: bool) -> torch.Tensor:
    """Signed integers in the order of the scores."""
    floating, integer, sign = (torch.float64, torch.int64, 63) if wide else (torch.float32, torch.int32, 31)
    # Adding zero turns -0.0 into +0.0: they are equal, their bits are not.
    bits = (score.to(floating) + 0.0).view(integer)
    return bits ^ ((bits >> sign) & torch.iinfo(integer).max)


def _kth_largest(keys: Sequence[torch.Tensor], k: int) -> tuple[int, int]:
    """The k-th largest key over all tensors, and how many keys equal to it are among the k largest."""
    candidates = [_flat(key) for key in keys]
    shift = torch.iinfo(keys[0].dtype).bits - DIGIT_BITS
    while shift >= 0 and sum(part.numel() for part in candidates) > FEW_CANDIDATES:
        # The arithmetic shift leaves the topmost digit signed; the offset makes all digits count from zero.
        offset = 1 << (DIGIT_BITS - 1) if shift == torch.iinfo(keys[0].dtype).bits - DIGIT_BITS else 0
        digits = [((part >> shift) + offset) & ((1 << DIGIT_BITS) - 1) for part in candidates]
        counts = torch.stack([digit.bincount(minlength=1 << DIGIT_BITS) for digit in digits]).sum(0)
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= k).nonzero()[-1])
        k -= int(at_least[digit] - counts[digit])
        candidates = [part[own == digit] for part, own in zip(candidates, digits, strict=True)]
        shift -= DIGIT_BITS
    if shift < 0:
        # All digits are settled: the candidates left are equal, however many they are.
        return next(int(part[0]) for part in candidates if part.numel()), k
    rest = torch.cat(candidates)
    threshold = rest.kthvalue(rest.numel() - k + 1).values
    return int(threshold), k - int((rest > threshold).sum())


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """One dimension in storage order: a view where the tensor is dense in memory, since order does not matter for counting."""
    return tensor.permute(sorted(range(tensor.dim()), key=lambda axis: -tensor.stride()[axis])).reshape(-1)


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
