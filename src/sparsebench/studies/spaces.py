"""The space of a grid: what each field can be, and the configuration that one value for each stands for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.studies.grids import Continuous, combine, find_axes, where
from sparsebench.studies.study_file import MethodGrid, Study
from sparsebench.training.config import RunConfig, resolve, resolve_recipe
from sparsebench.workloads.workload import Recipe

__all__ = ["Space"]

_OTHERS = tuple(Recipe.model_fields)


class Space:
    """What a grid of a study's methods holds.

    Args:
        study: The study, of one workload.
        grid: One of its grids.

    Attributes:
        method: The method.
        axes: What each field can be, by name.

    Raises:
        SparsebenchError: A field or value is wrong; the message names file, line and field.
    """

    def __init__(self, study: Study, grid: MethodGrid) -> None:
        self.method = grid.method
        self.axes = find_axes(study, grid, study.settings, _OTHERS, study.sparsities)
        if isinstance(self.axes.get("sparsity"), Continuous):
            raise SparsebenchError(f"{where(study, grid)}: sparsity: expected a list, or a range with 'by' or 'values'")
        self._study, self._grid = study, grid
        self._recipes: dict[str, Recipe] = {}

    @property
    def continuous(self) -> tuple[str, ...]:
        """The fields that can be any number of a range."""
        return tuple(name for name, axis in self.axes.items() if isinstance(axis, Continuous))

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of values; of a range without steps its ends and a number between them."""
        listed = [_three(axis) if isinstance(axis, Continuous) else axis for axis in self.axes.values()]
        for values in itertools.product(*listed):
            yield dict(zip(self.axes, values, strict=True))

    def config(self, values: Mapping[str, Any]) -> RunConfig:
        """The configuration of one value for each field, at the study's first seed; thousands may share a recipe.

        Raises:
            SparsebenchError: The method or the recipe does not take it; the message names file, line and field.
        """
        parameters, settings = combine(self._study, self._grid, values, _OTHERS)
        study, method = self._study, self.method
        try:
            key = repr(settings)
            if key not in self._recipes:
                self._recipes[key] = resolve_recipe(study.workload, method, settings)
            return resolve(study.workload, method, parameters, self._recipes[key], study.seeds[0])
        except SparsebenchError as error:
            raise SparsebenchError(f"{where(study, self._grid)}: {method}: {error}") from error


def _three(axis: Continuous) -> list[float]:
    """The ends, and a number between them that is not whole: what takes only whole numbers is found out."""
    between = math.sqrt(axis.low * axis.high) if axis.log else (axis.low + axis.high) / 2.0
    return [axis.low, between + 0.0123 * (axis.high - between), axis.high]
