"""Reference recipes, read from recipes.yaml."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from sparsebench.workloads.epochs import batches_per_epoch
from sparsebench.workloads.workload import Recipe

__all__ = ["ReferenceRecipe", "reference_recipe"]


@dataclass(frozen=True)
class ReferenceRecipe:
    """A recipe as somebody published it, or as we found it.

    Attributes:
        revision: Raised when the recipe changes.
        settings: Fields of `Recipe`; lengths may stand in epochs.
        published: Dense test accuracy in per cent, by workload.
        source: Where both stand; empty where the recipe is ours.
        augmented: Whether training images are moved and mirrored as the set allows.
    """

    revision: int
    settings: dict[str, Any]
    published: dict[str, float]
    source: str
    augmented: bool

    def recipe(self, training_examples: int) -> Recipe:
        """The recipe for so many training images."""
        settings = dict(self.settings)
        epoch = batches_per_epoch(training_examples, settings["batch_size"])
        for length in ("", "warmup_"):
            if (epochs := settings.pop(f"{length}epochs", None)) is not None:
                settings[f"{length}steps"] = round(epochs * epoch)
        return Recipe.model_validate(settings)


@functools.cache
def reference_recipe(name: str) -> ReferenceRecipe:
    """A recipe of recipes.yaml.

    Example:
        >>> reference_recipe("resnet-cifar").recipe(45_000).milestones
        (0.5, 0.75)
    """
    entry = yaml.safe_load((files(__package__) / "recipes.yaml").read_text(encoding="utf-8"))[name]
    return ReferenceRecipe(
        revision=entry["revision"],
        settings=entry["recipe"],
        published=entry.get("published", {}),
        source=entry.get("source", ""),
        augmented=entry.get("augmented", True),
    )
