"""One run from its configuration to its record."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from sparsebench.accounting import TrainingCost
from sparsebench.atomic import make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import LayerRecord, PointRecord, RunRecord
from sparsebench.sparsifiers.selection import select_weights
from sparsebench.sparsifiers.sparsifier import EvaluationPoint, Sparsifier
from sparsebench.storage import save_compressed
from sparsebench.training.checkpoint import weights_hash
from sparsebench.training.config import RunConfig, build_sparsifier
from sparsebench.training.cost import report_of_example
from sparsebench.training.loop import Observer, TrainingState, run_steps, write_curve
from sparsebench.training.memory import PeakMemory
from sparsebench.training.warm_up import warm_up
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.workload import Recipe, Split, Workload

__all__ = ["RunHeldError", "run_folder", "train"]


class RunHeldError(SparsebenchError):
    """Another process is at this run."""


def run_folder(directory: Path, config: RunConfig) -> RunFolder:
    """Where the run of a configuration lies in a results folder.

    Raises:
        SparsebenchError: The results folder cannot be written.
    """
    make_directory(directory / "runs")
    return RunFolder(directory / "runs" / config.run_id)


def train(
    config: RunConfig, folder: RunFolder, *, checkpoint_seconds: float = 60.0, observe: Observer | None = None
) -> RunRecord:
    """Train a configuration, evaluate every point, write the record; go on where an interrupted run stopped.

    A finished run is not trained again: its record is read. A run that fails keeps no record; its checkpoint stays.

    Args:
        config: What to train.
        folder: Where its files go.
        checkpoint_seconds: Seconds between checkpoints; 0 writes one after every step.
        observe: Called after every step with the progress.

    Returns:
        The record, as `folder` holds it.

    Raises:
        SparsebenchError: The training diverged, or files cannot be written or read.
        RunHeldError: Another process is at the run.
    """
    if folder.status() == "finished":
        return _finished(config, folder)
    with folder.claim() as ours:
        if not ours:
            raise RunHeldError(f"another process is training {folder.path}: wait for it, or choose another folder with --out")
        if folder.status() == "finished":  # by the process that held it until now
            return _finished(config, folder)
        folder.create(config.model_dump(mode="json"))
        with _generators_and_threads(config):
            record = _train(config, folder, checkpoint_seconds, observe)
        folder.write_result(record)
    return record


def _finished(config: RunConfig, folder: RunFolder) -> RunRecord:
    record = folder.read_result()
    if record.run_id != config.run_id:
        raise SparsebenchError(
            f"{folder.path} holds the finished run {record.run_id}, not {config.run_id}: choose another folder"
        )
    return record


def _train(config: RunConfig, folder: RunFolder, checkpoint_seconds: float, observe: Observer | None) -> RunRecord:
    workload = WORKLOADS.get(config.workload)
    sparsifier = build_sparsifier(config)
    warm_up()
    workload.batch(config.seed, 0, config.recipe.batch_size)  # reads the data, which later runs of this process share
    memory = PeakMemory()
    model = workload.build_model()
    prunable = [selected.name for selected in select_weights(model)]
    forward = {row.name: row.multiply_adds or 0 for row in report_of_example(workload, model)}
    cost = TrainingCost(forward)
    sparsifier.prepare(model)
    optimizer = _optimizer(config.recipe, sparsifier)
    sparsifier.attach(optimizer)
    state = TrainingState(model, sparsifier, optimizer, cost)
    state.restore(folder)
    run_steps(config, workload, state, folder, memory, checkpoint_seconds, observe)
    points = tuple(_evaluate(config, workload, model, point, prunable) for point in sparsifier.points())
    finalized = sparsifier.finalize()
    write_curve(folder, state.curve)
    _write_model(folder, config, finalized, points[0])  # the point that finalize folds in
    return RunRecord(
        run_id=config.run_id,
        config=config.model_dump(mode="json"),
        workload=config.workload,
        method=config.method,
        seed=config.seed,
        metric=workload.metric,
        steps=config.recipe.steps,
        seconds=state.seconds,
        processor_seconds=state.processor_seconds,
        peak_memory_bytes=state.peak_memory_bytes,
        dense_multiply_adds=sum(forward.values()),
        training_multiply_adds=cost.multiply_adds,
        dense_training_multiply_adds=cost.dense_multiply_adds,
        weights_sha256=weights_hash(finalized.state_dict()),
        environment=_environment(config.recipe),
        points=points,
    )


def _evaluate(
    config: RunConfig, workload: Workload, model: nn.Module, point: EvaluationPoint, prunable: list[str]
) -> PointRecord:
    """Metrics of one point on both splits, and how sparse each layer is; zeros are counted in the weights themselves."""
    with point:
        metrics = {split: workload.evaluate(model, split) for split in get_args(Split)}
        layers = report_of_example(workload, model)
    rows = [row for row in layers if row.name in prunable]
    for split, values in metrics.items():
        for metric, value in values.items():
            if not math.isfinite(value):
                raise SparsebenchError(f"{metric} on the {split} split is {value} ({config.method}, seed {config.seed})")
    return PointRecord(
        target_sparsity=config.target_sparsity,
        threshold=point.threshold,
        sparsity=sum(row.zeros for row in rows) / max(sum(row.weights for row in rows), 1),
        metrics=metrics,
        multiply_adds=sum(row.sparse_multiply_adds or 0 for row in layers),
        layers=tuple(LayerRecord(layer=row.name, shape=row.shape, weights=row.weights, zeros=row.zeros) for row in rows),
    )


def _optimizer(recipe: Recipe, sparsifier: Sparsifier) -> torch.optim.Optimizer:
    groups = sparsifier.parameter_groups(recipe.learning_rate, recipe.auxiliary_lr_scale or 1.0)
    for group in groups:
        group["initial_lr"] = group["lr"]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay, fused=True
        )
    return torch.optim.AdamW(groups, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


@contextlib.contextmanager
def _generators_and_threads(config: RunConfig) -> Iterator[None]:
    """Torch's default generator begins at the run's seed, the run gets its threads; the caller's are put back."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        torch.set_num_threads(config.recipe.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _write_model(folder: RunFolder, config: RunConfig, model: nn.Module, point: PointRecord) -> None:
    """The final network as a compressed checkpoint that tells where it comes from and what was measured of it."""
    measured = point.model_dump(mode="json", exclude={"layers", "metrics"}) | point.metrics
    save_compressed(model, folder.model_path, method=config.method, config=config.model_dump(mode="json"), metrics=measured)


def _environment(recipe: Recipe) -> dict[str, str]:
    return {
        "sparsebench": version("sparsebench"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(recipe.threads),
    }
