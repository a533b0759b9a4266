"""Where a step's batch lies in its epoch; an epoch's last, incomplete batch is left out."""

from __future__ import annotations

__all__ = ["batches_per_epoch", "place_in_epoch"]


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
