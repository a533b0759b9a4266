"""Reference recipes as data: the file recipes.yaml beside the code of a family of workloads."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from sparsebench.workloads.epochs import batches_per_epoch
from sparsebench.workloads.workload import Recipe

__all__ = ["ReferenceRecipe", "reference_recipes"]


@dataclass(frozen=True)
class ReferenceRecipe:
    """A recipe as somebody published it, or as we found it.

    Attributes:
        revision: Raised when the recipe changes.
        settings: Fields of `Recipe`; lengths may stand in epochs.
        published: Dense results on the test split in the workload's metric, by workload.
        source: Where both stand; empty where the recipe is ours.
        augmented: Whether training images are moved and mirrored as the set allows.
    """

    revision: int
    settings: dict[str, Any]
    published: dict[str, float]
    source: str
    augmented: bool

    def recipe(self, training_examples: int = 0) -> Recipe:
        """The recipe for so many training examples; the number matters only where lengths stand in epochs of examples."""
        settings = dict(self.settings)
        epoch = batches_per_epoch(training_examples, settings["batch_size"])
        for length in ("", "warmup_"):
            if (epochs := settings.pop(f"{length}epochs", None)) is not None:
                settings[f"{length}steps"] = round(epochs * epoch)
        return Recipe.model_validate(settings)


@functools.cache
def reference_recipes(package: str) -> dict[str, ReferenceRecipe]:
    """The recipes of a package's recipes.yaml, by name.

    Example:
        >>> reference_recipes("sparsebench.workloads.images")["resnet-cifar"].recipe(45_000).milestones
        (0.5, 0.75)
    """
    entries = yaml.safe_load((files(package) / "recipes.yaml").read_text(encoding="utf-8"))
    return {
        name: ReferenceRecipe(
            revision=entry["revision"],
            settings=entry["recipe"],
            published=entry.get("published", {}),
            source=entry.get("source", ""),
            augmented=entry.get("augmented", True),
        )
        for name, entry in entries.items()
    }
