"""The training loop: steps, checkpoints, a curve; exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sparsebench.accounting import TrainingCost
from sparsebench.atomic import atomic_file
from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.sparsifiers.sparsifier import Sparsifier
from sparsebench.training.averaging import CheckpointAverage
from sparsebench.training.batch_norm import estimated_batch_norm
from sparsebench.training.checkpoint import load_checkpoint, save_checkpoint
from sparsebench.training.config import RunConfig
from sparsebench.training.devices import Devices, noise_state, on_device, set_noise_state
from sparsebench.training.longer_training import rate_factor
from sparsebench.training.memory import PeakMemory
from sparsebench.training.precision import precision
from sparsebench.workloads.workload import Recipe, Workload

__all__ = ["Observer", "Progress", "TrainingState", "learning_rate_factor", "run_steps", "validate", "write_curve"]

CURVE_POINTS = 10


@dataclass(frozen=True)
class Progress:
    """How far a training has come: completed steps of all, last loss, last validation metric, sparsity, seconds so far."""

    step: int
    steps: int
    loss: float
    metric: float | None
    sparsity: float
    seconds: float


Observer = Callable[[Progress], None]


@dataclass
class TrainingState:
    """Everything of a run that changes while it trains."""

    model: nn.Module
    network: nn.Module  # the model as training steps call it
    sparsifier: Sparsifier
    optimizer: torch.optim.Optimizer
    cost: TrainingCost
    average: CheckpointAverage
    devices: Devices
    step: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_memory_bytes: int | None = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint; every process must ask for it at the same step."""
        noise = self.devices.gathered(noise_state(self.devices))
        processor_seconds = self.devices.gathered(self.processor_seconds)
        if not self.devices.is_main:
            return
        save_checkpoint(
            folder.checkpoint_path,
            {
                "step": self.step,
                "seconds": self.seconds,
                "processor_seconds": processor_seconds,
                "peak_memory_bytes": self.peak_memory_bytes,
                "curve": self.curve,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "sparsifier": self.sparsifier.state_dict(),
                "cost": self.cost.state_dict(),
                "average": self.average.state_dict(),
                "noise": noise,
            },
        )

    def restore(self, folder: RunFolder) -> None:
        """Go on from a checkpoint where there is one.

        Raises:
            SparsebenchError: The checkpoint is damaged.
        """
        saved = load_checkpoint(folder.checkpoint_path)
        if saved is None:
            return
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.sparsifier.load_state_dict(saved["sparsifier"])
            self.cost.load_state_dict(saved["cost"])
            self.average.load_state_dict(on_device(saved["average"], self.devices.device))
            set_noise_state(self.devices, saved["noise"] if isinstance(saved["noise"], list) else [[saved["noise"]]])
            self.step, self.seconds = int(saved["step"]), float(saved["seconds"])
            worked = saved["processor_seconds"]
            self.processor_seconds = float(worked[self.devices.rank] if isinstance(worked, list) else worked)
            self.peak_memory_bytes, self.curve = saved["peak_memory_bytes"], list(saved["curve"])
        except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise SparsebenchError(
                f"{folder.checkpoint_path} does not fit this run ({reason}): delete it, and the run begins again from step 1"
            ) from error

    def remember_peak(self, memory: PeakMemory) -> None:
        """Keep the highest peak of all the processes that worked on this run."""
        peak = memory.peak_bytes()
        known = self.peak_memory_bytes
        self.peak_memory_bytes = None if peak is None or known is None else max(known, peak)


def learning_rate_factor(recipe: Recipe, step: int) -> float:
    """The learning rate of a step, counted from 0, as a fraction of the recipe's."""
    warmup = min((step + 1) / recipe.warmup_steps, 1.0) if recipe.warmup_steps else 1.0
    if recipe.learning_rate_schedule == "constant":
        return warmup
    if recipe.learning_rate_schedule == "inverse-square-root":
        return min(warmup, math.sqrt(max(recipe.warmup_steps, 1) / (step + 1)))
    done = step / recipe.steps
    if recipe.learning_rate_schedule == "trapezoid":
        return warmup * min(2.0 * (1.0 - done), 1.0)
    if recipe.learning_rate_schedule == "step":
        return warmup * recipe.learning_rate_decay ** sum(done >= milestone for milestone in recipe.milestones)
    return warmup * 0.5 * (1.0 + math.cos(math.pi * done))


