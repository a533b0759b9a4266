"""Numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Sequence

from sparsebench.analysis.statistics import Difference, Estimate

__all__ = [
    "NOTHING",
    "asked",
    "count",
    "duration",
    "listing",
    "measured",
    "memory",
    "metric_label",
    "points_of",
    "spread",
    "value",
]

NOTHING = "\N{EN DASH}"
_SPACE = "\N{NO-BREAK SPACE}"
_UNITS = {"accuracy": "%"}  # accuracies are recorded in per cent; other metrics carry no unit


def metric_label(metric: str) -> str:
    """The metric with its unit.

    Example:
        >>> metric_label("accuracy"), metric_label("bleu")
        ('accuracy (%)', 'bleu')
    """
    return f"{metric} ({_UNITS[metric]})" if metric in _UNITS else metric


def value(estimate: Estimate | None) -> str:
    """`mean ± half-width`, the mean alone where there is no interval, an en dash where there is no value.

    Example:
        >>> value(Estimate(91.234, 0.456, 3)).replace(_SPACE, " "), value(Estimate(91.234, None, 1)), value(None)
        ('91.23 ± 0.46', '91.23', '–')
    """
    if estimate is None:
        return NOTHING
    if estimate.half_width is None:
        return f"{estimate.mean:.2f}"
    return f"{estimate.mean:.2f}{_SPACE}±{_SPACE}{estimate.half_width:.2f}"


def points_of(apart: Difference, metric: str) -> str:
    """A difference with its interval and unit: percentage points where the metric is in per cent.

    Example:
        >>> points_of(Difference(6.9, 0.5, 4.0, 5, True, 8.0), "accuracy").replace(_SPACE, " ")
        '6.90 ± 1.39 points'
    """
    unit = "points" if metric in _UNITS else metric
    half = apart.half_width()
    interval = "" if half is None else f"{_SPACE}±{_SPACE}{half:.2f}"
    return f"{apart.mean:.2f}{interval}{_SPACE}{unit}"


def asked(sparsity: float) -> str:
    """A sparsity somebody asked for, with no more digits than it has.

    Example:
        >>> asked(0.9).replace(_SPACE, " "), asked(0.965).replace(_SPACE, " ")
        ('90 %', '96.5 %')
    """
    return f"{100.0 * sparsity:.10g}{_SPACE}%"


def measured(sparsity: float) -> str:
    """A sparsity that was counted, to a hundredth of a per cent.

    Example:
        >>> measured(0.89987).replace(_SPACE, " ")
        '89.99 %'
    """
    return f"{100.0 * sparsity:.2f}{_SPACE}%"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun.

    Example:
        >>> count(1, "run").replace(_SPACE, " "), count(1500, "run").replace(_SPACE, " ")
        ('1 run', '1,500 runs')
    """
    return f"{number:,}{_SPACE}{singular if number == 1 else plural or singular + 's'}"


def spread(numbers: Sequence[int]) -> str:
    """A number all share, or the range they span.

    Example:
        >>> spread([1500, 1500]), spread([1, 3])
        ('1,500', '1–3')
    """
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}\N{EN DASH}{high:,}"


def listing(items: Sequence[str]) -> str:
    """Items with commas and an "and".

    Example:
        >>> listing(["a"]), listing(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> [duration(seconds).replace(_SPACE, " ") for seconds in (7.25, 90.0, 5400.0)]
        ['7.2 s', '1.5 min', '1.5 h']
    """
    if seconds < 60.0:
        return f"{seconds:.1f}{_SPACE}s"
    if seconds < 3600.0:
        return f"{seconds / 60.0:.1f}{_SPACE}min"
    return f"{seconds / 3600.0:,.1f}{_SPACE}h"


def memory(size: float | None) -> str:
    """A number of bytes in the unit that suits it, an en dash where it is not known.

    Example:
        >>> memory(3 * 2**20).replace(_SPACE, " "), memory(None)
        ('3.0 MiB', '–')
    """
    if size is None:
        return NOTHING
    if size < 2**30:
        return f"{size / 2**20:.1f}{_SPACE}MiB"
    return f"{size / 2**30:.1f}{_SPACE}GiB"
