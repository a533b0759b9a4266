"""What a saved state says of the sparsifier it belongs to, and checking that it is this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparsebench.errors import SparsebenchError

__all__ = ["check_saved_state", "describe", "full_name"]


def check_saved_state(state: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Compare what a saved state says of its method, model and schedule with what is here.

    Args:
        state: What `state_dict()` gave; its entry "description" is compared.
        here: The description of the sparsifier that is to take it up.

    Raises:
        SparsebenchError: They differ, or `state` is no such state; the message names the first difference.
    """
    saved = state.get("description") if isinstance(state, Mapping) else None
    if not isinstance(saved, Mapping) or not isinstance(state.get("step"), int):
        raise SparsebenchError("this is not the state_dict() of a sparsifier: it has no 'description' and 'step'")
    difference = _difference(saved, here, "")
    if difference:
        raise SparsebenchError(f"the saved state belongs to another model, method or schedule: {difference}")


def describe(part: Any) -> dict[str, Any]:
    """A part of a method, a dataclass, as plain values: its type's name and its fields."""
    return {"kind": type(part).__name__} | dataclasses.asdict(part)


def full_name(part: Any) -> str:
    """The name of a function, with its module; of a callable object that of its type, which has one."""
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{named.__qualname__}"


def _difference(saved: Any, here: Any, path: str) -> str | None:
    if isinstance(saved, Mapping) and isinstance(here, Mapping):
        for key in [*saved, *(key for key in here if key not in saved)]:
            where = f"{path}.{key}" if path else str(key)
            if key not in here:
                return f"{where} is in the saved state and not here"
            if key not in saved:
                return f"{where} is here and not in the saved state"
            if found := _difference(saved[key], here[key], where):
                return found
        return None
    return None if saved == here else f"{path} is {saved!r} there and {here!r} here"
