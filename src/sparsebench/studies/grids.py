"""From a grid in a study file to the combinations of its values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.registry import nearest
from sparsebench.sparsifiers.registry import METHODS, Method
from sparsebench.studies.study_file import MethodGrid, Study
from sparsebench.training.config import method_parameters, takes_sequence

__all__ = ["Axis", "Continuous", "combinations", "combine", "find_axes", "find_method", "listed_axes", "where"]

RAMP = "ramp"
"""A field for methods with `begin` and `end`: the fraction of training between them."""

_RANGE = ("from", "to", "by", "values", "scale")


@dataclass(frozen=True)
class Continuous:
    """Any number from `low` to `high`, for a search to choose: evenly, or evenly in the logarithm where `log`."""

    low: float
    high: float
    log: bool


Axis = list[Any] | Continuous
"""What a field can be: one of some alternatives, or any number of a range."""


def where(study: Study, grid: MethodGrid) -> str:
    """The place of a grid, as messages name it."""
    return f"{study.source}, line {grid.line}"


def find_method(study: Study, grid: MethodGrid) -> Method:
    """The method of a grid.

    Raises:
        SparsebenchError: There is none of this name.
    """
    try:
        return METHODS.get(grid.method)
    except SparsebenchError as error:
        raise SparsebenchError(f"{where(study, grid)}: {error}") from error


def combinations(
    study: Study, grid: MethodGrid, shared: Mapping[str, Any], others: Iterable[str], sparsities: Sequence[float] | None
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """All combinations of a grid's values.

    Args:
        study: The study.
        grid: The grid.
        shared: Values for all methods, which those of the grid replace.
        others: Fields besides the method's arguments that are allowed here.
        sparsities: Alternatives for a method's argument `sparsity` where the grid says nothing of it; None to leave it out.

    Returns:
        For each combination the method's arguments and the other fields.

    Raises:
        SparsebenchError: A field or value is wrong; the message names file, line and field.
    """
    listed = listed_axes(study, grid, find_axes(study, grid, shared, others, sparsities))
    return [
        combine(study, grid, dict(zip(listed, values, strict=True)), others) for values in itertools.product(*listed.values())
    ]


def listed_axes(study: Study, grid: MethodGrid, axes: Mapping[str, Axis]) -> dict[str, list[Any]]:
    """The alternatives of each field, where all of them have some.

    Raises:
        SparsebenchError: A field can be any number of a range; the message names file, line and field.
    """
    listed: dict[str, list[Any]] = {}
    for name, axis in axes.items():
        if isinstance(axis, Continuous):
            raise SparsebenchError(
                f"{where(study, grid)}: {name}={{from: {axis.low:g}, to: {axis.high:g}}}: expected a range with 'by' or "
                "'values'; one without is for the methods of a study with the field 'search'"
            )
        listed[name] = axis
    return listed


def find_axes(
    study: Study, grid: MethodGrid, shared: Mapping[str, Any], others: Iterable[str], sparsities: Sequence[float] | None
) -> dict[str, Axis]:
    """What each field of a grid can be.

    A list stands for alternatives; so does a range, both ends included: `{from: 0.1, to: 0.9, by: 0.2}`, or
    `{from: 0.01, to: 10, values: 4, scale: log}`; without `by` and `values` it stands for any number in it. Where the argument
    itself is a sequence (`thresholds`, `layers`), a list is one value and a list of lists stands for alternatives. `ramp`, in
    place of `end`, is the fraction of training from `begin` to `end`.

    Args:
        study: The study.
        grid: The grid.
        shared: Values for all methods, which those of the grid replace.
        others: Fields besides the method's arguments that are allowed here.
        sparsities: Alternatives for a method's argument `sparsity` where the grid says nothing of it; None to leave it out.

    Raises:
        SparsebenchError: A field or value is wrong; the message names file, line and field.
    """
    method, place = find_method(study, grid), where(study, grid)
    known = method_parameters(method)
    fields = [*known, *(name for name in others if name not in known)]
    ramped = RAMP not in known and "begin" in known and "end" in known
    axes: dict[str, Axis] = {}
    if "sparsity" in known and "sparsity" not in grid.values and sparsities is not None:
        if not sparsities:
            raise SparsebenchError(f"{place}: {grid.method} needs sparsities; add the field 'sparsities'")
        axes["sparsity"] = list(sparsities)
    for name, value in (dict(shared) | dict(grid.values)).items():
        if name not in fields and not (ramped and name == RAMP):
            raise SparsebenchError(
                f"{place}: unknown field {name!r} of {grid.method!r}{nearest(name, fields)}; known: {', '.join(fields)}"
            )
        axes[name] = _alternatives(name, value, takes_sequence(method, name), place)
        if axes[name] == []:
            raise SparsebenchError(f"{place}: {name}: expected at least one value")
    if ramped and RAMP in axes and "end" in axes:
        raise SparsebenchError(f"{place}: {grid.method}: expected either the field 'end' or 'ramp'")
    return axes


def combine(
    study: Study, grid: MethodGrid, values: Mapping[str, Any], others: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The method's arguments, and the other fields, that one value for each field of a grid stands for.

    Args:
        study: The study.
        grid: The grid.
        values: One value for each field.
        others: Fields besides the method's arguments.

    Raises:
        SparsebenchError: The ramp is no fraction of training; the message names file, line and field.
    """
    method = find_method(study, grid)
    known = method_parameters(method)
    chosen = dict(values)
    if RAMP in chosen and RAMP not in known and RAMP not in others:
        chosen["end"] = _end(method, chosen, chosen.pop(RAMP), where(study, grid))
    parameters = {name: value for name, value in chosen.items() if name in known}
    return parameters, {name: value for name, value in chosen.items() if name not in known}


