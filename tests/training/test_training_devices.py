"""Several processes: parts of batches, the same masks and weights as one process, exact resume. CUDA is not tested here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsebench import cli
from sparsebench.errors import SparsebenchError
from sparsebench.storage import load_compressed
from sparsebench.training.devices import _SeveralProcesses, devices, launched_processes, part_of_batch
from sparsebench.workloads.images.digits import DIGITS
from sparsebench.workloads.images.measures import Images
from sparsebench.workloads.translation.batches import TokenBatch
from sparsebench.workloads.translation.cldr_ende import CLDR_ENDE
from sparsebench.workloads.translation.tokens import PADDING

SECONDS = 300
WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
# With Adam, gradients that are rounding errors would become whole steps.
SHORT = ["--steps", "60", "--set", "batch_size=24", "--set", "optimizer=sgd", "--set", "learning_rate=0.05"]


def launch(arguments: list[str], processes: int = 2) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "sparsebench",
        *arguments,
    ]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment())


def result_of(directory: Path) -> dict[str, Any]:
    [path] = directory.glob("runs/*/result.json")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    [path] = directory.glob("runs/*/model.safetensors")
    return load_compressed(path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    done = run([sys.executable, "-m", "sparsebench", *training("magnitude", out)])
    assert done.returncode == 0, done.stderr
    return out


def training(method: str, out: Path, *more: str) -> list[str]:
    asked = ["--penalty", "1.0", "--begin", "0", "--end", "0.5"] if method == "variational-dropout" else ["--sparsity", "0.9"]
    return ["train", "digits", "--method", method, *asked, *SHORT, "--out", str(out), *more]


def test_two_processes_train_the_network_of_one(alone: Path, tmp_path: Path) -> None:
    done = run(launch(training("magnitude", tmp_path)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("files: ") == 1  # one of them talks
    one, two = result_of(alone), result_of(tmp_path)
    assert one["run_id"] == two["run_id"]
    assert two["environment"]["processes"] == "2"
    assert "processes" not in one["environment"]
    assert one["points"][0]["sparsity"] == two["points"][0]["sparsity"]
    assert one["training_multiply_adds"] == two["training_multiply_adds"]
    first, second = weights_of(alone), weights_of(tmp_path)
    for name, weight in first.items():
        assert torch.equal(weight == 0, second[name] == 0), name
        assert torch.allclose(weight, second[name], atol=1e-5), name


@pytest.mark.slow
def test_interrupted_processes_go_on_exactly_with_noise_of_their_own(tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    for out in (whole, again):
        out.mkdir()
    assert run(launch(training("variational-dropout", whole))).returncode == 0
    command = launch(training("variational-dropout", again, "--checkpoint-seconds", "0"))
    quiet = subprocess.DEVNULL
    started = subprocess.Popen(command, env=environment(), stdout=quiet, stderr=quiet)
    deadline = time.monotonic() + SECONDS
    while not list(again.glob("runs/*/checkpoint.pt")):
        assert time.monotonic() < deadline
        assert started.poll() is None
        time.sleep(0.05)
    started.terminate()  # the launcher's workers are sessions of their own, which it ends
    started.wait(SECONDS)
    if list(again.glob("runs/*/result.json")):
        pytest.fail("the training ended before it could be killed: make it longer")
    [checkpoint] = again.glob("runs/*/checkpoint.pt")
    saved = torch.load(checkpoint, weights_only=True)
    noise, worked = saved["noise"], saved["processor_seconds"]
    assert len(noise) == len(worked) == 2
    assert not torch.equal(noise[0][0], noise[1][0])

    refused = run([sys.executable, "-m", "sparsebench", *training("variational-dropout", again)])
    assert refused.returncode == 2
    assert "does not fit this run (it is of 2 processes, these are 1)" in refused.stderr

    assert run(launch(training("variational-dropout", again))).returncode == 0
    assert result_of(again)["weights_sha256"] == result_of(whole)["weights_sha256"]
    assert result_of(again)["points"] == result_of(whole)["points"]
    assert result_of(again)["processor_seconds"] > sum(worked)  # of both


def test_a_study_is_not_launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["sparsebench", "study", "run", "quickstart", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "a study starts its own processes: run it without torchrun" in capsys.readouterr().err


@given(examples=st.integers(1, 40), count=st.integers(1, 7), seed=st.integers(0, 9))
def test_losses_of_parts_average_to_that_of_the_batch(examples: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(examples, 2, generator=generator, dtype=torch.float64)
    whole = Images(values, torch.arange(examples))
    parts = [part_of_batch(DIGITS, whole, index, count) for index in range(count)]
    mean = sum(share * part.pixels.mean() for part, share in parts) / count
    assert torch.allclose(torch.as_tensor(mean), values.mean())
    counted = [part.labels for part, share in parts if share]
    assert torch.equal(torch.cat(counted), whole.labels)


@given(sentences=st.integers(1, 12), count=st.integers(1, 5), seed=st.integers(0, 9))
def test_parts_of_token_batches_count_their_tokens(sentences: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, sentences)
    expected = torch.full((sentences, 9), PADDING)
    for row, length in enumerate(lengths):
        expected[row, :length] = 7
    losses = torch.from_numpy(random.random((sentences, 9)))
    batch = TokenBatch(torch.arange(sentences)[:, None], torch.zeros(sentences, 9, dtype=torch.int64), expected)

    def loss(part: TokenBatch) -> torch.Tensor:
        return losses[part.source[:, 0]][part.expected != PADDING].mean()

    parts = [part_of_batch(CLDR_ENDE, batch, index, count) for index in range(count)]
    assert torch.allclose(torch.as_tensor(sum(share * loss(part) for part, share in parts) / count), loss(batch))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "SPARSEBENCH_DEVICE='tpu': expected 'cpu' or 'cuda'"),
        pytest.param("cuda", "SPARSEBENCH_DEVICE='cuda': torch finds no CUDA device", marks=WITHOUT_CUDA),
    ],
)
def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setenv("SPARSEBENCH_DEVICE", name)
    devices.cache_clear()
    try:
        with pytest.raises(SparsebenchError, match=message):
            devices()
    finally:
        devices.cache_clear()


def test_a_workload_that_reads_parts_is_asked_for_no_whole_batch() -> None:
    class Reads:
        def part_of_batch(self, seed: int, step: int, batch_size: int, index: int, count: int) -> tuple[Any, float]:
            return (torch.tensor([seed, step, batch_size, index, count]),), 0.5

    where = object.__new__(_SeveralProcesses)
    where.device, where.processes, where.rank = torch.device("cpu"), 3, 2
    (given,), share = where.batch(Reads(), 7, 11, 64)  # type: ignore[arg-type]
    assert given.tolist() == [7, 11, 64, 2, 3]
    assert share == 0.5


def test_processes_of_mpi_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(SparsebenchError, match="OMPI_COMM_WORLD_SIZE=2: started by mpirun; expected torchrun"):
        launched_processes()
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert launched_processes() == 3
