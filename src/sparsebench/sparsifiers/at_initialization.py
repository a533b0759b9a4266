"""Pruning at initialization as methods of runs: masks from the first batches of the training, held from the first step on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked import initial_scores, schedules
from sparsebench.sparsifiers.masked.allocation import allocation_by_name
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier
from sparsebench.sparsifiers.masked.held_masks import HeldScore, by_matrix
from sparsebench.sparsifiers.masked.initial_scores import GraSP, InitialScore
from sparsebench.sparsifiers.masked.initialization import SYNFLOW_ROUNDS, initialize_masks
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
    return _held(_FirstMasks(initial_scores.snip, beginning, batches, rounds, sparsity, allocation, layers, seed))


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
    return _held(_FirstMasks(GraSP(temperature), beginning, batches, rounds, sparsity, allocation, layers, seed))


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
    return _held(_FirstMasks(initial_scores.synflow, beginning, 1, rounds, sparsity, allocation, layers, seed))


class _FirstMasks:
    """The score of weights under masks that are chosen from the whole network when it is prepared: 1 kept, 0 dropped."""

    def __init__(
        self,
        score: InitialScore,
        beginning: Beginning,
        batches: int,
        rounds: int,
        sparsity: float,
        allocation: str | Mapping[str, float],
        layers: LayerChoice,
        seed: int,
    ) -> None:
        for name, value in {"batches": batches, "rounds": rounds}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SparsebenchError(f"{name}={value!r}: expected an integer of at least 1")
        self._score, self._beginning, self._batches, self._rounds = score, beginning, batches, rounds
        self.sparsity, self.allocation, self.layers, self._seed = sparsity, allocation, layers, seed
        self._held = HeldScore({})

    def look(self, model: nn.Module) -> None:
        """Choose the masks."""
        masks = initialize_masks(
            model,
            self._beginning.loss,
            self._beginning.batches(self._batches),
            sparsity=self.sparsity,
            score=self._score,
            rounds=self._rounds,
            allocation=self.allocation,
            layers=self.layers,
            seed=self._seed,
        )
        self._held = HeldScore(by_matrix(masks))

    def __call__(self, layer: LayerState) -> torch.Tensor:
        """The score of a layer."""
        return self._held(layer)


def _held(score: _FirstMasks) -> MaskedSparsifier:
    # As many weights have the score 1 as the allocation keeps.
    allocation = allocation_by_name(score.allocation, score.sparsity)
    return MaskedSparsifier(score, allocation, schedules.one_shot(), "gone", layers=score.layers)