def _end(method: Method, chosen: Mapping[str, Any], ramp: Any, place: str) -> float:
    begin: Any = chosen.get("begin", method.defaults.get("begin"))
    if not _is_number(begin) or not _is_number(ramp) or not 0.0 <= ramp <= 1.0:
        raise SparsebenchError(
            f"{place}: {method.name}: ramp={ramp!r} with begin={begin!r}: expected both as fractions of training in [0, 1]"
        )
    # 0.7 + 0.3 may be a hair above 1, and is not meant to be.
    return float(round(begin + ramp, 12))


def _alternatives(name: str, value: Any, sequence: bool, place: str) -> Axis:
    if isinstance(value, Mapping) and "from" in value and set(value) <= set(_RANGE):
        return _range(name, value, place)
    if not isinstance(value, list) or (sequence and not (value and isinstance(value[0], list))):
        return [value]
    return value


def _range(name: str, value: Mapping[str, Any], place: str) -> list[float] | Continuous:
    """The values of a range, in decimal arithmetic: 0.3 and not 0.30000000000000004, which would be another configuration."""
    wrong = SparsebenchError(
        f"{place}: {name}={dict(value)!r}: expected a range such as {{from: 0.1, to: 0.9, by: 0.2}} or "
        "{from: 0.01, to: 10, values: 4, scale: log}"
    )
    first: Any = value.get("from")
    last: Any = value.get("to")
    scale = value.get("scale", "linear")
    if not _is_number(first) or not _is_number(last) or not first < last or scale not in ("linear", "log"):
        raise wrong
    if scale == "log" and first <= 0.0:
        raise wrong
    if "by" in value and "values" in value:
        raise wrong
    if "by" not in value and "values" not in value:
        return Continuous(float(first), float(last), scale == "log")
    if "by" in value:
        if not _is_number(value["by"]) or value["by"] <= 0.0 or scale == "log":
            raise wrong
        start, end, step = (Decimal(str(number)) for number in (first, last, value["by"]))
        return [float(start + index * step) for index in range(int((end - start) / step) + 1)]
    count = value["values"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 2:
        raise wrong
    if scale == "log":
        logs = (math.log(first), math.log(last))
        # What rounding leaves of 0.3 would be another configuration than 0.3.
        return [float(f"{math.exp(logs[0] + (logs[1] - logs[0]) * index / (count - 1)):.12g}") for index in range(count)]
    start, end = Decimal(str(first)), Decimal(str(last))
    return [float(start + (end - start) * index / (count - 1)) for index in range(count)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
