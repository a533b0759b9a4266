"""The configuration of a run that goes on from a finished one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.training.config import (
    KeptSchedule,
    Parent,
    RunConfig,
    goes_on,
    method_arguments,
    resolve_parameters,
    steps_per_epoch,
)
from sparsebench.training.longer_training import check_schedule, is_stretched
from sparsebench.training.times import to_steps
from sparsebench.workloads.registry import WORKLOADS

__all__ = ["keeping_weights", "resolve_child", "steps_for_dense_arithmetic"]

REWIND = "rewind_to"  # the argument of methods that go back to earlier weights
MOST_TIMES_AS_LONG = 2  # Liu et al. 2019 and Gale et al. 2019: at most twice the steps


def resolve_child(
    parent: RunConfig, method: str, parameters: Mapping[str, Any], *, steps: int | None = None, schedule: str = "stretched"
) -> RunConfig:
    """Make the configuration of a run that goes on from a finished one, with the same workload, recipe and seed.

    Args:
        parent: The configuration of the finished run.
        method: Name of a method that goes on from a finished run, such as "lottery-ticket".
        parameters: The method's arguments, as in `resolve`.
        steps: Length of the training; the parent's if None.
        schedule: How a longer run goes by the parent's learning rates; see `training.longer_training`.

    Raises:
        SparsebenchError: A name or value is wrong.

    Example:
        >>> from sparsebench.training.config import resolve
        >>> parent = resolve("digits", "magnitude", {"sparsity": 0.9})
        >>> child = resolve_child(parent, "scratch-b", {"initialization": "sparse"}, steps=3000)
        >>> child.parent.run_id == parent.run_id, child.recipe.steps, child.seed == parent.seed
        (True, 3000, True)
    """
    entry, task = METHODS.get(method), WORKLOADS.get(parent.workload)
    if not goes_on(entry):
        raise SparsebenchError(f"method {method!r} does not go on from a finished run")
    if (
        parent.parent is not None
        and REWIND in method_arguments(entry)
        and REWIND not in method_arguments(METHODS.get(parent.method))
    ):
        raise SparsebenchError(f"method {method!r} goes back to earlier weights, which a run of {parent.method!r} does not keep")
    check_schedule(schedule, parent.recipe.learning_rate_schedule)
    recipe = parent.recipe.model_copy(update={"auxiliary_lr_scale": None, "steps": steps or parent.recipe.steps})
    longer = recipe.steps > parent.recipe.steps and not is_stretched(schedule, parent.recipe.learning_rate_schedule)
    return RunConfig(
        workload=task.name,
        workload_revision=task.revision,
        method=entry.name,
        method_revision=entry.revision,
        parameters=resolve_parameters(task, entry, parameters, recipe),
        recipe=recipe,
        seed=parent.seed,
        parent=Parent(run_id=parent.run_id, configuration=parent.configuration),
        kept_schedule=KeptSchedule.model_validate({"variant": schedule, "steps": parent.recipe.steps}) if longer else None,
    )


def steps_for_dense_arithmetic(steps: int, dense: int, sparse: int) -> int:
    """Steps in which a sparse network takes the arithmetic of a dense one's training, at most twice as many (scratch-B).

    Args:
        steps: Of the dense network's training.
        dense: Multiply-adds of the dense network for one example.
        sparse: Those of the sparse network.

    Example:
        >>> steps_for_dense_arithmetic(1000, dense=90, sparse=60), steps_for_dense_arithmetic(1000, dense=90, sparse=9)
        (1500, 2000)
    """
    most = MOST_TIMES_AS_LONG * steps
    return most if sparse * MOST_TIMES_AS_LONG <= dense else min(int(steps * dense / sparse + 0.5), most)


def keeping_weights(config: RunConfig, at: object) -> RunConfig:
    """The configuration of a run that keeps its weights of a step, for lottery tickets that go back to it.

    Args:
        config: The configuration.
        at: A fraction of training, "300 steps" or "2 epochs".

    Raises:
        SparsebenchError: It is no time within the training.
    """
    task = WORKLOADS.get(config.workload)
    step = to_steps("keep_weights_at", at, config.recipe.steps, steps_per_epoch(task, config.recipe.batch_size))
    if not 1 <= step <= config.recipe.steps:
        raise SparsebenchError(
            f"keep_weights_at={at!r} is step {step}: expected one of the {config.recipe.steps} of the training"
        )
    return config.model_copy(update={"keep_weights_at": step})
