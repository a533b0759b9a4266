"""Batch norm for a network that was thresholded after its training: its statistics are those of the dense one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsebench.training.devices import on_device
from sparsebench.training.precision import precision
from sparsebench.workloads.placement import device_of
from sparsebench.workloads.workload import Recipe, Workload

__all__ = ["estimate_batch_norm", "estimated_batch_norm"]


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, workload: Workload, recipe: Recipe, seed: int) -> None:
    """Replace the running statistics of every batch norm by plain means over the run's first `batch_norm_batches` batches.

    Nothing but batch norm is in training mode meanwhile; modes and momenta are put back. Where the recipe says 0 batches, nothing
    happens.

    Args:
        model: The sparse network, as it is to be evaluated.
        workload: Gives the batches.
        recipe: How many, and in which precision.
        seed: The run's.
    """
    layers = _layers(model, recipe)
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    device = device_of(model)
    model.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over all batches
            layer.train()
        for step in range(recipe.batch_norm_batches):
            batch = on_device(workload.batch(seed, step, recipe.batch_size), device)
            with precision(recipe, device):
                workload.loss(model, batch, 0.0)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def estimated_batch_norm(model: nn.Module, workload: Workload, recipe: Recipe, seed: int) -> Iterator[None]:
    """`estimate_batch_norm` for as long as the context is open; then the statistics of the training are put back."""
    layers = _layers(model, recipe)
    trained = [{name: value.clone() for name, value in layer.named_buffers()} for layer in layers]
    estimate_batch_norm(model, workload, recipe, seed)
    try:
        yield
    finally:
        for layer, buffers in zip(layers, trained, strict=True):
            layer.load_state_dict(buffers, strict=False)


def _layers(model: nn.Module, recipe: Recipe) -> list[_BatchNorm]:
    if not recipe.batch_norm_batches:
        return []
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
