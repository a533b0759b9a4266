"""What runs sparse and what dense, as measured, and how it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["Choices", "Inputs", "LayerChoice", "Seen", "least_times", "least_times_of", "take_turns"]

# A sparse layer must take less than this part of the dense one's time: what is nearer is not resolved, and dense is then the
# safer one.
MARGIN = 0.9
# Rounds in turns: at most so many, and after this time, in seconds, no more than the least number.
MOST_ROUNDS, LEAST_ROUNDS, ENOUGH = 50, 7, 0.05


class Seen(NamedTuple):
    """A kind of input that a layer got, without its numbers.

    Attributes:
        shape: Of the tensor.
        stride: Of the tensor, in elements.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Seen:
        """That of a tensor."""
        return cls(tuple(tensor.shape), tensor.stride())

    def random(self) -> Tensor:
        """Normal random numbers, laid out so."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return torch.randn(max(extent, 0), dtype=torch.float32).as_strided(self.shape, self.stride)


class LayerChoice(NamedTuple):
    """How one layer, or a chain of several, runs.

    Attributes:
        name: Of the layer in the network, those of all that run as one with it joined by " + ".
        sparse: Whether it runs sparse.
        weights: Number of weights, zeros included.
        sparsity: Fraction of zeros in them.
        inputs: Shapes of what it got from the example, those timed.
        dense_ms: Least time of the dense layer for all its calls in one run of the example, in milliseconds; of a chain, that of
            its layers as each was chosen. None if not timed.
        sparse_ms: The same of the sparse one.
        reason: Why nothing was timed; empty where it was.
    """

    name: str
    sparse: bool
    weights: int
    sparsity: float
    inputs: tuple[tuple[int, ...], ...]
    dense_ms: float | None
    sparse_ms: float | None
    reason: str


class Choices(tuple[LayerChoice, ...]):
    """The choices for all layers with a weight that could run sparse; prints as a table.

    Example:
        >>> from sparsebench.inference.choices import Choices, LayerChoice
        >>> print(Choices([LayerChoice("fc", True, 1000, 0.9, ((1, 10),), 0.5, 0.1, "")]))
        layer  runs    weights  sparsity  dense ms  sparse ms  input
        fc     sparse    1,000     0.900     0.500      0.100  1x10
    """

    def layers(self) -> dict[str, bool]:
        """By the name of each layer, whether it runs sparse, by itself or in a chain.

        Example:
            >>> from sparsebench.inference.choices import Choices, LayerChoice
            >>> alone = LayerChoice("fc", False, 1000, 0.9, ((1, 10),), 0.5, 0.6, "")
            >>> Choices([alone, alone._replace(name="fc + relu", sparse=True)]).layers()
            {'fc': True}
        """
        found: dict[str, bool] = {}
        for choice in self:
            # Chains come after the layers, and name what is between them too.
            parts = choice.name.split(" + ")
            for name in parts if len(parts) == 1 else found.keys() & set(parts):
                found[name] = found.get(name, False) or choice.sparse
        return found

    def __str__(self) -> str:
        rows = [("layer", "runs", "weights", "sparsity", "dense ms", "sparse ms", "input")]
        for choice in self:
            inputs = ", ".join("x".join(map(str, shape)) for shape in choice.inputs)
            rows.append(
                (
                    choice.name or "(the network)",
                    "sparse" if choice.sparse else "dense",
                    f"{choice.weights:,}",
                    f"{choice.sparsity:.3f}",
                    _milliseconds(choice.dense_ms),
                    _milliseconds(choice.sparse_ms),
                    choice.reason or inputs,
                )
            )
        return _aligned(rows)


# Of one call of a layer, all that it got.
Inputs: TypeAlias = tuple[Seen, ...]


def least_times(ways: Sequence[Callable[..., Any]], seen: Inputs) -> list[float]:
    """The least time of each way to compute something, in milliseconds, all taking turns.

    What else the machine does makes times longer, never shorter: of many, the least says most about the code.

    Args:
        ways: Functions of tensors.
        seen: What kinds of tensors.
    """
    return least_times_of(ways, [one.random() for one in seen])


def least_times_of(ways: Sequence[Callable[..., Any]], inputs: Sequence[Any]) -> list[float]:
    """The least time of each way to compute something of the same inputs, in milliseconds, all taking turns."""
    return take_turns([partial(way, *inputs) for way in ways], LEAST_ROUNDS)


def take_turns(ways: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """The least time of each way to do something, in milliseconds, after one that is not counted.

    Args:
        ways: Functions without arguments.
        rounds: At least so many, more while they take little time.
    """
    for way in ways:
        way()
    least, begin = [float("inf")] * len(ways), time.perf_counter()
    for round_ in range(MOST_ROUNDS):
        for index, way in enumerate(ways):
            start = time.perf_counter()
            way()
            least[index] = min(least[index], time.perf_counter() - start)
        if round_ + 1 >= rounds and time.perf_counter() - begin > ENOUGH * len(ways):
            break
    return [seconds * 1e3 for seconds in least]


def _milliseconds(time_: float | None) -> str:
    return "" if time_ is None else f"{time_:.3f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = range(2, 6)
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
