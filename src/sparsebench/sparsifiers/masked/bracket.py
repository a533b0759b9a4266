"""Two bounds that enclose a threshold, found in a sample, and the few scores between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sparsebench.sparsifiers.storage_order import CHUNK

__all__ = ["Split", "bracket", "kth_smallest", "split"]

LARGEST_SAMPLE = 1 << 16


class Split(NamedTuple):
    """A tensor's scores beside the bounds, in storage order.

    Attributes:
        beyond: Bool, True where the score is above both bounds.
        above: How many are.
        near: Positions of the scores between the bounds, both included.
    """

    beyond: torch.Tensor
    above: int
    near: torch.Tensor


def bracket(
    scores: Sequence[torch.Tensor],
    candidates: Sequence[torch.Tensor | None],
    keep: int,
    total: int,
    key: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[float, float]:
    """Bounds between which the `keep`-th largest candidate is expected, infinite where the sample does not say.

    Args:
        scores: Scores of each tensor, one-dimensional.
        candidates: Nonzero where a score counts, alike; None: everywhere.
        keep: The rank, at least 1.
        total: Number of candidates.
        key: What makes scores proper of `scores`, entry by entry.
    """
    # A larger sample costs as much as looking at what a smaller one leaves between the bounds.
    wanted = min(int(total ** (2 / 3)), LARGEST_SAMPLE)
    step = max(sum(score.numel() for score in scores) // wanted, 1)
    sample = torch.cat(
        [score[::step] if may is None else score[::step][may[::step] != 0] for score, may in zip(scores, candidates, strict=True)]
    )
    sample = key(sample)
    sample = sample if sample.dtype == torch.float64 else sample.float()
    size, share = sample.numel(), keep / total
    # Five standard deviations of the rank that the threshold has in a random sample.
    margin = 5.0 * math.sqrt(size * share * (1.0 - share)) + 8.0
    low, high = (math.floor(size * (1.0 - share) + sign * margin) for sign in (-1, 1))
    return (
        float(kth_smallest(sample, low)) if low >= 1 else -math.inf,
        float(kth_smallest(sample, high)) if high <= size else math.inf,
    )


def kth_smallest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th smallest of a one-dimensional tensor, counted from 1; NumPy finds it fifteen times faster than torch.

    Example:
        >>> kth_smallest(torch.tensor([3.0, 1.0, 2.0]), 2)
        tensor(2.)
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])[0]
    return values.kthvalue(k).values


def split(
    scores: torch.Tensor,
    candidates: torch.Tensor | None,
    low: float,
    high: float,
    most: int,
    key: Callable[[torch.Tensor], torch.Tensor],
) -> Split | None:
    """Tell the scores above the bounds from those between and below them.

    Args:
        scores: One-dimensional.
        candidates: Nonzero where a score counts, alike; None: everywhere. The others are below.
        low: The lower bound.
        high: The upper bound.
        most: So many scores may lie between the bounds.
        key: What makes scores proper of `scores`, entry by entry.

    Returns:
        None where more do: looking at them closely would cost more than at all.
    """
    if scores.device.type != "cpu":
        proper = key(scores)
        within, beyond = proper >= low, proper > high
        if candidates is not None:
            within, beyond = within & candidates.bool(), beyond & candidates.bool()
        positions = (within ^ beyond).nonzero().squeeze(1)
        return Split(beyond, int(beyond.count_nonzero()), positions) if positions.numel() <= most else None
    size = scores.numel()
    beyond = torch.empty(size, dtype=torch.bool)
    within, allowed = (torch.empty(min(size, CHUNK), dtype=torch.bool) for _ in range(2))
    count, near = 0, []
    for begin in range(0, size, CHUNK):
        # NumPy compares three times faster than torch, but knows no bfloat16.
        part = key(scores[begin : begin + CHUNK])
        values = (part if part.dtype in (torch.float32, torch.float64) else part.float()).numpy()
        inside, above = within[: len(values)].numpy(), beyond[begin : begin + CHUNK].numpy()
        np.greater_equal(values, low, out=inside)
        np.greater(values, high, out=above)
        if candidates is not None:
            may = allowed[: len(values)].copy_(candidates[begin : begin + CHUNK]).numpy()
            inside &= may
            above &= may
        count += int(np.count_nonzero(above))
        inside ^= above
        near.append(np.flatnonzero(inside) + begin)
        most -= near[-1].size
        if most < 0:
            return None
    return Split(beyond, count, torch.from_numpy(np.concatenate(near)) if near else torch.empty(0, dtype=torch.int64))
