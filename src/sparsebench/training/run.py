"""One run from its configuration to its record."""

from __future__ import annotations

import contextlib
import logging
import math
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from sparsebench.accounting import TrainingCost
from sparsebench.atomic import make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RUNS, RunFolder
from sparsebench.records.schema import LayerRecord, PointRecord, RunRecord
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.sparsifiers.selection import select_weights
from sparsebench.sparsifiers.sparsifier import EvaluationPoint, Sparsifier
from sparsebench.storage import save_compressed
from sparsebench.training.averaging import CheckpointAverage
from sparsebench.training.batch_norm import estimate_batch_norm, estimated_batch_norm
from sparsebench.training.checkpoint import weights_hash
from sparsebench.training.config import RunConfig, build_sparsifier
from sparsebench.training.cost import report_of_example
from sparsebench.training.devices import Devices, devices, seed_noise
from sparsebench.training.dropout import set_dropout
from sparsebench.training.heads import head_zeros
from sparsebench.training.loop import Observer, Progress, TrainingState, run_steps, write_curve
from sparsebench.training.memory import PeakMemory
from sparsebench.training.parent import inherit
from sparsebench.training.precision import precision
from sparsebench.training.warm_up import warm_up
from sparsebench.workloads.placement import device_of
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.workload import DataNote, NamesHeads, NotesData, Recipe, SignsScores, Split, Workload

__all__ = ["RunHeldError", "run_folder", "train", "train_claimed"]

_LOG = logging.getLogger("sparsebench")


class RunHeldError(SparsebenchError):
    """Another process is at this run."""


def run_folder(directory: Path, config: RunConfig) -> RunFolder:
    """Where the run of a configuration lies in a results folder.

    Raises:
        SparsebenchError: The results folder cannot be written.
    """
    make_directory(directory / RUNS)
    return RunFolder.of(directory, config.run_id)


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
    where = devices()
    if where.from_main(folder.status() == "finished"):
        return _finished(config, folder)
    with folder.claim() if where.is_main else contextlib.nullcontext(False) as ours:
        if not where.from_main(ours):
            raise RunHeldError(f"another process is training {folder.path}: wait for it, or choose another folder with --out")
        return train_claimed(config, folder, checkpoint_seconds=checkpoint_seconds, observe=observe)


def train_claimed(
    config: RunConfig, folder: RunFolder, *, checkpoint_seconds: float = 60.0, observe: Observer | None = None
) -> RunRecord:
    """Do what `train` does, for a caller that holds the claim on the folder.

    Raises:
        SparsebenchError: The training diverged, or files cannot be written or read.
    """
    where = devices()
    if where.from_main(folder.status() == "finished"):  # by the process that held it until now
        return _finished(config, folder)
    if where.is_main:
        folder.create(config.model_dump(mode="json"))
    with _generators_and_threads(config, where):
        record = where.from_main(_train(config, folder, where, checkpoint_seconds, observe))
    if where.is_main:
        folder.write_result(record)
    return record


def _finished(config: RunConfig, folder: RunFolder) -> RunRecord:
    record = folder.read_result()
    if record.run_id != config.run_id:
        raise SparsebenchError(
            f"{folder.path} holds the finished run {record.run_id}, not {config.run_id}: choose another folder"
        )
    return record


