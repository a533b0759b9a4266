"""Where a step's batch lies in its epoch, and a process's part in a batch; an epoch's last, incomplete batch is left out."""

from __future__ import annotations

__all__ = ["batches_per_epoch", "part_of_examples", "place_in_epoch"]


def batches_per_epoch(examples: int, batch_size: int) -> int:
    """How many whole batches an epoch has; one where the examples are fewer than a batch."""
    return max(examples // batch_size, 1)


def place_in_epoch(step: int, examples: int, batch_size: int) -> tuple[int, slice]:
    """The epoch of a step, and the part of that epoch's order which is its batch.

    Args:
        step: Counted from 0.
        examples: In the training set.
        batch_size: Examples a step.

    Example:
        >>> place_in_epoch(4, examples=10, batch_size=3)
        (1, slice(3, 6, None))
    """
    epoch, position = divmod(step, batches_per_epoch(examples, batch_size))
    return epoch, slice(position * batch_size, (position + 1) * batch_size)


def part_of_examples(examples: int, index: int, count: int) -> tuple[slice, float]:
    """The `index`-th of `count` parts of a batch: consecutive examples, as many in each as can be.

    The mean over parts of each part's mean, times the number that is returned with it, is the mean over the batch. Where there
    are fewer examples than parts, some are the first example, which counts nothing there.

    Args:
        examples: Of the batch.
        index: In [0, count).
        count: Parts.

    Example:
        >>> [part_of_examples(3, index, 2) for index in range(2)]
        [(slice(0, 1, None), 0.6666666666666666), (slice(1, 3, None), 1.3333333333333333)]
    """
    begin, end = examples * index // count, examples * (index + 1) // count
    return (slice(begin, end), count * (end - begin) / examples) if begin < end else (slice(0, 1), 0.0)
