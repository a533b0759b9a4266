from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import STEPS, TECHNIQUES, InterruptedRunError, left_over, short, stop_at

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.storage import inspect, load_compressed
from sparsebench.training import loop as training_loop
from sparsebench.training import run as training_run
from sparsebench.training.checkpoint import weights_hash
from sparsebench.training.run import RunHeldError, run_folder, train

HOLD = """
import sys, time
from pathlib import Path
from sparsebench.records.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).claim() as ours:
    print(ours, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_record_says_what_the_model_file_holds(tmp_path: Path, technique: str) -> None:
    """PEERS 5 and 23: a run leaves a sparse file, with its configuration and metrics."""
    config = short(technique)
    folder = RunFolder(tmp_path / "run")
    record = train(config, folder)
    assert record == folder.read_result()
    assert (record.run_id, record.config) == (config.run_id, config.model_dump(mode="json"))
    assert (record.steps, record.seed, record.method) == (STEPS, 3, config.method)
    model = load_compressed(folder.model_path)
    assert weights_hash(model) == record.weights_sha256
    held = inspect(folder.model_path)
    assert (held.method, held.config) == (config.method, record.config)
    assert held.metrics is not None
    assert {split: held.metrics[split] for split in ("validation", "test")} == record.points[0].metrics
    assert (held.metrics["sparsity"], held.metrics["threshold"]) == (record.points[0].sparsity, record.points[0].threshold)
    zeros = {row.name: row.zeros for row in held.tensors}
    assert {layer.layer: layer.zeros for layer in record.points[0].layers}.items() <= zeros.items()
    layers = record.points[0].layers
    assert [layer.layer for layer in layers] == [name for name, tensor in model.items() if tensor.dim() > 1] or {
        layer.layer for layer in layers
    } == {name for name, tensor in model.items() if tensor.dim() > 1}
    for layer in layers:
        assert layer.shape == tuple(model[layer.layer].shape)
        assert layer.zeros == int((model[layer.layer] == 0).sum())
        assert not (torch.signbit(model[layer.layer]) & (model[layer.layer] == 0)).any()  # +0.0, never -0.0
    assert record.points[0].sparsity == sum(layer.zeros for layer in layers) / sum(layer.weights for layer in layers)
    assert [set(point.metrics) for point in record.points] == [{"validation", "test"}] * len(record.points)
    asked = None if technique in ("dense", "variational dropout", "l0") else 0.9
    assert [point.target_sparsity for point in record.points] == [asked] * len(record.points)
    thresholds = [3.0, 1.0] if technique == "variational dropout" else [None]
    assert [point.threshold for point in record.points] == thresholds
    # What a weight is multiplied at does not depend on how many of its neighbours are zero.
    assert all(0 < point.multiply_adds <= record.dense_multiply_adds for point in record.points)
    assert record.dense_training_multiply_adds == STEPS * config.recipe.batch_size * 3 * record.dense_multiply_adds
    relative = record.training_multiply_adds / record.dense_training_multiply_adds
    assert relative == {"dense": 1.0, "variational dropout": 2.0, "l0": 1.0}.get(technique, relative) > 0.0
    assert (relative < 1.0) == (asked is not None)


def test_lower_threshold_drops_more(tmp_path: Path) -> None:
    points = train(short("variational dropout"), RunFolder(tmp_path / "run")).points
    assert 0.0 <= points[0].sparsity < points[1].sparsity < 1.0


def test_result_is_written_when_all_else_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    write = RunFolder.write_result

    def spy(folder: RunFolder, record: Any) -> None:
        seen.append({file.name for file in folder.path.iterdir()})
        write(folder, record)

    monkeypatch.setattr(RunFolder, "write_result", spy)
    folder = RunFolder(tmp_path / "run")
    train(short("dense"), folder, checkpoint_seconds=0.0)
    assert seen == [{"checkpoint.pt", "config.json", "curve.jsonl", "model.safetensors"}]
    assert left_over(folder.path) == []


@pytest.mark.parametrize("part", ["_evaluate", "write_curve", "_write_model"])
def test_run_that_ends_in_its_last_moments_has_no_result_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: Any) -> None:
        raise InterruptedRunError

    folder, calm = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "calm")
    with monkeypatch.context() as patched:
        patched.setattr(training_run, part, fail)
        with pytest.raises(InterruptedRunError):
            train(short("l0"), folder, checkpoint_seconds=0.0)
    assert folder.status() == "started"
    assert folder.checkpoint_path.exists()
    assert train(short("l0"), folder).weights_sha256 == train(short("l0"), calm).weights_sha256


def never(_: object) -> None:
    raise AssertionError("a step was trained")


def test_finished_run_never_trains_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    record = train(short("dense"), folder)
    files = {file.name: file.stat().st_mtime_ns for file in folder.path.iterdir()}
    assert train(short("dense"), folder, observe=never) == record
    assert {file.name: file.stat().st_mtime_ns for file in folder.path.iterdir()} == files


def test_run_that_another_process_finishes_before_the_claim_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    record = train(short("dense"), folder)
    status, answers = RunFolder.status, ["started"]
    monkeypatch.setattr(RunFolder, "status", lambda folder: answers.pop() if answers else status(folder))
    assert train(short("dense"), folder, observe=never) == record


def test_folder_of_another_finished_run_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    train(short("dense"), folder)
    with pytest.raises(SparsebenchError, match="holds the finished run"):
        train(short("dense", seed=4), folder)


def test_folder_of_another_started_run_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        train(short("dense"), folder, checkpoint_seconds=0.0, observe=stop_at(2))
    with pytest.raises(SparsebenchError, match=r"config\.json holds another configuration"):
        train(short("dense", seed=4), folder)


def test_run_folder_is_named_after_the_configuration(tmp_path: Path) -> None:
    assert run_folder(tmp_path / "new", short("dense")).path == tmp_path / "new" / "runs" / short("dense").run_id


def test_second_process_cannot_train_the_same_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with pytest.raises(RunHeldError, match="another process is training"):
            train(short("dense"), folder, observe=never)
        assert not folder.path.exists()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        assert holder.stdout is not None
        holder.stdout.close()
    assert train(short("dense"), folder).steps == STEPS


def test_claim_within_one_process_is_exclusive_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claim() as first, folder.claim() as second:
        assert (first, second) == (True, False)
    with folder.claim() as again:
        assert again


def test_claim_ends_with_a_failed_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        train(short("dense"), folder, observe=stop_at(1))
    with folder.claim() as ours:
        assert ours


def test_diverging_run_says_so_and_keeps_no_result(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(SparsebenchError, match=r"the loss is (nan|inf) at step \d+ .*the training diverged") as caught:
        train(short("dense", learning_rate=1e30), folder)
    assert "\n" not in str(caught.value)
    assert folder.status() == "started"
    assert not folder.model_path.exists()


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("config.json", set()),
        ("checkpoint.pt", {"config.json"}),
        ("curve.jsonl", {"config.json"}),
        ("model.safetensors", {"config.json", "curve.jsonl"}),
        ("result.json", {"config.json", "curve.jsonl", "model.safetensors"}),
    ],
)
def test_full_disk_leaves_no_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: set[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if any(file.name.startswith(f".{name}.") for file in folder.path.iterdir()):
            full_disk()
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(SparsebenchError, match=rf"^cannot write \S*/{name}: No space left on device$"):
            train(short("dense"), folder, checkpoint_seconds=0.0 if name == "checkpoint.pt" else 1000.0)
    assert {file.name for file in folder.path.iterdir()} == before
    assert train(short("dense"), folder).steps == STEPS
    assert left_over(folder.path) == []


LIMITED = """
import resource, sys
from pathlib import Path
from sparsebench.records.run_folder import RunFolder
from sparsebench.training import run
from sparsebench.training.config import resolve
folder = RunFolder(Path(sys.argv[1]))
config = resolve("digits", "dense", {}, {"steps": 3})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
for seconds in (0.0, 1000.0):
    try:
        run.train(config, folder, checkpoint_seconds=seconds)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_file_size_limit_of_the_system_is_met_like_a_full_disk(tmp_path: Path) -> None:
    """A limit between the size of the configuration and that of a checkpoint and a model."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", LIMITED, str(folder), "100000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"SparsebenchError cannot write {folder}/checkpoint.pt: File too large",
        f"SparsebenchError cannot write {folder}/model.safetensors: File too large",
    ]
    assert {file.name for file in folder.iterdir()} == {"config.json", "curve.jsonl"}


def test_older_checkpoint_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        train(short("dense"), folder, checkpoint_seconds=0.0, observe=stop_at(8))
    before = folder.checkpoint_path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(SparsebenchError, match="No space left"):
            train(short("dense"), folder, checkpoint_seconds=0.0)
    assert folder.checkpoint_path.read_bytes() == before


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SparsebenchError, match=r"^cannot create folder \S+: Not a directory$"):
        run_folder(tmp_path / "file" / "results", short("dense"))


def test_learning_rate_falls_along_half_a_cosine_after_its_warmup() -> None:
    recipe = short("dense", steps=100, warmup_steps=4, learning_rate_schedule="cosine").recipe
    factors = [training_loop.learning_rate_factor(recipe, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.25)
    assert factors[50] == pytest.approx(0.5)
    assert factors[99] < 0.001
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[4:]))


def test_other_learning_rate_schedules() -> None:
    constant = short("dense", steps=100, learning_rate_schedule="constant").recipe
    assert {training_loop.learning_rate_factor(constant, step) for step in range(100)} == {1.0}
    trapezoid = short("dense", steps=100, learning_rate_schedule="trapezoid").recipe
    factors = [training_loop.learning_rate_factor(trapezoid, step) for step in range(100)]
    assert factors[:51] == [1.0] * 51
    assert factors[75] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.02)
