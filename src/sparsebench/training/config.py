"""The configuration of a run: validated, immutable, fully resolved, with an id that is a hash of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from typing_extensions import Self

from sparsebench.errors import SparsebenchError
from sparsebench.records.schema import canonical_json, canonical_json_with, configuration_hash, text_hash
from sparsebench.registry import nearest
from sparsebench.sparsifiers.inherited import Inherited
from sparsebench.sparsifiers.registry import METHODS, Method
from sparsebench.sparsifiers.sparsifier import Sparsifier
from sparsebench.sparsifiers.units import STEPS_UNIT, TIMES_ONE_OVER_N_UNIT
from sparsebench.training.arguments import (
    BEGINNING,
    INHERITED,
    argument_units,
    checked_argument,
    goes_on,
    method_arguments,
    method_parameters,
    remembered,
    step_parameters,
    takes_sequence,
    validated,
)
from sparsebench.training.averaging import default_interval
from sparsebench.training.first_batches import FirstBatches
from sparsebench.training.times import to_steps
from sparsebench.workloads.epochs import batches_per_epoch
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.workload import CountsSteps, Recipe, Workload, without_later_defaults

__all__ = [
    "KeptSchedule",
    "Parent",
    "RunConfig",
    "build_sparsifier",
    "goes_on",
    "method_arguments",
    "method_parameters",
    "resolve",
    "resolve_parameters",
    "resolve_recipe",
    "step_parameters",
    "steps_per_epoch",
    "takes_sequence",
]

SEEDS = 2**63  # torch's generators take no larger ones


class Parent(BaseModel):
    """The finished run from which another takes its masks, and its weights where the method says so.

    Attributes:
        run_id: Its id.
        configuration: Hash of its configuration without its seed: runs whose parents are replicates are replicates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    configuration: str


class KeptSchedule(BaseModel):
    """How a run that is longer than its parent goes by the parent's learning rates.

    Attributes:
        variant: "constant-decay-points", "constant-final-rate" or "continued-decay"; see `training.longer_training`.
        steps: Steps of the parent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Literal["constant-decay-points", "constant-final-rate", "continued-decay"]
    steps: Annotated[int, Field(ge=1)]


class RunConfig(BaseModel):
    """All that a run's numbers depend on, on a given machine.

    `parameters` are the method's arguments: times in steps, penalties in multiples of 1/N. Defaults are written out, so that a
    later default cannot change what an old configuration means. `parent` is None where the run begins by itself;
    `keep_weights_at` is a step whose weights are kept for lottery tickets, None for none; `kept_schedule` is None where the
    learning rate's schedule spans the run.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"parent", "keep_weights_at", "kept_schedule"})  # came after format 1

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    workload: str
    workload_revision: int
    method: str
    method_revision: int
    parameters: dict[str, Any]
    recipe: Recipe
    seed: Annotated[int, Field(ge=0, lt=SEEDS)]
    parent: Parent | None = None
    keep_weights_at: Annotated[int, Field(ge=1)] | None = None
    kept_schedule: KeptSchedule | None = None

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A field that came later is left out where it has its default, so that configurations keep their ids."""
        return without_later_defaults(type(self), self.LATER, handler(self))

    @functools.cached_property
    def run_id(self) -> str:
        """Sixteen hexadecimal digits that stand for this configuration and no other."""
        fields = {name: self.__dict__[name] for name in _FIELDS}
        told = without_later_defaults(RunConfig, self.LATER, fields)
        plain = {name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for name, value in told.items()}
        return text_hash(canonical_json_with(plain, "recipe", _recipe_text(self.recipe)))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with changes; its id is its own."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("run_id", None)
        return copied

    @property
    def configuration(self) -> str:
        """The hash that replicates of this configuration share."""
        return configuration_hash(self.model_dump(mode="json"))

    @property
    def target_sparsity(self) -> float | None:
        """The sparsity that the method was asked for; None where it finds its own."""
        sparsity = self.parameters.get("sparsity")
        return None if sparsity is None else float(sparsity)


_FIELDS = tuple(name for name in RunConfig.model_fields if name != "recipe")

# By identity: recipes that are equal may hold 0.0 and -0.0.
_RECIPE_TEXTS: dict[int, tuple[Recipe, str]] = {}


def _recipe_text(recipe: Recipe) -> str:
    """The canonical JSON of a recipe, which thousands of configurations may share."""
    return remembered(_RECIPE_TEXTS, id(recipe), lambda: (recipe, canonical_json(recipe.model_dump(mode="json"))))[1]


def resolve(
    workload: str, method: str, parameters: Mapping[str, Any], settings: Mapping[str, Any] | Recipe | None = None, seed: int = 0
) -> RunConfig:
    """Make a run's configuration from what a person writes.

    Args:
        workload: Name of a workload.
        method: Name of a method.
        parameters: The method's arguments; times as fractions of training, "N steps" or "N epochs"; penalties in multiples of
        1/N.
        settings: Changes to the workload's reference recipe; `steps` also as "N epochs". Or what `resolve_recipe` made of them.
        seed: Seed of initial weights, data order and noise, in [0, 2**63).

    Raises:
        SparsebenchError: A name or value is wrong; the message names the field and what would be right.

    Example:
        >>> config = resolve("digits", "magnitude", {"sparsity": 0.9, "begin": "0.1", "end": 0.5, "frequency": "30 steps"})
        >>> config.parameters["begin"], config.parameters["end"], config.parameters["frequency"]
        (150, 750, 30)
    """
    entry, task = METHODS.get(method), WORKLOADS.get(workload)
    if goes_on(entry):
        raise SparsebenchError(
            f"method {method!r} goes on from a finished run: a stage of a study trains it, see docs/studies.md"
        )
    recipe = settings if isinstance(settings, Recipe) else resolve_recipe(workload, method, settings or {})
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise SparsebenchError(f"seed={seed!r}: expected an integer of at least 0 and below 2**63")
    config = RunConfig(
        workload=task.name,
        workload_revision=task.revision,
        method=entry.name,
        method_revision=entry.revision,
        parameters=resolve_parameters(task, entry, parameters, recipe),
        recipe=recipe,
        seed=seed,
    )
    sparsifier = build_sparsifier(config)  # it checks ranges
    if _depends_on_layers(config):
        # Whether patterns match layers, and layers can have the structure, does not hang on when masks are updated.
        timeless = {
            name: value for name, value in config.parameters.items() if argument_units(entry.build).get(name) != STEPS_UNIT
        }
        kind = (task.name, task.revision, entry.build, canonical_json(timeless))
        if kind not in _CHECKED_LAYERS:
            with torch.random.fork_rng(devices=[]):
                sparsifier.prepare(task.build_model())
            _CHECKED_LAYERS.add(kind)
    return config


# Configurations whose layers were checked, by all that the check depends on: a study has thousands that are alike in this.
_CHECKED_LAYERS: set[tuple[str, int, Callable[..., Sparsifier], str]] = set()


def build_sparsifier(config: RunConfig, inherited: Inherited | None = None) -> Sparsifier:
    """The sparsifier that a configuration describes.

    Args:
        config: The configuration.
        inherited: What a run with a parent takes from it; the weights of its network are set here.

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
    for name, unit in argument_units(entry.build).items():
        if unit == TIMES_ONE_OVER_N_UNIT and arguments.get(name) is not None:
            arguments[name] /= task.training_examples
    if "seed" in method_arguments(entry):
        arguments["seed"] = config.seed
    if goes_on(entry):
        arguments[INHERITED] = inherited
    if BEGINNING in method_arguments(entry):
        arguments[BEGINNING] = FirstBatches(task, config.seed, config.recipe)
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


