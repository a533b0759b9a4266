"""Pruning at initialization as methods of runs: masks from the first batches of the training, held from the first step on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from sparsebench.sparsifiers.masked import initial_scores, schedules
from sparsebench.sparsifiers.masked.allocation import allocation_by_name
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier
from sparsebench.sparsifiers.masked.held_masks import HeldScore, by_matrix
from sparsebench.sparsifiers.masked.initial_scores import GraSP
from sparsebench.sparsifiers.masked.initialization import SYNFLOW_ROUNDS, check_at_least_one, initialize_masks
from sparsebench.sparsifiers.masked.scores import LayerState
from sparsebench.sparsifiers.sparsifier import LayerChoice

__all__ = ["Beginning", "grasp", "snip", "synflow"]


class Beginning(Protocol):
    """What a run lets its method look at before the first step."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss of a network on a batch, a scalar."""

    def batches(self, count: int) -> Iterable[Any]:
        """The first batches of the training, whole ones, whatever process asks."""


def snip(
    beginning: Beginning,
    *,
    sparsity: float,
    batches: int = 1,
    rounds: int = 1,
    allocation: str | Mapping[str, float] = "global",
    layers: LayerChoice = None,
    seed: int = 0,
) -> MaskedSparsifier:
    """Keep the weights that the loss of the first batches depends on most (SNIP, Lee et al. 2019, arXiv 1810.02340).

    Args:
        beginning: The run's loss and first batches; they are looked at when the network is prepared.
        sparsity: Fraction of the weights that are zero, in [0, 1].
        batches: How many batches are looked at, at least 1.
        rounds: In how many rounds the sparsity is reached, at least 1; the authors': 1.
        allocation: As in `magnitude_pruning`; "global" is the authors'.
        layers: As in `magnitude_pruning`.
        seed: Seed of noise in the network.

    Raises:
        SparsebenchError: An argument is out of range; the message names it.
    """
    return _holding(beginning, batches, sparsity, allocation, score=initial_scores.snip, rounds=rounds, layers=layers, seed=seed)


def grasp(
    beginning: Beginning,
    *,
    sparsity: float,
    batches: int = 1,
    rounds: int = 1,
    temperature: float = 200.0,
    allocation: str | Mapping[str, float] = "global",
    layers: LayerChoice = None,
    seed: int = 0,
) -> MaskedSparsifier:
    """Keep the weights without which the gradient would lose most of its norm (GraSP, Wang et al. 2020, arXiv 2002.07376).

    Args:
        beginning: As in `snip`.
        sparsity: As in `snip`.
        batches: As in `snip`.
        rounds: As in `snip`.
        temperature: What the network's output is divided by, above 0; other than 1 it needs an output that is a tensor.
        allocation: As in `snip`.
        layers: As in `snip`.
        seed: As in `snip`.

    Raises:
        SparsebenchError: An argument is out of range; the message names it.
    """
    return _holding(beginning, batches, sparsity, allocation, score=GraSP(temperature), rounds=rounds, layers=layers, seed=seed)


def synflow(
    beginning: Beginning,
    *,
    sparsity: float,
    rounds: int = SYNFLOW_ROUNDS,
    allocation: str | Mapping[str, float] = "global",
    layers: LayerChoice = None,
    seed: int = 0,
) -> MaskedSparsifier:
    """Keep the weights that most flows through, without data (SynFlow, Tanaka et al. 2020, arXiv 2006.05467).

    Args:
        beginning: As in `snip`; of the batches only the shape of an input is looked at, which must be of floating-point numbers.
        sparsity: As in `snip`.
        rounds: As in `snip`; the authors': 100.
        allocation: As in `snip`.
        layers: As in `snip`.
        seed: As in `snip`.

    Raises:
        SparsebenchError: An argument is out of range; the message names it.
    """
    return _holding(beginning, 1, sparsity, allocation, score=initial_scores.synflow, rounds=rounds, layers=layers, seed=seed)


class _FirstMasks:
    """The score of weights under masks that are chosen from the whole network when it is prepared: 1 kept, 0 dropped.

    Args:
        choose: Gives the masks of a network by parameter name.
    """

    def __init__(self, choose: Callable[[nn.Module], Mapping[str, torch.Tensor]]) -> None:
        self._choose, self._held = choose, HeldScore({})

    def look(self, model: nn.Module) -> None:
        """Choose the masks."""
        self._held = HeldScore(by_matrix(self._choose(model)))

    def __call__(self, layer: LayerState) -> torch.Tensor:
        """The score of a layer."""
        return self._held(layer)


def _holding(
    beginning: Beginning, batches: int, sparsity: float, allocation: str | Mapping[str, float], **options: Any
) -> MaskedSparsifier:
    """A sparsifier that holds what `initialize_masks` chooses; options are the rest of its arguments."""
    for name, value in {"batches": batches, "rounds": options["rounds"]}.items():
        check_at_least_one(name, value)
    choose = functools.partial(_masks, beginning, batches, options | {"sparsity": sparsity, "allocation": allocation})
    # As many weights have the score 1 as the allocation keeps.
    kept = allocation_by_name(allocation, sparsity)
    return MaskedSparsifier(_FirstMasks(choose), kept, schedules.one_shot(), "gone", layers=options["layers"])


def _masks(beginning: Beginning, batches: int, options: Mapping[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    return initialize_masks(model, beginning.loss, beginning.batches(batches), **options)
