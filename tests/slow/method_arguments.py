"""Arguments with which every method drops 80 % of a network, or learns to, within two steps."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebench.sparsifiers.at_initialization import Beginning
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.training.arguments import BEGINNING
from sparsebench.training.config import goes_on, method_arguments

__all__ = ["LEARNING", "arguments_of", "every_method"]

SPARSITY = {"sparsity": 0.8}
GRADUAL = SPARSITY | {"begin": 0, "end": 1, "frequency": 1}
LEARNED = {"penalty": 1e-7, "begin": 0, "end": 1}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "static": SPARSITY,
    "snip": SPARSITY,
    "grasp": SPARSITY,
    "synflow": SPARSITY,
    "magnitude-one-shot": SPARSITY | {"step": 1},
    "variational-dropout": LEARNED | {"thresholds": [0.0]},
    "l0": LEARNED,
}
LEARNING = ("variational-dropout", "l0")

every_method = pytest.mark.parametrize("method", [method.name for method in METHODS if not goes_on(method)])


def arguments_of(method: str, beginning: Beginning) -> dict[str, Any]:
    """What a registered method is built with, the loss and first batches included where it looks at them."""
    arguments = ARGUMENTS.get(method, GRADUAL | ({"structure": "block:4x4"} if method.endswith("structured") else {}))
    return arguments | ({BEGINNING: beginning} if BEGINNING in method_arguments(METHODS.get(method)) else {})