def resolve_recipe(workload: str, method: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a workload with changes, for a method.

    Raises:
        SparsebenchError: A name or value is wrong.

    Example:
        >>> resolve_recipe("digits", "dense", {"steps": "3 epochs"}).steps
        201
    """
    entry, task, settings = METHODS.get(method), WORKLOADS.get(workload), dict(settings)
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
        settings["steps"] = to_steps("steps", settings["steps"], None, steps_per_epoch(task, batch_size))
    recipe: Recipe = validated("setting", lambda: Recipe.model_validate(task.recipe.model_dump() | settings))
    if recipe.averaged_checkpoints > 1 and "averaging_interval" not in recipe.model_fields_set:
        recipe = recipe.model_copy(update={"averaging_interval": default_interval(recipe)})
    if isinstance(task, CountsSteps):
        task.steps_per_epoch(recipe.batch_size)  # it checks that there are such batches
    elif recipe.batch_size > task.training_examples:
        raise SparsebenchError(f"batch_size={recipe.batch_size}: {task.name} has only {task.training_examples} training examples")
    return recipe


def resolve_parameters(task: Workload, entry: Method, given: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A method's arguments with its defaults, times in steps, checked one by one.

    Raises:
        SparsebenchError: A name or value is wrong, or a value is missing.
    """
    known = method_parameters(entry)
    for name in given:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise SparsebenchError(f"unknown parameter {name!r} of method {entry.name!r}{nearest(name, known)}; known: {listed}")
    values = {name: p.default for name, p in known.items() if p.default is not p.empty} | dict(entry.defaults) | dict(given)
    missing = [name for name in known if name not in values]
    if missing:
        raise SparsebenchError(f"method {entry.name!r} needs a value for {missing[0]!r}")
    units = argument_units(entry.build)
    epoch = steps_per_epoch(task, recipe.batch_size)
    resolved: dict[str, Any] = {}
    for name, value in values.items():
        if units.get(name) == STEPS_UNIT:
            explicit = name in given or name in entry.defaults
            steps = to_steps(name, value, recipe.steps, epoch) if explicit else value
            if steps > recipe.steps:
                raise SparsebenchError(f"{name}={value!r} is {steps} steps, beyond the {recipe.steps} steps of the training")
            # An interval of no steps means nothing; a fraction too small for this training means every step.
            resolved[name] = max(steps, 1) if name == "frequency" else steps
        elif name == "layers" and callable(value):
            raise SparsebenchError("layers: expected name patterns; a function cannot be part of a configuration")
        else:
            resolved[name] = checked_argument(entry.build, name, value)
    return {name: resolved[name] for name in known}


def _depends_on_layers(config: RunConfig) -> bool:
    given = config.parameters
    return (
        given.get("layers") is not None
        or isinstance(given.get("allocation"), Mapping)
        or given.get("structure", "element") != "element"
    )


def steps_per_epoch(task: Workload, batch_size: int) -> int:
    """Steps of one pass over the training set, at least 1."""
    if _counts_steps(type(task)):
        return cast(CountsSteps, task).steps_per_epoch(batch_size)
    return batches_per_epoch(task.training_examples, batch_size)


@functools.cache
def _counts_steps(kind: type[Workload]) -> bool:
    return issubclass(kind, CountsSteps)