def run_steps(
    config: RunConfig,
    workload: Workload,
    state: TrainingState,
    folder: RunFolder,
    memory: PeakMemory,
    checkpoint_seconds: float,
    observe: Observer | None,
    until: int,
) -> None:
    """Train from where `state` is to a step, as a part of the whole training.

    Args:
        config: The run's configuration.
        workload: What is trained.
        state: Changed in place.
        folder: Where checkpoints go.
        memory: Measures the peak.
        checkpoint_seconds: Seconds between checkpoints; 0 writes one after every step.
        observe: Called after every step.
        until: The last step of this part.

    Raises:
        SparsebenchError: The loss or a weight is not finite, or a checkpoint cannot be written.
    """
    recipe = config.recipe
    factor = rate_factor(recipe, config.kept_schedule, learning_rate_factor)
    base_rates = [float(group["initial_lr"]) for group in state.optimizer.param_groups]
    curve_every = max(recipe.steps // CURVE_POINTS, 1)
    last_checkpoint = time.monotonic()
    state.model.train()
    while state.step < until:
        started, processor_started = time.perf_counter(), time.process_time()
        for group, base in zip(state.optimizer.param_groups, base_rates, strict=True):
            group["lr"] = base * factor(state.step)
        batch, share = state.devices.batch(workload, config.seed, state.step, recipe.batch_size)
        with precision(recipe, state.devices.device):
            task_loss = workload.loss(state.network, batch, recipe.label_smoothing)
        loss = share * task_loss + state.sparsifier.penalty()
        loss_value = float(loss.detach())
        if not math.isfinite(loss_value):
            raise SparsebenchError(
                f"the loss is {loss_value} at step {state.step + 1} ({config.workload}, {config.method}, seed {config.seed}): "
                "the training diverged; try a smaller learning_rate or penalty"
            )
        state.cost.add_step(state.sparsifier.training_work(), recipe.batch_size)
        state.optimizer.zero_grad()
        torch.autograd.backward(loss)
        state.optimizer.step()
        state.step += 1
        state.average.after_step(state.model, state.step)
        state.seconds += time.perf_counter() - started
        state.processor_seconds += time.process_time() - processor_started
        if state.step % curve_every == 0 or state.step == recipe.steps:
            state.curve.append(_curve_point(config, workload, state, loss_value))
        if observe is not None:
            metric = state.curve[-1]["metric"] if state.curve else None
            sparsity = state.curve[-1]["sparsity"] if state.curve else 0.0
            observe(Progress(state.step, recipe.steps, loss_value, metric, sparsity, state.seconds))
        due = time.monotonic() - last_checkpoint >= checkpoint_seconds and state.step < until
        if state.devices.from_main(due):
            state.remember_peak(memory)
            state.save(folder)
            last_checkpoint = time.monotonic()
    state.remember_peak(memory)


def validate(config: RunConfig, workload: Workload, state: TrainingState) -> tuple[float, float]:
    """The primary metric on the validation split, and the sparsity, of the network's first evaluation point."""
    point, recipe = next(iter(state.sparsifier.points())), config.recipe
    state.devices.verify(state.sparsifier)
    with point, estimated_batch_norm(state.model, workload, recipe, config.seed), precision(recipe, state.devices.device):
        metrics = workload.evaluate(state.model, "validation")
    return metrics[workload.metric], point.sparsity


def _curve_point(config: RunConfig, workload: Workload, state: TrainingState, loss: float) -> dict[str, float]:
    """Training loss, and what `validate` tells."""
    metric, sparsity = validate(config, workload, state)
    return {
        "step": state.step,
        "seconds": round(state.seconds, 3),
        "loss": loss,
        "learning_rate": float(state.optimizer.param_groups[0]["lr"]),
        "sparsity": sparsity,
        "metric": metric,
    }


def write_curve(folder: RunFolder, curve: list[dict[str, Any]]) -> None:
    """Write the training curve, one JSON object a line."""
    with atomic_file(folder.curve_path) as file:
        for row in curve:
            file.write(f"{json.dumps(row)}\n".encode())
