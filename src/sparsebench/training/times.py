"""Times as people write them: fractions of training, steps, epochs."""

from __future__ import annotations

import re

from sparsebench.errors import SparsebenchError

__all__ = ["to_steps"]

MOST_STEPS = 2**53  # beyond it a float no longer counts in ones

_WITH_UNIT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(steps?|epochs?)\s*", re.IGNORECASE)


def to_steps(field: str, value: object, total: int | None, steps_per_epoch: int) -> int:
    """Turn a time into a number of steps.

    Args:
        field: The field's name, for messages.
        value: A fraction of training (0.25 or "0.25"), "20000 steps" or "5 epochs".
        total: Steps of the whole training; None where a fraction makes no sense.
        steps_per_epoch: Steps of one pass over the training set.

    Returns:
        Steps, rounded to the nearest whole number.

    Raises:
        SparsebenchError: The value is none of these.

    Example:
        >>> to_steps("begin", "0.25", total=1000, steps_per_epoch=50)
        250
        >>> to_steps("begin", "5 epochs", total=1000, steps_per_epoch=50)
        250
    """
    if isinstance(value, str) and (match := _WITH_UNIT.fullmatch(value)):
        number = float(match[1]) * (steps_per_epoch if match[2].lower().startswith("epoch") else 1)
        if number < MOST_STEPS:
            return int(number + 0.5)
    try:
        fraction = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        fraction = -1.0
    if total is None or isinstance(value, bool) or not 0.0 <= fraction <= 1.0:
        expected = '"20000 steps" or "5 epochs"'
        if total is not None:
            expected = f"a fraction of training in [0, 1], {expected}"
        raise SparsebenchError(f"{field}={value!r}: expected {expected}")
    return int(fraction * total + 0.5)