def _train(
    config: RunConfig, folder: RunFolder, where: Devices, checkpoint_seconds: float, observe: Observer | None
) -> RunRecord:
    workload = WORKLOADS.get(config.workload)
    warm_up()
    workload.batch(config.seed, 0, config.recipe.batch_size)  # reads the data, which later runs of this process share
    notes = workload.data_notes() if isinstance(workload, NotesData) else ()
    if where.is_main:
        for note in notes:
            if note.remarkable:
                _LOG.warning("%s, %s: %s", workload.name, note.part, note.told)
    memory = PeakMemory()
    model = workload.build_model()
    set_dropout(model, config.recipe.dropout)
    prunable = [selected.name for selected in select_weights(model)]
    forward = {row.name: row.multiply_adds or 0 for row in report_of_example(workload, model)}
    cost = TrainingCost(forward)
    sparsifier = build_sparsifier(config, inherit(config, folder, workload, model))
    names = frozenset(model.state_dict())
    model.to(where.device)
    sparsifier.prepare(model)
    optimizer = _optimizer(config.recipe, sparsifier)
    sparsifier.attach(optimizer)
    state = TrainingState(model, where.wrap(model), sparsifier, optimizer, cost, CheckpointAverage(config.recipe), where)
    seed_noise(where, config.seed)
    state.restore(folder)
    run_steps(
        config, workload, state, folder, memory, checkpoint_seconds, _keeping_weights(config, folder, state, names, observe)
    )
    if state.average.put_into(model) and not METHODS.get(config.method).auxiliary:
        # Weights that were dropped between two of the checkpoints. (Learned distributions are averaged with their weights.)
        sparsifier.apply_masks(model)
    where.verify(sparsifier)
    points = tuple(_evaluate(config, workload, model, point, prunable) for point in sparsifier.points())
    finalized = sparsifier.finalize()
    estimate_batch_norm(finalized, workload, config.recipe, config.seed)  # as it was measured
    if where.is_main:
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
        environment=_environment(config.recipe, workload, notes, where),
        points=points,
    )


def _keeping_weights(
    config: RunConfig, folder: RunFolder, state: TrainingState, names: frozenset[str], observe: Observer | None
) -> Observer | None:
    """An observer that also writes the weights of the step that is to be kept, before any checkpoint lies beyond it."""
    if config.keep_weights_at is None or not state.devices.is_main:
        return observe

    def keep(progress: Progress) -> None:
        if progress.step == config.keep_weights_at:
            weights = {name: value for name, value in state.model.state_dict().items() if name in names}
            save_compressed(weights, folder.kept_weights_path, method=config.method, config=config.model_dump(mode="json"))
        if observe is not None:
            observe(progress)

    return keep


def _evaluate(
    config: RunConfig, workload: Workload, model: nn.Module, point: EvaluationPoint, prunable: list[str]
) -> PointRecord:
    """Metrics of one point on both splits, and how sparse each layer is; zeros are counted in the weights themselves."""
    with point, estimated_batch_norm(model, workload, config.recipe, config.seed):
        with precision(config.recipe, device_of(model)):
            metrics = {split: workload.evaluate(model, split) for split in get_args(Split)}
        layers = report_of_example(workload, model)
        heads = head_zeros(model, workload.attention_heads(model)) if isinstance(workload, NamesHeads) else {}
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
        layers=tuple(
            LayerRecord(layer=row.name, shape=row.shape, weights=row.weights, zeros=row.zeros, head_zeros=heads.get(row.name, ()))
            for row in rows
        ),
    )


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


@contextlib.contextmanager
def _generators_and_threads(config: RunConfig, where: Devices) -> Iterator[None]:
    """Torch's default generator begins at the run's seed, the run gets its threads; the caller's are put back."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[where.device] if where.device.type == "cuda" else []):
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


def _environment(recipe: Recipe, workload: Workload, notes: Sequence[DataNote], where: Devices) -> dict[str, str]:
    signatures = workload.signatures() if isinstance(workload, SignsScores) else {}
    batch_norm = f"estimated anew over {recipe.batch_norm_batches} batches after thresholding"
    return (
        signatures
        | {note.part: note.told for note in notes}
        | {
            "sparsebench": version("sparsebench"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "threads": str(recipe.threads),
        }
        | ({"batch norm": batch_norm} if recipe.batch_norm_batches else {})
        | ({"processes": str(where.processes)} if where.processes > 1 else {})
        | ({"device": torch.cuda.get_device_name(where.device)} if where.device.type == "cuda" else {})
    )
