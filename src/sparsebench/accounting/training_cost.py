"""What a training costs: the integral of the multiply-adds over its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sparsebench.accounting.report import report
from sparsebench.errors import SparsebenchError

__all__ = ["DENSE_WORK", "TrainingCost"]

# Forward pass, gradient of the input, gradient of the weight.
DENSE_WORK = 3.0


class TrainingCost:
    """Multiply-adds of a training, added up step by step, so that methods can be compared at equal cost.

    The convention is that of Evci et al. 2020 (RigL, arXiv 1911.11134, appendix H): a step costs each weight one multiply-add per
    position in the forward pass and two in the backward pass, on hardware that skips every zero weight. It is theoretical:
    dense kernels skip nothing. Optimizer, activations and attention scores are not counted.

    Args:
        forward: For each weight, by parameter name, the multiply-adds of a dense forward pass for one example.

    Example:
        >>> import sparsebench, torch
        >>> model = nn.Linear(10, 10)
        >>> cost = TrainingCost.of(model, torch.ones(1, 10))
        >>> sparsifier = sparsebench.random_pruning(sparsity=0.9, begin=0, end=0, frequency=1)
        >>> sparsifier.prepare(model)
        >>> cost.add_step(sparsifier.training_work(), examples=32)
        >>> cost.multiply_adds, cost.dense_multiply_adds
        (960.0, 9600.0)
    """

    def __init__(self, forward: Mapping[str, float]) -> None:
        self._forward = dict(forward)
        self._dense_step = DENSE_WORK * sum(self._forward.values())
        self.multiply_adds = 0.0
        self.dense_multiply_adds = 0.0

    @classmethod
    def of(cls, model: nn.Module, example_input: Any, examples: int = 1) -> TrainingCost:
        """The cost of training a network, which is run once and left as it was.

        Args:
            model: The network, before or after `prepare`.
            example_input: What the model is called with, as in `report`.
            examples: How many examples that input holds, at least 1.

        Raises:
            SparsebenchError: `examples` is below 1.
        """
        if examples < 1:
            raise SparsebenchError(f"examples={examples}: expected the number of examples in the input, at least 1")
        return cls({row.name: (row.multiply_adds or 0) / examples for row in report(model, example_input).layers})

    @property
    def relative(self) -> float:
        """Cost so far as a multiple of the dense training's; 1 before the first step."""
        return self.multiply_adds / self.dense_multiply_adds if self.dense_multiply_adds else 1.0

    def add_step(self, work: Mapping[str, float], examples: int) -> None:
        """Add one training step.

        Args:
            work: For each weight, by parameter name, the multiply-adds of the step as a multiple of a dense forward pass's: what
                `Sparsifier.training_work` gives. Weights that are not named are dense.
            examples: Examples in the step's batch.
        """
        saved = sum((DENSE_WORK - multiple) * self._forward.get(name, 0.0) for name, multiple in work.items())
        self.multiply_adds += examples * (self._dense_step - saved)
        self.dense_multiply_adds += examples * self._dense_step

    def state_dict(self) -> dict[str, float]:
        """The sums so far."""
        return {"multiply_adds": self.multiply_adds, "dense_multiply_adds": self.dense_multiply_adds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from saved sums."""
        self.multiply_adds, self.dense_multiply_adds = state["multiply_adds"], state["dense_multiply_adds"]
