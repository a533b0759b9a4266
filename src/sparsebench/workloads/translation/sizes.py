"""The same text with a Transformer of another size."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

from sparsebench.errors import SparsebenchError
from sparsebench.registry import nearest
from sparsebench.workloads.recipes import reference_recipes
from sparsebench.workloads.translation.transformer import SIZES
from sparsebench.workloads.translation.translation import Translation
from sparsebench.workloads.workload import Recipe

__all__ = ["RECIPES", "check_size", "recipe_of_size", "sizes_of"]

RECIPES = reference_recipes("sparsebench.workloads.translation")


def check_size(workload: str, size: str) -> None:
    """Refuse what is no size.

    Raises:
        SparsebenchError: The message names the workload and the sizes.
    """
    if size not in SIZES:
        raise SparsebenchError(f"{workload}: unknown size {size!r}{nearest(size, SIZES)}; expected {', '.join(SIZES)}")


def recipe_of_size(name: str, own: str, size: str) -> tuple[int, Recipe]:
    """The recipe of a workload for a size of the network, and its revision.

    It is the one that recipes.yaml has for it; or that of the workload's own size, its learning rate multiplied by the root of
    (own width / width), as the rate of Vaswani et al. 2017 (arXiv 1706.03762, eq. 3) depends on the width.

    Args:
        name: The workload's in recipes.yaml.
        own: The size that its recipe is for.
        size: The size that is asked for.

    Example:
        >>> recipe_of_size("multi30k", "small", "base")[1].learning_rate
        0.0015
    """
    if (published := RECIPES.get(f"{name}/{size}")) is not None:
        return published.revision, published.recipe()
    reference = RECIPES[name]
    recipe = reference.recipe()
    factor = math.sqrt(SIZES[own].width / SIZES[size].width)
    return reference.revision, recipe.model_copy(update={"learning_rate": recipe.learning_rate * factor})


def sizes_of(workload: Translation) -> Callable[[str], Translation]:
    """What gives a named workload with a network of a size, called `NAME/SIZE`; the workload itself for its own size.

    Raises:
        SparsebenchError: Where it is asked for what is no size.
    """
    own = next(name for name, size in SIZES.items() if size == workload.size)

    @functools.cache
    def of_size(size: str) -> Translation:
        name = f"{workload.name}/{size}"
        check_size(name, size)
        if size == own:
            return workload
        revision, recipe = recipe_of_size(workload.name, own, size)
        return dataclasses.replace(
            workload,
            name=name,
            summary=f"{workload.name} with the {size} Transformer",
            code_revision=revision,
            recipe=recipe,
            size=SIZES[size],
        )

    return of_size
