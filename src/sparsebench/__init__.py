"""Make PyTorch networks sparse while they train, and measure honestly what that costs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsebench.accounting import TrainingCost, report
    from sparsebench.errors import SparsebenchError
    from sparsebench.sparsifiers.distributed import verify_same_masks
    from sparsebench.sparsifiers.masked.engine import MaskedSparsifier
    from sparsebench.sparsifiers.masked.initialization import initialize_masks
    from sparsebench.sparsifiers.methods import (
        fixed_masks,
        freeze_masks,
        l0_regularization,
        magnitude_pruning,
        one_shot_pruning,
        random_pruning,
        variational_dropout,
    )
    from sparsebench.sparsifiers.rewinding import reinitialize, rewind
    from sparsebench.sparsifiers.sparse_training import rigl, set_training, snfs, static_sparse_training
    from sparsebench.sparsifiers.sparsifier import EvaluationPoint, Sparsifier

__all__ = [
    "EvaluationPoint",
    "MaskedSparsifier",
    "SparsebenchError",
    "Sparsifier",
    "TrainingCost",
    "fixed_masks",
    "freeze_masks",
    "initialize_masks",
    "l0_regularization",
    "magnitude_pruning",
    "one_shot_pruning",
    "random_pruning",
    "reinitialize",
    "report",
    "rewind",
    "rigl",
    "set_training",
    "snfs",
    "static_sparse_training",
    "variational_dropout",
    "verify_same_masks",
]

# Imported when first asked for: results are read, and the command line answers, without loading torch.
_HOMES = {
    "EvaluationPoint": "sparsebench.sparsifiers.sparsifier",
    "MaskedSparsifier": "sparsebench.sparsifiers.masked.engine",
    "SparsebenchError": "sparsebench.errors",
    "Sparsifier": "sparsebench.sparsifiers.sparsifier",
    "TrainingCost": "sparsebench.accounting",
    "fixed_masks": "sparsebench.sparsifiers.methods",
    "freeze_masks": "sparsebench.sparsifiers.methods",
    "initialize_masks": "sparsebench.sparsifiers.masked.initialization",
    "l0_regularization": "sparsebench.sparsifiers.methods",
    "magnitude_pruning": "sparsebench.sparsifiers.methods",
    "one_shot_pruning": "sparsebench.sparsifiers.methods",
    "random_pruning": "sparsebench.sparsifiers.methods",
    "reinitialize": "sparsebench.sparsifiers.rewinding",
    "report": "sparsebench.accounting",
    "rewind": "sparsebench.sparsifiers.rewinding",
    "rigl": "sparsebench.sparsifiers.sparse_training",
    "set_training": "sparsebench.sparsifiers.sparse_training",
    "snfs": "sparsebench.sparsifiers.sparse_training",
    "static_sparse_training": "sparsebench.sparsifiers.sparse_training",
    "variational_dropout": "sparsebench.sparsifiers.methods",
    "verify_same_masks": "sparsebench.sparsifiers.distributed",
}


# Parts that are used by their own names, `sparsebench.inference.compile_sparse` say.
_PARTS = ("accounting", "inference", "storage")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"sparsebench.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'sparsebench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
