"""From a configuration to a training that can go on: network, sparsifier, optimizer, and where a checkpoint left them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsebench.accounting import TrainingCost
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import WeightHistogram
from sparsebench.sparsifiers.selection import select_weights
from sparsebench.sparsifiers.sparsifier import Sparsifier
from sparsebench.training.averaging import CheckpointAverage
from sparsebench.training.config import RunConfig, build_sparsifier
from sparsebench.training.cost import report_of_example
from sparsebench.training.devices import Devices, seed_noise
from sparsebench.training.dropout import set_dropout
from sparsebench.training.histograms import weight_histograms
from sparsebench.training.loop import TrainingState
from sparsebench.training.memory import PeakMemory
from sparsebench.training.parent import inherit
from sparsebench.training.warm_up import warm_up
from sparsebench.workloads.workload import DataNote, NotesData, Recipe, Workload

__all__ = ["Training", "prepare_training"]

_LOG = logging.getLogger("sparsebench")


@dataclass(frozen=True)
class Training:
    """A training that was begun.

    Attributes:
        workload: What is trained.
        model: The network.
        sparsifier: What makes it sparse.
        state: All that changes while it trains.
        memory: Measures the peak from before the network was built.
        names: The entries of the network's state as it was built.
        prunable: Names of its sparsifiable weights.
        dense_multiply_adds: Of the dense network for one example.
        initial_histograms: Of the weights in `prunable` as the training began.
        data_notes: What is to be told of the data.
    """

    workload: Workload
    model: nn.Module
    sparsifier: Sparsifier
    state: TrainingState
    memory: PeakMemory
    names: frozenset[str]
    prunable: list[str]
    dense_multiply_adds: int
    initial_histograms: dict[str, WeightHistogram]
    data_notes: tuple[DataNote, ...]


def prepare_training(config: RunConfig, folder: RunFolder, where: Devices, workload: Workload) -> Training:
    """Build what a configuration describes, and go on where its folder's checkpoint is.

    Args:
        config: The configuration.
        folder: The run's.
        where: The devices.
        workload: The configuration's.

    Raises:
        SparsebenchError: Data or a parent run are missing, or the checkpoint is damaged.
    """
    warm_up()
    where.batch(workload, config.seed, 0, config.recipe.batch_size)  # reads the data, which later runs of this process share
    notes = tuple(workload.data_notes()) if isinstance(workload, NotesData) else ()
    if where.is_main:
        for note in notes:
            if note.remarkable:
                _LOG.warning("%s, %s: %s", workload.name, note.part, note.told)
    memory = PeakMemory()
    model = workload.build_model()
    set_dropout(model, config.recipe.dropout)
    prunable = [selected.name for selected in select_weights(model)]
    forward = {row.name: row.multiply_adds or 0 for row in report_of_example(workload, model)}
    sparsifier = build_sparsifier(config, inherit(config, folder, workload, model))
    names = frozenset(model.state_dict())
    before = weight_histograms(dict(model.named_parameters()), prunable)
    model.to(where.device)
    sparsifier.prepare(model)
    optimizer = _optimizer(config.recipe, sparsifier)
    sparsifier.attach(optimizer)
    cost, average = TrainingCost(forward), CheckpointAverage(config.recipe)
    state = TrainingState(model, where.wrap(model), sparsifier, optimizer, cost, average, where)
    seed_noise(where, config.seed)
    state.restore(folder)
    return Training(workload, model, sparsifier, state, memory, names, prunable, sum(forward.values()), before, notes)


def _optimizer(recipe: Recipe, sparsifier: Sparsifier) -> torch.optim.Optimizer:
    groups = sparsifier.parameter_groups(recipe.learning_rate, recipe.auxiliary_lr_scale or 1.0)
    for group in groups:
        group["initial_lr"] = group["lr"]
    if recipe.weight_decay_on == "weights":
        groups = [group for both in groups for group in _decayed_and_not(both, recipe.weight_decay)]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay, fused=True
        )
    return torch.optim.AdamW(
        groups,
        recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def _decayed_and_not(group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of one: parameters of more than one dimension, which decay as the group says, and the others, which do not."""
    parameters, decay = list(group["params"]), group.get("weight_decay", weight_decay)
    halves = [([p for p in parameters if p.ndim > 1], decay), ([p for p in parameters if p.ndim <= 1], 0.0)]
    return [group | {"params": half, "weight_decay": decay} for half, decay in halves if half]
