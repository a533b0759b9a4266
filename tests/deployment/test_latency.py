"""Latency is measured once for each finished run, of its own network, and stands in the tables."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from finished_runs import answer, finished
from torch import nn

from sparsebench.deployment import latency as latency_module
from sparsebench.deployment.latency import LatencySettings, measure_latency, measure_runs, take_turns
from sparsebench.deployment.networks import FinishedNetwork, finished_network
from sparsebench.errors import SparsebenchError
from sparsebench.inference import kernel_path
from sparsebench.inference.choices import Choices
from sparsebench.records.locking import locked
from sparsebench.records.query import query
from sparsebench.records.run_folder import RunFolder
from sparsebench.storage import load_compressed, save_compressed
from sparsebench.workloads.workload import ExampleInput

QUICK = LatencySettings(batch=4, threads=1, seconds=0.01)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    finished(directory)
    finished(directory, "dense")
    finished(directory, "variational-dropout", thresholds=[3.0, 1.0], begin="2 steps", end="8 steps")
    return directory


@pytest.fixture
def results(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "results"))


def latencies(directory: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in directory.glob("runs/*/latency.json")}


def test_every_network_is_measured_and_stands_in_the_table(results: Path) -> None:
    assert measure_runs(results, QUICK) == (3, 0, {})
    rows = query(
        results,
        "select method, threshold, latency_ms, dense_latency_ms, latency_batch, latency_threads from results "
        "where split = 'test' and primary_metric order by method, threshold desc",
    )
    assert rows["method"].tolist() == ["dense", "magnitude", "variational-dropout", "variational-dropout"]
    assert (rows["latency_ms"][:3] > 0).all()
    assert (rows["dense_latency_ms"][:3] > 0).all()
    assert rows["latency_batch"].tolist()[:3] == [4, 4, 4]
    assert rows["latency_threads"].tolist()[:3] == [1, 1, 1]
    assert rows.iloc[3, 2:].isna().all()  # the run left the network of its first threshold
    for folder in (RunFolder(path) for path in (results / "runs").iterdir() if path.is_dir()):
        record = folder.read_latency()
        assert record is not None
        assert record.weights_sha256 == folder.read_result().weights_sha256
        assert record.latency_ms <= record.median_latency_ms
        assert record.dense_latency_ms <= record.median_dense_latency_ms
        assert record.rounds >= 5
        assert record.layers == 4  # linear layers and convolutions
        assert record.environment["torch"] == torch.__version__


def test_what_was_measured_is_not_measured_again_unless_asked(results: Path) -> None:
    measure_runs(results, QUICK)
    before = latencies(results)
    assert measure_runs(results, QUICK) == (0, 3, {})
    assert latencies(results) == before
    assert measure_runs(results, QUICK, again=True) == (3, 0, {})
    assert latencies(results) != before
    assert measure_runs(results, QUICK._replace(batch=2)) == (3, 0, {})
    new = finished(results, seed=1)
    assert measure_runs(results, QUICK._replace(batch=2)) == (1, 3, {})
    assert new.latency_path.exists()
    # A run whose weights are others now, though it has the same id.
    record = new.read_result()
    new.write_result(record.model_copy(update={"weights_sha256": "0" * 64}))
    assert measure_runs(results, QUICK._replace(batch=2)) == (1, 3, {})


def test_interrupted_measurement_goes_on(results: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_runs(results, QUICK, done=stop)
    first = latencies(results)
    assert len(first) == 1
    asked: list[int] = []
    assert measure_runs(results, QUICK, begin=asked.append) == (2, 1, {})
    assert asked == [2]
    assert latencies(results).items() >= first.items()


def test_network_that_cannot_be_measured_does_not_stop_the_others(results: Path) -> None:
    broken, other = sorted(path for path in (results / "runs").iterdir() if path.is_dir())[:2]
    (broken / "model.safetensors").unlink()
    state = load_compressed(other / "model.safetensors")
    config = json.loads((other / "config.json").read_text())
    save_compressed({"weight": torch.ones(2, 2)}, other / "model.safetensors", config=config)
    summary = measure_runs(results, QUICK)
    assert (summary.measured, summary.present) == (1, 0)
    assert summary.failed[broken.name] == (
        f"there is no {broken / 'model.safetensors'}: expected the folder of a finished run, or its model.safetensors"
    )
    assert summary.failed[other.name].startswith(f"{other / 'model.safetensors'} holds another network than 'digits' has here: ")
    assert "\n" not in summary.failed[other.name]
    save_compressed(state, other / "model.safetensors", config=config)
    assert measure_runs(results, QUICK).measured == 1


class Sleeping:
    """A workload whose networks take the time that they say."""

    def example_input(self, examples: int) -> ExampleInput:
        return ExampleInput((torch.zeros(examples, 3),))

    def use(self, model: nn.Module, example: ExampleInput) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert torch.get_num_threads() == 1
        assert example.arguments[0].shape == (7, 3)
        return model(*example.arguments)


class Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.layer = seconds, nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.layer(x)


def test_the_time_of_one_batch_is_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(model: nn.Module, example: object) -> nn.Module:
        faster = Sleeper(0.002)
        vars(faster)["sparse_choices"] = Choices()
        return faster

    monkeypatch.setattr(latency_module, "compile_sparse", compiled)
    threads = torch.get_num_threads()
    settings = LatencySettings(batch=7, threads=1, seconds=0.1)
    record = measure_latency(FinishedNetwork(Sleeper(0.008).eval(), Sleeping()), settings, "hash")
    assert torch.get_num_threads() == threads
    assert 2.0 <= record.latency_ms < 7.0
    assert 8.0 <= record.dense_latency_ms < 30.0
    assert (record.batch, record.threads, record.weights_sha256) == (7, 1, "hash")


def test_ways_take_turns_back_and_forth() -> None:
    calls: list[str] = []
    times = take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, seconds=1e-9)
    assert "".join(calls) == "abc" + "abccba" * 2 + "abc"
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 5)


def test_network_of_a_run_is_the_one_that_was_measured(results: Path) -> None:
    folder = next(path for path in (results / "runs").iterdir() if path.is_dir())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network = finished_network(folder)
    assert torch.equal(torch.rand(3), expected)  # no noise is drawn
    assert not network.model.training
    accuracy = network.workload.evaluate(network.model, "test")["accuracy"]
    assert accuracy == pytest.approx(RunFolder(folder).read_result().points[0].metrics["test"]["accuracy"])
    again = finished_network(folder / "model.safetensors")
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in network.model.state_dict().items())


def test_checkpoint_that_tells_no_workload_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_compressed(nn.Linear(2, 2), path)
    with pytest.raises(SparsebenchError, match=r"^\S+ does not tell its workload, so its network cannot be built here: "):
        finished_network(path)
    save_compressed(nn.Linear(2, 2), path, config={"workload": "no-such"})
    with pytest.raises(SparsebenchError, match=r"^unknown workload 'no-such'"):
        finished_network(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (QUICK._replace(batch=0), r"^batch=0: expected at least 1$"),
        (QUICK._replace(threads=0), r"^threads=0: expected at least 1$"),
        (QUICK._replace(seconds=0.0), r"^seconds=0: expected more than 0$"),
    ],
)
def test_settings_out_of_range(results: Path, settings: LatencySettings, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message):
        measure_runs(results, settings)


def test_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SparsebenchError, match=r"holds no runs: expected a folder"):
        measure_runs(tmp_path, QUICK)
    (tmp_path / "runs").mkdir()
    with pytest.raises(SparsebenchError, match=r"holds no finished run of this package: there is no network to measure$"):
        measure_runs(tmp_path, QUICK)


def _hold(directory: Path, held: object, release: object) -> None:
    with locked(directory / "latency", timeout=0):
        held.set()
        release.wait(60)


def test_two_at_once_are_refused(results: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(results, held, release))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(SparsebenchError, match=r"^another process measures in \S+: both at once would disturb each other$"):
            measure_runs(results, QUICK)
    finally:
        release.set()
        process.join()


def test_command(results: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    ask = partial(answer, monkeypatch, capfd, "latency")
    measure = (results, "--batch", 3, "--threads", 1, "--seconds", 0.01)
    status, out, err = ask(*measure)
    assert (status, err) == (0, "")
    how = f"batch 3, threads 1, kernels {kernel_path()}"
    assert out == f"3 networks measured ({how}), 0 had been before; results: {results}\n"
    broken = next(path for path in sorted((results / "runs").iterdir()) if path.is_dir())
    (broken / "model.safetensors").unlink()
    assert ask(*measure)[1].startswith(f"0 networks measured ({how}), 3 had been before; ")
    status, out, _ = ask(*measure, "--again")
    assert status == 1
    assert out.splitlines()[0].startswith(f"run {broken.name} could not be measured: there is no ")
    assert out.splitlines()[1].startswith(f"2 networks measured ({how}), 0 had been before; ")
    status, _, err = ask(results / "no")
    assert status == 2
    assert err == f"error: no such results folder: {results / 'no'}\n"
