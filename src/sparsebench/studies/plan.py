"""From a study to the configurations of its runs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.studies.grids import listed_axes
from sparsebench.studies.spaces import Space
from sparsebench.studies.stages import check_stages
from sparsebench.studies.study_file import Study
from sparsebench.training.config import RunConfig, check_setting_names
from sparsebench.workloads.registry import WORKLOADS

__all__ = ["describe_methods", "plan_runs"]


def plan_runs(study: Study) -> list[RunConfig]:
    """Expand the grid of a study: every combination of each method's values, at every sparsity and seed.

    `studies.grids` says what a field can hold. A configuration that comes out twice is run once. Of a study with a budget some
    are left out (`_drawn`). What later stages are to run depends on results (`studies.stages`); what can be wrong with them is
    looked at here. So does what a search proposes (`studies.search`): of a study with one, all that it may propose is looked at,
    ranges at their ends and between them, and nothing is planned.

    Args:
        study: As read from its file, with one workload.

    Returns:
        The configurations, replicates of a configuration apart by all others, so that an interrupted study has seen everything
        once; none where the study has a search.

    Raises:
        SparsebenchError: A method, field or value is wrong; the message names file, line and field.
    """
    try:
        WORKLOADS.get(study.workload)
    except SparsebenchError as error:
        field = "workloads" if "workloads" in study.lines else "workload"
        raise SparsebenchError(f"{study.where(field)}: {error}") from error
    try:
        check_setting_names(study.settings)
    except SparsebenchError as error:
        raise SparsebenchError(f"{study.where('settings')}: {error}") from error
    firsts: dict[str, RunConfig] = {}
    for grid in study.methods:
        space = Space(study, grid)
        if study.search is None:
            listed_axes(study, grid, space.axes)
        for values in space.combinations():
            config = space.config(values)
            firsts.setdefault(config.run_id, config)
    check_stages(study, list(firsts.values()))
    if study.search is not None:
        return []
    drawn = list(firsts.values()) if study.budget is None else _drawn(firsts, study.budget)
    # Nothing but the seed tells replicates apart.
    replicates = [[config.model_copy(update={"seed": seed}) for config in drawn] for seed in study.seeds[1:]]
    return [*drawn, *itertools.chain.from_iterable(replicates)]


def _drawn(configs: Mapping[str, RunConfig], budget: int) -> list[RunConfig]:
    """A random search: at most so many configurations of each method, by their ids, which are as good as a lot.

    Of a method that is trained at several sparsities there are equally many at each, or one more at lower ones.
    """
    groups: dict[tuple[str, float | None], list[str]] = defaultdict(list)
    for run_id, config in sorted(configs.items()):
        groups[config.method, config.target_sparsity].append(run_id)
    methods: dict[str, list[list[str]]] = defaultdict(list)
    for (method, _), ids in sorted(groups.items(), key=lambda group: group[0][1] or 0.0):
        methods[method].append(ids)
    drawn = {run_id for columns in methods.values() for run_id in _row_by_row(columns, budget)}
    return [config for run_id, config in configs.items() if run_id in drawn]


def _row_by_row(columns: Iterable[Sequence[str]], most: int) -> list[str]:
    cells = (cell for row in itertools.zip_longest(*columns) for cell in row if cell is not None)
    return list(itertools.islice(cells, most))


def describe_methods(configs: Sequence[RunConfig]) -> Mapping[str, Mapping[str, str]]:
    """Summary and paper of every method in a plan, in order of appearance."""
    names = dict.fromkeys(config.method for config in configs)
    return {name: {"summary": METHODS.get(name).summary, "paper": METHODS.get(name).paper} for name in names}
