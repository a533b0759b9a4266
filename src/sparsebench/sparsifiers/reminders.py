"""Telling the author of a training loop what it seems to have forgotten."""

from __future__ import annotations

import warnings

__all__ = ["warn_of_missing_penalty", "warn_of_unfinished"]


def warn_of_unfinished(step: int, end: int, state: str) -> None:
    """Warn the caller of `finalize` that the schedule goes on after this step.

    Args:
        step: Completed steps.
        end: The step at which the schedule arrives.
        state: What is as it was not meant to stay, such as "the sparsity is 0.388".
    """
    warnings.warn(
        f"finalize() after step {step} of a schedule that arrives at step {end}: {state}; was attach(optimizer) forgotten, or is "
        "the training shorter than the schedule?",
        UserWarning,
        stacklevel=4,  # over `finalize` and the decorator around it
    )


def warn_of_missing_penalty(step: int) -> None:
    """Warn that a step was taken without the penalty of a method that does nothing without it."""
    warnings.warn(
        f"step {step} was taken without a call of penalty(): add it to the loss, nothing becomes sparse without it",
        UserWarning,
        stacklevel=2,
    )
