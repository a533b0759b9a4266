"""What a study file says of its search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.registry import nearest
from sparsebench.studies.fields import Fields

__all__ = ["HYPERBAND", "NSGA_2", "RANDOM", "SAMPLERS", "TPE", "SearchSettings", "read_search"]

TPE, NSGA_2, RANDOM = "tpe", "nsga-2", "random"
SAMPLERS = (TPE, NSGA_2, RANDOM)
HYPERBAND = "hyperband"
GENERATION = 8

_FIELDS = ("sampler", "seed", "generation", "stop")
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class SearchSettings:
    """How the configurations of each method are proposed.

    Attributes:
        sampler: "tpe", "nsga-2" or "random".
        seed: Of the sampler, in [0, 2**32).
        generation: How many configurations of a method are proposed at once, at least 1, of NSGA-II at least 2; the next ones are
            proposed when all of these have ended.
        stop: "hyperband", which stops trainings early, or None.
    """

    sampler: str
    seed: int = 0
    generation: int = GENERATION
    stop: str | None = None


def read_search(fields: Fields) -> SearchSettings | None:
    """The field `search` of a study file: the name of a sampler, or a mapping.

    Args:
        fields: All fields of the file.

    Returns:
        The settings; None where there is no such field.

    Raises:
        SparsebenchError: A value is wrong; the message names file, line and field.
    """
    if "search" not in fields.lines:
        return None
    if "budget" not in fields.lines:
        raise SparsebenchError(
            f"{fields.where('search')}: expected the field 'budget' too, the number of configurations of a method"
        )
    value = fields.value("search")
    if isinstance(value, str):
        return SearchSettings(_one_of(fields, "search", value, SAMPLERS))
    own = fields.mapping("search")
    own.check(_FIELDS, ("sampler",))
    sampler = _one_of(own, "sampler", own.value("sampler"), SAMPLERS)
    stop = _one_of(own, "stop", own.value("stop"), (HYPERBAND,)) if "stop" in own.lines else None
    if stop is not None and sampler == NSGA_2:
        raise SparsebenchError(
            f"{own.where('stop')}={stop!r}: {NSGA_2} weighs two values of finished trainings, and cannot stop one by its first; "
            f"choose the sampler {TPE} or {RANDOM}"
        )
    return SearchSettings(
        sampler=sampler,
        seed=_integer(own, "seed", 0, 0, _LARGEST_SEED),
        generation=_integer(own, "generation", GENERATION, 2 if sampler == NSGA_2 else 1, None),
        stop=stop,
    )


def _one_of(fields: Fields, name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise SparsebenchError(f"{fields.where(name)}={value!r}: expected one of {', '.join(known)}{nearest(str(value), known)}")
    return str(value)


def _integer(fields: Fields, name: str, default: int, least: int, most: int | None) -> int:
    value = fields.value(name) if name in fields.lines else default
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise SparsebenchError(f"{fields.where(name)}={value!r}: expected an integer {allowed}")
    return value
