"""From a study to the configurations of its runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.registry import nearest
from sparsebench.sparsifiers.registry import METHODS, Method
from sparsebench.studies.study_file import MethodGrid, Study
from sparsebench.training.config import RunConfig, check_setting_names, method_parameters, resolve, takes_sequence
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.workload import Recipe

__all__ = ["describe_methods", "plan_runs"]


def plan_runs(study: Study) -> list[RunConfig]:
    """Expand a study: every combination of each method's values, at every sparsity and seed.

    A list stands for alternatives; where the argument itself is a sequence (`thresholds`, `layers`), a list is one value and a
    list of lists stands for alternatives. A configuration that comes out twice is run once.

    Args:
        study: As read from its file.

    Returns:
        The configurations, replicates of a configuration apart by all others, so that an interrupted study has seen everything
        once.

    Raises:
        SparsebenchError: A method, field or value is wrong; the message names file, line and field.
    """
    try:
        WORKLOADS.get(study.workload)
    except SparsebenchError as error:
        raise SparsebenchError(f"{study.where('workload')}: {error}") from error
    try:
        check_setting_names(study.settings)
    except SparsebenchError as error:
        raise SparsebenchError(f"{study.where('settings')}: {error}") from error
    firsts: dict[str, RunConfig] = {}
    for grid in study.methods:
        for config in _resolved(study, grid):
            firsts.setdefault(config.run_id, config)
    # Nothing but the seed tells replicates apart.
    return [config.model_copy(update={"seed": seed}) for seed in study.seeds for config in firsts.values()]


def _resolved(study: Study, grid: MethodGrid) -> Iterator[RunConfig]:
    """A method's configurations, at the first seed."""
    for parameters, settings in _settings_of(study, grid):
        try:
            yield resolve(study.workload, grid.method, parameters, settings, study.seeds[0])
        except SparsebenchError as error:
            raise SparsebenchError(f"{study.source}, line {grid.line}: {grid.method}: {error}") from error


def _settings_of(study: Study, grid: MethodGrid) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """All combinations of a method's arguments and of the recipe's settings."""
    try:
        method = METHODS.get(grid.method)
    except SparsebenchError as error:
        raise SparsebenchError(f"{study.source}, line {grid.line}: {error}") from error
    known = method_parameters(method)
    axes: dict[str, list[Any]] = {}
    if "sparsity" in known and "sparsity" not in grid.values:
        if not study.sparsities:
            raise SparsebenchError(
                f"{study.source}, line {grid.line}: {grid.method} needs sparsities; add the field 'sparsities'"
            )
        axes["sparsity"] = list(study.sparsities)
    for name, value in (dict(study.settings) | dict(grid.values)).items():
        if name not in known and name not in Recipe.model_fields:
            fields = [*known, *Recipe.model_fields]
            raise SparsebenchError(
                f"{study.source}, line {grid.line}: unknown field {name!r} of {grid.method!r}{nearest(name, fields)}; "
                f"known: {', '.join(fields)}"
            )
        axes[name] = list(_alternatives(method, name, value))
        if not axes[name]:
            raise SparsebenchError(f"{study.source}, line {grid.line}: {name}: expected at least one value")
    combinations = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        parameters = {name: value for name, value in chosen.items() if name in known}
        combinations.append((parameters, {name: value for name, value in chosen.items() if name not in known}))
    return combinations


def _alternatives(method: Method, name: str, value: Any) -> Iterator[Any]:
    if not isinstance(value, list) or (takes_sequence(method, name) and not (value and isinstance(value[0], list))):
        yield value
    else:
        yield from value


def describe_methods(configs: Sequence[RunConfig]) -> Mapping[str, Mapping[str, str]]:
    """Summary and paper of every method in a plan, in order of appearance."""
    names = dict.fromkeys(config.method for config in configs)
    return {name: {"summary": METHODS.get(name).summary, "paper": METHODS.get(name).paper} for name in names}
