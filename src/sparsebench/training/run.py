"""One run from its configuration to its record."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from sparsebench.atomic import make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RUNS, RunFolder
from sparsebench.records.rungs import RungRecord
from sparsebench.records.schema import LayerRecord, PointRecord, RunRecord
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.sparsifiers.sparsifier import EvaluationPoint
from sparsebench.storage import save_compressed
from sparsebench.training.batch_norm import estimate_batch_norm, estimated_batch_norm
from sparsebench.training.checkpoint import load_checkpoint, weights_hash
from sparsebench.training.config import RunConfig
from sparsebench.training.cost import report_of_example
from sparsebench.training.devices import Devices, devices
from sparsebench.training.heads import head_zeros
from sparsebench.training.histograms import weight_histograms
from sparsebench.training.loop import Observer, Progress, TrainingState, run_steps, validate, write_curve
from sparsebench.training.precision import precision
from sparsebench.training.preparation import Training, prepare_training
from sparsebench.training.start_up import settings_in_force
from sparsebench.workloads.placement import device_of
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.workload import DataNote, NamesHeads, Recipe, SignsScores, Split, Workload

__all__ = ["RunHeldError", "run_folder", "train", "train_claimed", "train_claimed_to"]


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
    config: RunConfig,
    folder: RunFolder,
    *,
    checkpoint_seconds: float = 60.0,
    observe: Observer | None = None,
    workload: Workload | None = None,
) -> RunRecord:
    """Do what `train` does, for a caller that holds the claim on the folder.

    Args:
        config: What to train.
        folder: Where its files go.
        checkpoint_seconds: Seconds between checkpoints; 0 writes one after every step.
        observe: Called after every step with the progress.
        workload: What stands in for the workload that the configuration names; that one where it is left out.

    Raises:
        SparsebenchError: The training diverged, or files cannot be written or read.
    """
    where = devices()
    if where.from_main(folder.status() == "finished"):  # by the process that held it until now
        return _finished(config, folder)
    if where.is_main:
        folder.create(config.model_dump(mode="json"))
    with _generators_and_threads(config, where):
        training = prepare_training(config, folder, where, workload or WORKLOADS.get(config.workload))
        record = where.from_main(_train(config, folder, where, training, checkpoint_seconds, observe))
    if where.is_main:
        folder.write_result(record)
    return record


def train_claimed_to(
    config: RunConfig, folder: RunFolder, step: int, *, checkpoint_seconds: float = 60.0, observe: Observer | None = None
) -> RungRecord:
    """Train to a step before the last and pause there: a checkpoint stays, from which `train_claimed` goes on to the same bits.

    Args:
        config: What to train.
        folder: Where its files go; the caller holds the claim on it.
        step: Completed steps at the pause, at least 1 and fewer than the training has.
        checkpoint_seconds: Seconds between checkpoints; 0 writes one after every step.
        observe: Called after every step with the progress.

    Returns:
        What was measured at the pause, as `folder` holds it.

    Raises:
        SparsebenchError: The training diverged, or files cannot be written or read.
    """
    where = devices()
    if where.is_main:
        folder.create(config.model_dump(mode="json"))
        saved = load_checkpoint(folder.checkpoint_path)
        if saved is not None and saved["step"] > step:  # of a training that was not to pause there
            folder.checkpoint_path.unlink()
    where.from_main(None)
    with _generators_and_threads(config, where):
        training = prepare_training(config, folder, where, WORKLOADS.get(config.workload))
        rung = where.from_main(_train_to(config, folder, training, checkpoint_seconds, observe, step))
    if where.is_main:
        folder.write_rung(rung)
    return rung


def _finished(config: RunConfig, folder: RunFolder) -> RunRecord:
    record = folder.read_result()
    if record.run_id != config.run_id:
        raise SparsebenchError(
            f"{folder.path} holds the finished run {record.run_id}, not {config.run_id}: choose another folder"
        )
    return record


def _train(
    config: RunConfig,
    folder: RunFolder,
    where: Devices,
    training: Training,
    checkpoint_seconds: float,
    observe: Observer | None,
) -> RunRecord:
    workload, model, sparsifier, state = training.workload, training.model, training.sparsifier, training.state
    _go_on(config, folder, training, checkpoint_seconds, observe, config.recipe.steps)
    if state.average.put_into(model) and not METHODS.get(config.method).auxiliary:
        # Weights that were dropped between two of the checkpoints. (Learned distributions are averaged with their weights.)
        sparsifier.apply_masks(model)
    where.verify(sparsifier)
    points = tuple(_evaluate(config, workload, model, point, training.prunable) for point in sparsifier.points())
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
        processor_seconds=sum(where.gathered(state.processor_seconds)),
        peak_memory_bytes=state.peak_memory_bytes,
        dense_multiply_adds=training.dense_multiply_adds,
        training_multiply_adds=state.cost.multiply_adds,
        dense_training_multiply_adds=state.cost.dense_multiply_adds,
        weights_sha256=weights_hash(finalized.state_dict()),
        environment=_environment(config.recipe, workload, training.data_notes, where),
        initial_histograms=training.initial_histograms,
        points=points,
    )


def _train_to(
    config: RunConfig, folder: RunFolder, training: Training, checkpoint_seconds: float, observe: Observer | None, step: int
) -> RungRecord:
    state = training.state
    _go_on(config, folder, training, checkpoint_seconds, observe, step)
    state.save(folder)  # before it is looked at: what is measured here changes nothing of what follows
    validation, sparsity = validate(config, training.workload, state)
    if not math.isfinite(validation):
        raise SparsebenchError(f"the validation metric is {validation} at step {step} ({config.method}, seed {config.seed})")
    return RungRecord(step=step, validation=validation, sparsity=sparsity)


def _go_on(
    config: RunConfig, folder: RunFolder, training: Training, checkpoint_seconds: float, observe: Observer | None, until: int
) -> None:
    keeping = _keeping_weights(config, folder, training.state, training.names, observe)
    run_steps(config, training.workload, training.state, folder, training.memory, checkpoint_seconds, keeping, until)


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
        histograms = weight_histograms(dict(model.named_parameters()), prunable)
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
            LayerRecord(
                layer=row.name,
                shape=row.shape,
                weights=row.weights,
                zeros=row.zeros,
                head_zeros=heads.get(row.name, ()),
                histogram=histograms[row.name],
            )
            for row in rows
        ),
    )


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
        | settings_in_force()
        | ({"batch norm": batch_norm} if recipe.batch_norm_batches else {})
        | ({"processes": str(where.processes)} if where.processes > 1 else {})
        | ({"device": torch.cuda.get_device_name(where.device)} if where.device.type == "cuda" else {})
    )
