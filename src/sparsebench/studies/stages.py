"""Stages of a study: runs that the results of earlier ones decide, as a function of these results and of nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sparsebench.errors import SparsebenchError
from sparsebench.records.choice import DENSE, best_candidate
from sparsebench.records.schema import PointRecord, RunRecord
from sparsebench.registry import nearest
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.studies.grids import combinations, find_method, where
from sparsebench.studies.study_file import GRID, MethodGrid, Stage, Study
from sparsebench.training.child_config import keeping_weights, resolve_child, steps_for_dense_arithmetic
from sparsebench.training.config import RunConfig, goes_on, method_parameters
from sparsebench.workloads.workload import Recipe

__all__ = ["check_stages", "plan_stage"]

SCRATCH_B = "scratch-b"  # the one method whose length depends on the cost of the network that it goes on from
SCHEDULE = "schedule"


@dataclass(frozen=True)
class _Choice:
    """A configuration at one threshold over its seeds, as `records.choice` compares them.

    `runs` are its runs, in order of their seeds; `longest` the steps in which its network takes a dense training's arithmetic.
    """

    configuration: str
    target_sparsity: float | None
    threshold: float | None
    seeds: tuple[int, ...]
    sparsity: float
    validation: float
    runs: tuple[RunConfig, ...]
    longest: int


def check_stages(study: Study, grid: Sequence[RunConfig]) -> None:
    """Find what is wrong with a study's stages before anything runs.

    Args:
        study: The study.
        grid: Configurations of its grid.

    Raises:
        SparsebenchError: A method, field or value of a stage is wrong; the message names file, line and field.
    """
    there: dict[str, list[RunConfig]] = {GRID: list(grid)}
    for stage in study.stages:
        # One run stands for all whose times and schedules mean the same: what goes on from a run depends on no more of it.
        alike = {(config.method, *_timing(config.recipe), config.keep_weights_at): config for config in there[stage.of]}
        known = dict.fromkeys(config.method for config in alike.values())
        for name in stage.take:
            if name not in known:
                raise SparsebenchError(
                    f"{_place(study, stage, 'take')}={name!r}: the stage {stage.of!r} has no such method{nearest(name, known)}; "
                    f"it has {', '.join(known)}"
                )
        taken = [config for config in alike.values() if not stage.take or config.method in stage.take]
        if stage.methods and len({config.method for config in taken}) != 1:
            raise SparsebenchError(
                f"{_place(study, stage, 'take')}: expected the method whose networks are gone on from, one of {', '.join(known)}"
            )
        if not study.sparsities and any(config.method != DENSE for config in taken):
            raise SparsebenchError(
                f"{_place(study, stage, 'of')}: the best of {stage.of!r} is chosen at every sparsity; add the field 'sparsities'"
            )
        there[stage.name] = []
        for config in taken:
            if not stage.methods:
                there[stage.name].append(_replicate(study, stage, config))
            for method in stage.methods:
                there[stage.name] += _children(study, method, config, 2 * config.recipe.steps)


def plan_stage(
    study: Study, stage: Stage, earlier: Iterable[RunConfig], result: Callable[[str], RunRecord | None]
) -> list[RunConfig]:
    """The runs of a stage, once those of the stage that it depends on have ended.

    Args:
        study: The study.
        stage: The stage.
        earlier: The runs of the stage `stage.of`.
        result: Gives the record of a run, None where it failed.

    Returns:
        The configurations, each once, parents before those that go on from them.
    """
    chosen = list(_chosen(study, stage, earlier, result))
    planned: dict[str, RunConfig] = {}
    if not stage.methods:
        for seed in study.seeds if stage.seeds is None else stage.seeds:
            for choice in chosen:
                config = _replicate(study, stage, choice.runs[0]).model_copy(update={"seed": seed})
                planned.setdefault(config.run_id, config)
    for grid in stage.methods:
        for choice in chosen[:1] if _goes_in_rounds(study, grid) else chosen:
            for run in choice.runs:
                for config in _children(study, grid, run, choice.longest):
                    planned.setdefault(config.run_id, config)
    return list(planned.values())


def _chosen(
    study: Study, stage: Stage, earlier: Iterable[RunConfig], result: Callable[[str], RunRecord | None]
) -> Iterator[_Choice]:
    """The best configuration of each method at every sparsity; one that is the best at several comes several times."""
    groups: dict[tuple[str, str, float | None, float | None], list[tuple[RunConfig, RunRecord, PointRecord]]] = defaultdict(list)
    for config in earlier:
        record = result(config.run_id) if not stage.take or config.method in stage.take else None
        if record is not None:
            # What is gone on from is the network that the run left, that of its first point.
            for point in record.points[:1] if stage.methods else record.points:
                key = (config.method, config.configuration, point.target_sparsity, point.threshold)
                groups[key].append((config, record, point))
    by_method: dict[str, list[_Choice]] = defaultdict(list)
    for (method, *_), own in groups.items():
        by_method[method].append(_over_seeds(sorted(own, key=lambda each: each[0].seed)))
    for method, choices in by_method.items():
        for sparsity in (0.0,) if method == DENSE else study.sparsities:
            best = best_candidate(choices, sparsity)
            if best is not None:
                yield best


def _over_seeds(own: Sequence[tuple[RunConfig, RunRecord, PointRecord]]) -> _Choice:
    first, _, point = own[0]
    dense = sum(record.dense_multiply_adds or 0 for _, record, _ in own)
    sparse = sum(point.multiply_adds or 0 for _, _, point in own)
    return _Choice(
        configuration=first.configuration,
        target_sparsity=point.target_sparsity,
        threshold=point.threshold,
        seeds=tuple(config.seed for config, _, _ in own),
        sparsity=sum(point.sparsity for _, _, point in own) / len(own),
        validation=sum(point.metrics["validation"][record.metric] for _, record, point in own) / len(own),
        runs=tuple(config for config, _, _ in own),
        longest=steps_for_dense_arithmetic(first.recipe.steps, dense, sparse),
    )


def _children(study: Study, grid: MethodGrid, run: RunConfig, longest: int) -> Iterator[RunConfig]:
    """What goes on from a run, of one grid; the rounds of a method that goes in rounds each from the one before."""
    method, place = find_method(study, grid), where(study, grid)
    if not goes_on(method):
        raise SparsebenchError(
            f"{place}: {grid.method} does not go on from a finished run; expected one of "
            f"{', '.join(known.name for known in METHODS if goes_on(known))}"
        )
    rounds = _goes_in_rounds(study, grid)
    if rounds and "sparsity" in grid.values:
        raise SparsebenchError(
            f"{place}: sparsity: {grid.method} goes through the study's sparsities, round by round; leave it out"
        )
    if rounds and not study.sparsities:
        raise SparsebenchError(f"{place}: {grid.method} needs sparsities; add the field 'sparsities'")
    is_longer = grid.method == SCRATCH_B
    for parameters, other in combinations(study, grid, {}, (SCHEDULE,) if is_longer else (), None):
        parent = run
        for sparsity in study.sparsities if rounds else (None,):
            own = parameters if sparsity is None else parameters | {"sparsity": sparsity}
            try:
                child = resolve_child(
                    parent, grid.method, own, steps=longest if is_longer else None, schedule=other.get(SCHEDULE, "stretched")
                )
            except SparsebenchError as error:
                raise SparsebenchError(f"{place}: {grid.method}: {error}") from error
            back_to = child.parameters.get("rewind_to", 0)
            if back_to not in (0, run.keep_weights_at):
                raise SparsebenchError(
                    f"{place}: {grid.method}: rewind_to={parameters['rewind_to']!r} is step {back_to}, of which no weights are "
                    f"kept: give keep_weights_at={parameters['rewind_to']!r} to the stage whose networks are gone on from"
                )
            yield child
            parent = child


def _goes_in_rounds(study: Study, grid: MethodGrid) -> bool:
    return "sparsity" in method_parameters(find_method(study, grid))


def _replicate(study: Study, stage: Stage, config: RunConfig) -> RunConfig:
    if stage.keep_weights_at is None:
        return config
    try:
        return keeping_weights(config, stage.keep_weights_at)
    except SparsebenchError as error:
        line = stage.lines["keep_weights_at"]
        raise SparsebenchError(f"{study.source}, line {line}: stage {stage.name!r}: {error}") from error


def _timing(recipe: Recipe) -> tuple[object, ...]:
    return recipe.steps, recipe.batch_size, recipe.learning_rate_schedule


def _place(study: Study, stage: Stage, field: str) -> str:
    """File, line, stage and field, as messages name them."""
    return f"{study.source}, line {stage.lines.get(field, stage.line)}: stage {stage.name!r}: {field}"
