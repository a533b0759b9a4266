"""Optuna's samplers and pruner over the grids of a method: the only place that knows Optuna."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.studies.grids import Axis, Continuous
from sparsebench.studies.search.settings import HYPERBAND, NSGA_2, RANDOM, SearchSettings

__all__ = ["REDUCTION", "RESOURCES", "WHOLE", "Asked", "Sampler", "check_installed"]

REDUCTION = 3
"""Hyperband goes on with the best of so many."""

RESOURCES, WHOLE = (1, 3), 9
"""Where Hyperband looks at a training, and the whole of it."""


@dataclass(frozen=True)
class Asked:
    """What a sampler proposes: one of the grids, and a value for each of its fields."""

    trial: Any
    grid: int
    values: Mapping[str, Any]


class Sampler:
    """Proposes values for the fields of some grids, from the values of what it proposed before. Nothing of it is on disk.

    The same answers in the same order lead to the same proposals.

    Args:
        settings: Which sampler, and whether trainings are stopped early.
        name: What stands for this sampler in the study.
        seed: Of its random numbers, in [0, 2**32).
        grids: For each grid what each field can be.

    Raises:
        SparsebenchError: Optuna is not installed.
    """

    def __init__(self, settings: SearchSettings, name: str, seed: int, grids: Sequence[Mapping[str, Axis]]) -> None:
        optuna = _optuna()
        self._states = optuna.trial.TrialState
        self._create_trial = optuna.trial.create_trial
        self._grids = grids
        if settings.sampler == NSGA_2:
            directions, sampler = ["maximize"] * 2, optuna.samplers.NSGAIISampler(population_size=settings.generation, seed=seed)
        elif settings.sampler == RANDOM:
            directions, sampler = ["maximize"], optuna.samplers.RandomSampler(seed=seed)
        else:
            directions, sampler = ["maximize"], optuna.samplers.TPESampler(seed=seed)
        pruner = optuna.pruners.NopPruner()
        if settings.stop == HYPERBAND:
            pruner = optuna.pruners.HyperbandPruner(RESOURCES[0], WHOLE, REDUCTION)
        with _quiet(optuna):
            self._study = optuna.create_study(directions=directions, sampler=sampler, pruner=pruner, study_name=name)

    def ask(self) -> Asked:
        """The next proposal."""
        trial = self._study.ask()
        several = len(self._grids) > 1
        grid = trial.suggest_categorical("grid", range(len(self._grids))) if several else 0
        values = {name: _suggest(trial, self._name(grid, name), axis) for name, axis in self._grids[grid].items()}
        return Asked(trial, grid, values)

    def ask_for(self, grid: int, values: Mapping[str, Any]) -> Asked:
        """Have these values proposed, each an alternative of its field."""
        fixed = {"grid": grid} if len(self._grids) > 1 else {}
        for name, axis in self._grids[grid].items():
            assert not isinstance(axis, Continuous)
            if len(axis) > 1:
                fixed[self._name(grid, name)] = _ordered(axis).index(values[name])
        self._study.enqueue_trial(fixed)
        return self.ask()

    def _name(self, grid: int, name: str) -> str:
        return f"{grid}.{name}" if len(self._grids) > 1 else name

    def refuse(self, asked: Asked) -> None:
        """Say that a proposal is not taken up: it was made before."""
        self._study.tell(asked.trial, state=self._states.FAIL)

    def tell(self, asked: Asked, values: Sequence[float]) -> None:
        """Say what a proposal was worth, one value or, to NSGA-II, two: more is better."""
        self._study.tell(asked.trial, list(values))

    def tell_stopped(self, asked: Asked) -> None:
        """Say that the training of a proposal was stopped; what was reported of it counts."""
        self._study.tell(asked.trial, state=self._states.PRUNED)

    def hear(self, asked: Asked, value: float) -> None:
        """Learn what a proposal of another sampler of the same grids is worth to this one."""
        trial = asked.trial
        self._study.add_trial(self._create_trial(params=trial.params, distributions=trial.distributions, value=value))

    def stops(self, asked: Asked, resource: int, value: float) -> bool:
        """Report the value of a proposal after a part of its training, and tell whether it is to be stopped there."""
        asked.trial.report(value, resource)
        return bool(asked.trial.should_prune())


def _suggest(trial: Any, name: str, axis: Axis) -> Any:
    """A value of a field: numbers of a list are taken in their order, by their place in it."""
    if isinstance(axis, Continuous):
        # Four digits, so that a configuration can be read; rounding must not leave the range.
        value = float(f"{trial.suggest_float(name, axis.low, axis.high, log=axis.log):.4g}")
        return min(max(value, axis.low), axis.high)
    if len(axis) == 1:
        return axis[0]
    places = len(axis)
    if len(axis) > 2 and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in axis):
        return _ordered(axis)[trial.suggest_int(name, 0, places - 1)]
    return _ordered(axis)[trial.suggest_categorical(name, range(places))]


def _ordered(axis: list[Any]) -> list[Any]:
    """Numbers in ascending order, everything else as it is."""
    return sorted(axis) if all(isinstance(value, (int, float)) for value in axis) else axis


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def check_installed() -> None:
    """Refuse a search where Optuna is missing.

    Raises:
        SparsebenchError: Optuna is not installed.
    """
    _optuna()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise SparsebenchError(f"the search of a study needs optuna ({error}): pip install 'sparsebench[search]'") from error
    return optuna
