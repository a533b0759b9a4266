"""The configuration of a run: validated, immutable, fully resolved, with an id that is a hash of it."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sparsebench.errors import SparsebenchError
from sparsebench.records.schema import canonical_json, short_hash
from sparsebench.registry import nearest
from sparsebench.sparsifiers.registry import METHODS, Method
from sparsebench.sparsifiers.sparsifier import Sparsifier
from sparsebench.sparsifiers.units import STEPS_UNIT, TIMES_ONE_OVER_N_UNIT
from sparsebench.training.times import to_steps
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.workload import Recipe, Workload

__all__ = ["RunConfig", "build_sparsifier", "method_parameters", "resolve", "takes_sequence"]

SEEDS = 2**63  # torch's generators take no larger ones


class RunConfig(BaseModel):
    """All that a run's numbers depend on, on a given machine.

    `parameters` are the method's arguments: times in steps, penalties in multiples of 1/N. Defaults are written out, so that a
    later default cannot change what an old configuration means.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    workload: str
    workload_revision: int
    method: str
    method_revision: int
    parameters: dict[str, Any]
    recipe: Recipe
    seed: Annotated[int, Field(ge=0, lt=SEEDS)]

    @property
    def run_id(self) -> str:
        """Sixteen hexadecimal digits that stand for this configuration and no other."""
        return short_hash(self.model_dump(mode="json"))

    @property
    def target_sparsity(self) -> float | None:
        """The sparsity that the method was asked for; None where it finds its own."""
        sparsity = self.parameters.get("sparsity")
        return None if sparsity is None else float(sparsity)


def method_parameters(method: Method) -> dict[str, inspect.Parameter]:
    """The arguments of a method that a study may set: all but the seed, which is the run's."""
    return {name: parameter for name, parameter in _signature(method.build).items() if name != "seed"}


def takes_sequence(method: Method, name: str) -> bool:
    """Whether an argument of a method is itself a sequence, so that a list is one value of it."""
    return _takes_sequence(method.build, name)


@functools.cache
def _takes_sequence(build: Callable[..., Sparsifier], name: str) -> bool:
    def is_sequence(hint: Any) -> bool:
        origin = typing.get_origin(hint)
        return origin in (Sequence, list, tuple) or (origin is not Mapping and any(map(is_sequence, typing.get_args(hint))))

    return is_sequence(_hints(build).get(name))


def resolve(
    workload: str, method: str, parameters: Mapping[str, Any], settings: Mapping[str, Any] | None = None, seed: int = 0
) -> RunConfig:
    """Make a run's configuration from what a person writes.

    Args:
        workload: Name of a workload.
        method: Name of a method.
        parameters: The method's arguments; times as fractions of training, "N steps" or "N epochs"; penalties in multiples of
        1/N.
        settings: Changes to the workload's reference recipe; `steps` also as "N epochs".
        seed: Seed of initial weights, data order and noise, in [0, 2**63).

    Raises:
        SparsebenchError: A name or value is wrong; the message names the field and what would be right.

    Example:
        >>> config = resolve("digits", "magnitude", {"sparsity": 0.9, "begin": "0.1", "end": 0.5, "frequency": "30 steps"})
        >>> config.parameters["begin"], config.parameters["end"], config.parameters["frequency"]
        (150, 750, 30)
    """
    entry, task = METHODS.get(method), WORKLOADS.get(workload)
    recipe = _resolve_recipe(task, entry, dict(settings or {}))
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise SparsebenchError(f"seed={seed!r}: expected an integer of at least 0 and below 2**63")
    config = RunConfig(
        workload=task.name,
        workload_revision=task.revision,
        method=entry.name,
        method_revision=entry.revision,
        parameters=_resolve_parameters(task, entry, parameters, recipe),
        recipe=recipe,
        seed=seed,
    )
    sparsifier = build_sparsifier(config)  # it checks ranges
    if _depends_on_layers(config):
        # Whether patterns match layers, and layers can have the structure, does not hang on when masks are updated.
        timeless = {name: value for name, value in config.parameters.items() if _units(entry.build).get(name) != STEPS_UNIT}
        kind = (task.name, task.revision, entry.build, canonical_json(timeless))
        if kind not in _CHECKED_LAYERS:
            with torch.random.fork_rng(devices=[]):
                sparsifier.prepare(task.build_model())
            _CHECKED_LAYERS.add(kind)
    return config


# Configurations whose layers were checked, by all that the check depends on: a study has thousands that are alike in this.
_CHECKED_LAYERS: set[tuple[str, int, Callable[..., Sparsifier], str]] = set()


