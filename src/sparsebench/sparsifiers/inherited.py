"""Methods that go on from a trained network: lottery tickets, sparse networks from scratch, iterative magnitude pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier
from sparsebench.sparsifiers.masked.initialization import initialize_masks
from sparsebench.sparsifiers.methods import fixed_masks
from sparsebench.sparsifiers.rewinding import reinitialize, rewind
from sparsebench.sparsifiers.selection import select_weights
from sparsebench.sparsifiers.units import Steps

__all__ = ["Inherited", "iterative_magnitude", "lottery_ticket", "scratch"]


@dataclass(frozen=True)
class Inherited:
    """What a network takes from one that was trained before.

    Attributes:
        network: The network that is to be trained; methods set its weights.
        trained: The state of the trained network, dropped weights exactly zero.
        earlier: Gives the state that training had after a number of steps; 0 stands for the initial weights.
        new: Gives a state that has nothing to do with that training.
    """

    network: nn.Module
    trained: Mapping[str, torch.Tensor]
    earlier: Callable[[int], Mapping[str, torch.Tensor]]
    new: Callable[[], Mapping[str, torch.Tensor]]

    def masks(self) -> dict[str, torch.Tensor]:
        """The masks of the trained network, by parameter name: True where a weight is not zero.

        Raises:
            SparsebenchError: It lacks a weight of the network.
        """
        names = [weight.name for weight in select_weights(self.network)]
        for name in names:
            if name not in self.trained:
                raise SparsebenchError(f"the inherited network has no weight {name!r}")
        return {name: self.trained[name] != 0 for name in names}


def lottery_ticket(inherited: Inherited, *, rewind_to: Steps = 0) -> MaskedSparsifier:
    """Train the masks of a trained network again from its own earlier weights.

    Frankle and Carbin 2019, arXiv 1803.03635; from a few steps into training: Frankle et al. 2020, arXiv 1912.05671.

    Args:
        inherited: The trained network; the weights of its `network` are set.
        rewind_to: The step whose weights are gone back to; 0 for the initial ones.
    """
    masks = inherited.masks()
    rewind(inherited.network, inherited.earlier(rewind_to), masks)
    return fixed_masks(masks)


def scratch(
    inherited: Inherited, *, initialization: Literal["ordinary", "sparse"] = "ordinary", seed: int = 0
) -> MaskedSparsifier:
    """Train the masks of a trained network from new weights.

    Liu et al. 2019, arXiv 1810.05270.

    Args:
        inherited: The trained network; the weights of its `network` are set.
        initialization: "ordinary" (the network's own) or "sparse" (drawn by the inputs that the masks leave each output:
            `reinitialize`).
        seed: Seed of the sparse initialization.
    """
    masks = inherited.masks()
    inherited.network.load_state_dict(dict(inherited.new()))
    if initialization == "sparse":
        reinitialize(inherited.network, masks, seed=seed)
    return fixed_masks(masks)


def iterative_magnitude(
    inherited: Inherited,
    *,
    sparsity: float,
    allocation: Literal["uniform", "uniform-dense-first", "global", "erdos-renyi-kernel"] = "global",
    rewind_to: Steps = 0,
) -> MaskedSparsifier:
    """One round of iterative magnitude pruning: drop the smallest weights of the round before, go back, train again.

    Frankle and Carbin 2019, arXiv 1803.03635. What the round before dropped is zero and ranks lowest: it stays dropped.

    Args:
        inherited: The network of the round before; the weights of its `network` are set.
        sparsity: The sparsity of this round, of all weights, in [0, 1).
        allocation: "global" (all layers in one ranking), "uniform", "uniform-dense-first" or "erdos-renyi-kernel".
        rewind_to: The step whose weights are gone back to; 0 for the initial ones.
    """
    before = copy.deepcopy(inherited.network)
    before.load_state_dict(dict(inherited.trained))
    masks = initialize_masks(before, sparsity=sparsity, score="magnitude", allocation=allocation)
    rewind(inherited.network, inherited.earlier(rewind_to), masks)
    return fixed_masks(masks)
