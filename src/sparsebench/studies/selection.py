"""Which runs of a study a call works on: filters, a share of them, a largest number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.registry import nearest
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.training.config import RunConfig, method_parameters
from sparsebench.workloads.workload import Recipe

__all__ = ["EVERYTHING", "Selection"]

_OF_RUNS = {"method": "method", "seed": "seed", "sparsity": "target_sparsity"}


@dataclass(frozen=True)
class Selection:
    """A part of a study's runs.

    Args:
        only: Conditions, FIELD=VALUE or FIELD=VALUE,VALUE: a run must meet all of them. Fields are method, seed, sparsity, the
            arguments of methods and the settings of recipes, with times in steps, as a run's config.json has them.
        shard: I/N: the I-th of N shares, I counted from 1. Which share a run belongs to depends on its id alone, so that it stays
            there when the study grows.
        limit: The most runs that one call trains, at least 1.

    Raises:
        SparsebenchError: A value is not of that form, or there is no such field.

    Example:
        >>> from sparsebench.studies.plan import plan_runs
        >>> from sparsebench.studies.study_file import read_study
        >>> runs = plan_runs(read_study("quickstart"))
        >>> {run.method for run in Selection(only=("method=magnitude", "sparsity=0.5,0.9")).choose(runs)}
        {'magnitude'}
        >>> sum(len(Selection(shard=f"{i}/3").choose(runs)) for i in (1, 2, 3)) == len(runs)
        True
    """

    only: tuple[str, ...] = ()
    shard: str | None = None
    limit: int | None = None
    _conditions: tuple[tuple[str, frozenset[str]], ...] = field(default=(), init=False, repr=False)
    _share: tuple[int, int] = field(default=(1, 1), init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_conditions", tuple(_condition(text) for text in self.only))
        if self.shard is not None:
            match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", self.shard)
            if match is None or int(match[1]) > int(match[2]):
                raise SparsebenchError(f"--shard {self.shard!r}: expected I/N with I from 1 to N, such as 2/4")
            object.__setattr__(self, "_share", (int(match[1]), int(match[2])))
        if self.limit is not None and self.limit < 1:
            raise SparsebenchError(f"--limit {self.limit}: expected at least 1")

    def choose(self, configs: Iterable[RunConfig]) -> list[RunConfig]:
        """The configurations that meet all conditions and belong to the share, in their order."""
        number, shares = self._share
        return [
            config
            for config in configs
            if all(_canonical(_value(config, name)) in wanted for name, wanted in self._conditions)
            and (shares == 1 or int(config.run_id, 16) % shares == number - 1)
        ]

    def within_limit(self, configs: Sequence[RunConfig], trained: int) -> list[RunConfig]:
        """The first of these, so that with those that were trained there are no more than the limit."""
        return list(configs if self.limit is None else configs[: max(self.limit - trained, 0)])

    def of_folder(self, configs: Sequence[RunConfig], directory: Path) -> list[RunConfig]:
        """With a limit, those of these that a call would train in a results folder as it is now; all where there is none."""
        if self.limit is None:
            return list(configs)
        waiting = ("new", "started")
        return self.within_limit([one for one in configs if RunFolder.of(directory, one.run_id).status() in waiting], 0)

    def check(self, configs: Sequence[RunConfig], complete: bool) -> None:
        """Find a condition that no run meets.

        Args:
            configs: All runs of the study that are known.
            complete: Whether there will be no others; nothing can be said of runs that later stages add.

        Raises:
            SparsebenchError: The message names the condition and the values that the runs have.
        """
        left = list(configs)
        for text, (name, wanted) in zip(self.only, self._conditions, strict=True):
            values = dict.fromkeys(_canonical(_value(config, name)) for config in left)
            left = [config for config in left if _canonical(_value(config, name)) in wanted]
            if complete and not left:
                shown = ", ".join([value for value in values if value != "none"][:10]) or "not set in any"
                raise SparsebenchError(f"--only {text!r}: no run of the study meets this; {name} is {shown}")


EVERYTHING = Selection()


def _condition(text: str) -> tuple[str, frozenset[str]]:
    name, _, values = (part.strip() for part in text.partition("="))
    if not name or not values:
        raise SparsebenchError(f"--only {text!r}: expected FIELD=VALUE, such as method=magnitude or seed=0,1")
    parameters = {parameter for method in METHODS for parameter in method_parameters(method)}
    known = [*_OF_RUNS, *Recipe.model_fields, *sorted(parameters - _OF_RUNS.keys())]
    if name not in known:
        raise SparsebenchError(f"--only {text!r}: there is no field {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    if name == "method":
        for value in values.split(","):
            METHODS.get(value.strip())
    return name, frozenset(_canonical(_read(value)) for value in values.split(","))


def _value(config: RunConfig, name: str) -> object:
    if name in _OF_RUNS:
        return getattr(config, _OF_RUNS[name])
    return config.parameters[name] if name in config.parameters else getattr(config.recipe, name, None)


def _read(text: str) -> object:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text.strip()


def _canonical(value: object) -> str:
    """The same text for equal values, as a study file would have it: 0.1 for 0.10, 2 for 2.0."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
