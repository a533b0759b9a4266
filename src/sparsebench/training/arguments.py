"""What a method's signature says of its arguments, and the check of a value: the same for thousands of configurations."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sparsebench.errors import SparsebenchError
from sparsebench.records.schema import canonical_json
from sparsebench.sparsifiers.registry import Method
from sparsebench.sparsifiers.sparsifier import Sparsifier
from sparsebench.sparsifiers.units import STEPS_UNIT, TIMES_ONE_OVER_N_UNIT
from sparsebench.workloads.workload import Recipe

__all__ = [
    "BEGINNING",
    "INHERITED",
    "argument_units",
    "checked_argument",
    "goes_on",
    "method_arguments",
    "method_parameters",
    "remembered",
    "step_parameters",
    "takes_sequence",
    "validated",
]

INHERITED = "inherited"  # the argument of methods that go on from the network of a finished run
BEGINNING = "beginning"  # that of methods that look at the first batches
MOST = 65_536  # so many values are remembered of each kind: a few dozen megabytes

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def remembered(held: dict[K, V], key: K, make: Callable[[], V]) -> V:
    """The value of a key, made where it is not held; the oldest is let go of when there are too many."""
    try:
        return held[key]
    except KeyError:
        value = make()
    if len(held) >= MOST:
        del held[next(iter(held))]
    held[key] = value
    return value


def method_parameters(method: Method) -> dict[str, inspect.Parameter]:
    """The arguments of a method that a study may set: all but the seed, the inherited network and the batches, the run's own."""
    own = ("seed", INHERITED, BEGINNING)
    return {name: parameter for name, parameter in method_arguments(method).items() if name not in own}


def method_arguments(method: Method) -> Mapping[str, inspect.Parameter]:
    """All arguments of a method."""
    return _signature(method.build)


def goes_on(method: Method) -> bool:
    """Whether a method goes on from a finished run."""
    return INHERITED in method_arguments(method)


def step_parameters(method: Method) -> tuple[str, ...]:
    """The arguments of a method that are times, in steps once they are resolved."""
    return tuple(name for name, unit in argument_units(method.build).items() if unit == STEPS_UNIT)


def takes_sequence(method: Method, name: str) -> bool:
    """Whether an argument of a method is itself a sequence, so that a list is one value of it."""
    return _takes_sequence(method.build, name)


@functools.cache
def _takes_sequence(build: Callable[..., Sparsifier], name: str) -> bool:
    def is_sequence(hint: Any) -> bool:
        origin = typing.get_origin(hint)
        return origin in (Sequence, list, tuple) or (origin is not Mapping and any(map(is_sequence, typing.get_args(hint))))

    return is_sequence(_hints(build).get(name))


def checked_argument(build: Callable[..., Sparsifier], name: str, value: Any) -> Any:
    """The value of an argument that is no time, as a configuration holds it.

    Raises:
        SparsebenchError: The method takes no such value.
    """
    # Remembered by how it is written: 1, 1.0 and true are equal, and so are 0.0 and -0.0.
    for part in value if type(value) is list else (value,):
        if type(part) not in _WRITTEN_IN_FULL:
            return _checked(build, name, value)
    return remembered(_CHECKED, (build, name, repr(value)), lambda: _checked(build, name, value))


_CHECKED: dict[tuple[Callable[..., Sparsifier], str, str], Any] = {}
_WRITTEN_IN_FULL = (str, int, float, bool, type(None))  # by repr


def _checked(build: Callable[..., Sparsifier], name: str, value: Any) -> Any:
    """The value of an argument that is no time, as a configuration holds it."""
    adapter = _adapter(build, name)
    checked = validated(name, lambda: adapter.validate_python(value))
    _check_plain(name, value, checked, argument_units(build).get(name))
    return adapter.dump_python(checked, mode="json")


def _check_plain(name: str, given: Any, checked: Any, unit: str | None) -> None:
    """Refuse what passes for a number and is none: true and false, NaN, infinity; and a negative penalty as it was written."""
    if isinstance(given, bool) and not isinstance(checked, bool):
        raise SparsebenchError(f"{name}={given!r}: expected a number")
    try:
        if not isinstance(checked, (str, int)):
            canonical_json(checked)
    except ValueError as error:
        raise SparsebenchError(f"{name}={given!r}: expected finite numbers") from error
    if unit == TIMES_ONE_OVER_N_UNIT and isinstance(checked, float) and checked < 0.0:
        raise SparsebenchError(f"{name}={given!r}: expected a multiple of 1/N of at least 0")


def validated(field: str, check: Callable[[], Any]) -> Any:
    """What a check by pydantic gives; what it refuses as one line that names the field."""
    try:
        return check()
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"] if isinstance(part, (str, int))) or field
        name = path if path.partition(".")[0] in Recipe.model_fields else field
        told = first["msg"].removeprefix("Value error, ")
        raise SparsebenchError(f"{name}={first['input']!r}: {told[:1].lower()}{told[1:]}") from error


# What is read off a method's signature is the same for all of a study's thousands of configurations.
@functools.cache
def _signature(build: Callable[..., Sparsifier]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(build).parameters


@functools.cache
def _hints(build: Callable[..., Sparsifier]) -> dict[str, Any]:
    function = build.func if isinstance(build, functools.partial) else build
    hints = typing.get_type_hints(function, include_extras=True)
    # A configuration is data: patterns may choose layers, a function may not.
    return {name: str | Sequence[str] | None if name == "layers" else hint for name, hint in hints.items()}


@functools.cache
def _adapter(build: Callable[..., Sparsifier], name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_hints(build)[name])


@functools.cache
def argument_units(build: Callable[..., Sparsifier]) -> dict[str, str]:
    """Units of the arguments that have one, from their annotations."""
    hints = _hints(build)
    return {
        name: hint.__metadata__[0]
        for name, hint in hints.items()
        if typing.get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], str)
    }
