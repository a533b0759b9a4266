from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from short_runs import InterruptedRunError, short, stop_at, what_must_be_equal
from torch import nn

from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import RunRecord
from sparsebench.training import memory as training_memory
from sparsebench.training.config import resolve
from sparsebench.training.memory import PeakMemory
from sparsebench.training.run import train
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.workload import Recipe, Split, Workload

MEGABYTE = 2**20  # the kernel counts a process's pages a little behind: bounds leave a megabyte

RECIPE = Recipe(steps=3, batch_size=1, optimizer="sgd", learning_rate=0.1)


@dataclass(frozen=True)
class Hungry:
    """A workload whose steps need much memory for a moment."""

    name: str
    megabytes: int
    summary: str = "for tests"
    revision: int = 1
    metric: str = "accuracy"
    recipe: Recipe = RECIPE
    training_examples: int = 10

    def build_model(self) -> nn.Module:
        return nn.Linear(4, 4)

    def batch(self, seed: int, step: int, batch_size: int) -> torch.Tensor:
        return torch.full((1, 4), float(step))

    def loss(self, model: nn.Module, batch: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        block = torch.ones(self.megabytes * MEGABYTE // 4)
        result: torch.Tensor = model(batch).square().mean() + 0.0 * block.sum()
        return result

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        return {"accuracy": 50.0}


@pytest.fixture
def add_workload() -> Iterator[Callable[[Workload], None]]:
    tuple(WORKLOADS)  # all entry points are loaded
    before = dict(WORKLOADS._entries)
    yield WORKLOADS.add
    WORKLOADS._entries = before


@pytest.mark.parametrize("technique", ["random, returning", "magnitude, gone", "variational dropout", "l0"])
def test_same_configuration_gives_the_same_bits(tmp_path: Path, technique: str) -> None:
    """PEERS 23: results that do not reproduce."""
    folders = [RunFolder(tmp_path / name) for name in ("one", "other")]
    outcomes = []
    for folder in folders:
        torch.manual_seed(len(outcomes))  # what the caller did before does not matter
        outcomes.append(what_must_be_equal(folder, train(short(technique), folder)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("technique", ["dense", "l0"])
def test_seed_changes_the_outcome(tmp_path: Path, technique: str) -> None:
    hashes = {train(short(technique, seed), RunFolder(tmp_path / str(seed))).weights_sha256 for seed in range(3)}
    assert len(hashes) == 3


@pytest.mark.parametrize("ends", ["well", "early"])
def test_state_of_the_calling_process_is_as_before(tmp_path: Path, ends: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        config = short("variational dropout", threads=1)
        if ends == "well":
            train(config, RunFolder(tmp_path / "run"))
        else:
            with pytest.raises(InterruptedRunError):
                train(config, RunFolder(tmp_path / "run"), observe=stop_at(3))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == 2
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
    finally:
        torch.set_num_threads(threads)


def test_run_has_the_threads_that_its_recipe_says_and_records_them(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    for threads in (1, 2):
        seen: set[int] = set()
        config = short("dense", steps=3, threads=threads)
        record = train(config, RunFolder(tmp_path / str(threads)), observe=lambda _: seen.add(torch.get_num_threads()))  # noqa: B023
        assert seen == {threads}
        assert record.environment["threads"] == str(threads)
    assert torch.get_num_threads() == before


def peak(config_of: Workload, path: Path) -> int:
    record = train(resolve(config_of.name, "dense", {}), RunFolder(path))
    assert record.peak_memory_bytes is not None
    return record.peak_memory_bytes


def test_peak_of_a_large_run_does_not_show_in_a_later_small_one(tmp_path: Path, add_workload: Callable[[Workload], None]) -> None:
    small, large = Hungry("test-small", 8), Hungry("test-large", 256)
    add_workload(small)
    add_workload(large)
    peak(small, tmp_path / "warm")  # what is loaded late belongs to no run
    before = peak(small, tmp_path / "before")
    assert 255 * MEGABYTE <= peak(large, tmp_path / "large") < 300 * MEGABYTE
    after = peak(small, tmp_path / "after")
    assert 7 * MEGABYTE <= before < 40 * MEGABYTE
    assert 7 * MEGABYTE <= after < 40 * MEGABYTE


def test_peak_counts_what_came_and_went() -> None:
    memory = PeakMemory()
    block = bytearray(64 * MEGABYTE)
    del block
    measured = memory.peak_bytes()
    assert measured is not None
    assert 63 * MEGABYTE <= measured < 80 * MEGABYTE
    assert PeakMemory().peak_bytes() is not None


@pytest.mark.parametrize("lacking", ["_CLEAR", "_STATUS"])
def test_peak_is_unknown_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    monkeypatch.setattr(training_memory, lacking, tmp_path / "no" / "such" / "file")
    assert PeakMemory().peak_bytes() is None
    record = train(short("dense"), RunFolder(tmp_path / "run"))
    assert record.peak_memory_bytes is None
    assert RunFolder(tmp_path / "run").read_result() == record


def test_peak_of_a_resumed_run_is_the_highest_of_its_processes(
    tmp_path: Path, add_workload: Callable[[Workload], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Hungry("test-resumed", 1)
    add_workload(workload)
    config, folder = resolve(workload.name, "dense", {}), RunFolder(tmp_path / "run")
    monkeypatch.setattr(PeakMemory, "peak_bytes", lambda _: 1000)
    with pytest.raises(InterruptedRunError):
        train(config, folder, checkpoint_seconds=0.0, observe=stop_at(2))
    monkeypatch.setattr(PeakMemory, "peak_bytes", lambda _: 10)
    record: RunRecord = train(config, folder)
    assert record.peak_memory_bytes == 1000


def test_seconds_are_training_time_and_add_up_over_processes(tmp_path: Path) -> None:
    folder, seen = RunFolder(tmp_path / "run"), []
    with pytest.raises(InterruptedRunError):
        train(short("dense"), folder, checkpoint_seconds=0.0, observe=stop_at(12))
    record = train(short("dense"), folder, observe=lambda progress: seen.append(progress.seconds))
    assert seen == sorted(seen)
    assert seen[0] > 0.0
    assert record.seconds == seen[-1]