def build_sparsifier(config: RunConfig) -> Sparsifier:
    """The sparsifier that a configuration describes.

    Raises:
        SparsebenchError: An argument is out of range, or method or workload are of another revision than the configuration.
    """
    entry, task = METHODS.get(config.method), WORKLOADS.get(config.workload)
    for kind, name, asked, here in (
        ("method", entry.name, config.method_revision, entry.revision),
        ("workload", task.name, config.workload_revision, task.revision),
    ):
        if asked != here:
            raise SparsebenchError(f"{kind} {name!r} has revision {here}, the configuration is of revision {asked}: make it anew")
    arguments = dict(config.parameters)
    for name, unit in _units(entry.build).items():
        if unit == TIMES_ONE_OVER_N_UNIT and arguments.get(name) is not None:
            arguments[name] /= task.training_examples
    if "seed" in _signature(entry.build):
        arguments["seed"] = config.seed
    return entry.build(**arguments)


def check_setting_names(names: Iterable[str]) -> None:
    """Refuse what is no setting of a recipe.

    Raises:
        SparsebenchError: The message names the first one, and what there is.
    """
    for name in names:
        if name not in Recipe.model_fields:
            raise SparsebenchError(
                f"unknown setting {name!r}{nearest(name, Recipe.model_fields)}; known: {', '.join(Recipe.model_fields)}"
            )


def _resolve_recipe(task: Workload, entry: Method, settings: dict[str, Any]) -> Recipe:
    check_setting_names(settings)
    for name, value in settings.items():
        if isinstance(value, bool):
            raise SparsebenchError(f"{name}={value!r}: expected a number or a name")
    if not entry.auxiliary:
        if settings.get("auxiliary_lr_scale") is not None:
            raise SparsebenchError(f"auxiliary_lr_scale: the method {entry.name!r} has no parameters of its own; leave it out")
        settings["auxiliary_lr_scale"] = None
    batch_size = settings.get("batch_size", task.recipe.batch_size)
    if isinstance(settings.get("steps"), str) and isinstance(batch_size, int) and batch_size > 0:
        settings["steps"] = to_steps("steps", settings["steps"], None, _steps_per_epoch(task, batch_size))
    recipe: Recipe = _validated("setting", lambda: Recipe.model_validate(task.recipe.model_dump() | settings))
    if recipe.batch_size > task.training_examples:
        raise SparsebenchError(f"batch_size={recipe.batch_size}: {task.name} has only {task.training_examples} training examples")
    return recipe


def _resolve_parameters(task: Workload, entry: Method, given: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    known = method_parameters(entry)
    for name in given:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise SparsebenchError(f"unknown parameter {name!r} of method {entry.name!r}{nearest(name, known)}; known: {listed}")
    values = {name: p.default for name, p in known.items() if p.default is not p.empty} | dict(entry.defaults) | dict(given)
    missing = [name for name in known if name not in values]
    if missing:
        raise SparsebenchError(f"method {entry.name!r} needs a value for {missing[0]!r}")
    units = _units(entry.build)
    steps_per_epoch = _steps_per_epoch(task, recipe.batch_size)
    resolved: dict[str, Any] = {}
    for name, value in values.items():
        if units.get(name) == STEPS_UNIT:
            explicit = name in given or name in entry.defaults
            steps = to_steps(name, value, recipe.steps, steps_per_epoch) if explicit else value
            if steps > recipe.steps:
                raise SparsebenchError(f"{name}={value!r} is {steps} steps, beyond the {recipe.steps} steps of the training")
            # An interval of no steps means nothing; a fraction too small for this training means every step.
            resolved[name] = max(steps, 1) if name == "frequency" else steps
        elif name == "layers" and callable(value):
            raise SparsebenchError("layers: expected name patterns; a function cannot be part of a configuration")
        else:
            adapter = _adapter(entry.build, name)
            checked = _validated(name, lambda adapter=adapter, value=value: adapter.validate_python(value))  # type: ignore[misc]
            _check_plain(name, value, checked, units.get(name))
            resolved[name] = adapter.dump_python(checked, mode="json")
    return {name: resolved[name] for name in known}


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


def _depends_on_layers(config: RunConfig) -> bool:
    given = config.parameters
    return (
        given.get("layers") is not None
        or isinstance(given.get("allocation"), Mapping)
        or given.get("structure", "element") != "element"
    )


def _validated(field: str, check: Callable[[], Any]) -> Any:
    try:
        return check()
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"] if isinstance(part, (str, int))) or field
        name = path if path.partition(".")[0] in Recipe.model_fields else field
        raise SparsebenchError(f"{name}={first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}") from error


def _steps_per_epoch(task: Workload, batch_size: int) -> int:
    return max(task.training_examples // batch_size, 1)


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
def _units(build: Callable[..., Sparsifier]) -> dict[str, str]:
    """Units of the arguments that have one, from their annotations."""
    hints = _hints(build)
    return {
        name: hint.__metadata__[0]
        for name, hint in hints.items()
        if typing.get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], str)
    }
