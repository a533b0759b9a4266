"""Learning rates of a run that is longer than the one it goes by: the variants tried for scratch-B.

Gale, Elsen and Hooker 2019 (arXiv:1902.09574) trained ResNet-50 from scratch with the schedule stretched, with constant
decay points, with a constant final rate and with continued decay. Here these are defined for any schedule, S being the steps of
the shorter run and T those of the longer one:

- stretched: the schedule spans T steps (no `KeptSchedule`);
- constant-decay-points: the decay begins at the step at which it begins in S steps, and ends at T; schedules that decay from the
  first step or the warm-up on do so when stretched, and "step" drops at the steps at which it drops in S steps;
- constant-final-rate: the schedule of S steps, and from then on the rate of its last step;
- continued-decay: the schedule of S steps, and from then on the same decay once more, from the rate of its last step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.workload import Recipe

if TYPE_CHECKING:
    from sparsebench.training.config import KeptSchedule

__all__ = ["check_schedule", "is_stretched", "rate_factor"]

VARIANTS = ("stretched", "constant-decay-points", "constant-final-rate", "continued-decay")
DECAY_BEGINS = {"trapezoid": 0.5}  # as a fraction of the schedule
DECAYS_AT_ONCE = frozenset(
    {"cosine", "inverse-square-root"}
)  # from the first step, or from the warm-up on, which does not stretch


def check_schedule(variant: str, schedule: str) -> None:
    """Refuse a variant that means nothing for a schedule.

    Raises:
        SparsebenchError: The message names both, and what would be right.
    """
    if variant not in VARIANTS:
        raise SparsebenchError(f"schedule={variant!r}: expected one of {', '.join(VARIANTS)}")
    if variant != "stretched" and schedule == "constant":
        raise SparsebenchError(f"schedule={variant!r}: the schedule 'constant' has no decay; expected 'stretched'")
    known = schedule in DECAY_BEGINS or schedule in DECAYS_AT_ONCE or schedule == "step"
    if variant == "constant-decay-points" and not known:
        raise SparsebenchError(
            f"schedule={variant!r}: where the decay of the schedule {schedule!r} begins is not known; expected 'stretched', "
            "'constant-final-rate' or 'continued-decay'"
        )


def is_stretched(variant: str, schedule: str) -> bool:
    """Whether a variant of a schedule is the schedule over all steps.

    Example:
        >>> is_stretched("constant-decay-points", "cosine"), is_stretched("constant-decay-points", "trapezoid")
        (True, False)
    """
    return variant == "stretched" or (variant == "constant-decay-points" and schedule in DECAYS_AT_ONCE)


def rate_factor(recipe: Recipe, kept: KeptSchedule | None, factor: Callable[[Recipe, int], float]) -> Callable[[int], float]:
    """The learning rate of a step, counted from 0, as a fraction of the recipe's.

    Args:
        recipe: The recipe of the run.
        kept: The schedule that it goes by; None for its own.
        factor: Gives the fraction for a recipe and a step.
    """
    if kept is None:
        return lambda step: factor(recipe, step)
    shorter = recipe.model_copy(update={"steps": kept.steps})
    again = shorter.model_copy(update={"warmup_steps": 0})
    last = factor(shorter, kept.steps - 1)
    if kept.variant == "constant-final-rate" or (recipe.learning_rate_schedule == "step" and kept.variant != "continued-decay"):
        return lambda step: factor(shorter, min(step, kept.steps - 1))
    if kept.variant == "continued-decay":
        # A run of more than twice the steps stays at the end of the second decay.
        return lambda step: (
            factor(shorter, step) if step < kept.steps else last * factor(again, min(step - kept.steps, kept.steps - 1))
        )
    begins = DECAY_BEGINS[recipe.learning_rate_schedule] * kept.steps

    def decay_from_there(step: int) -> float:
        if step < begins:
            return factor(shorter, step)
        return min((recipe.steps - step) / (recipe.steps - begins), 1.0)

    return decay_from_there
