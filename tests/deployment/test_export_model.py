"""The command that writes a finished run's network for other programs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_runs import answer, finished

from sparsebench.deployment.export import export_model
from sparsebench.deployment.networks import finished_network
from sparsebench.errors import SparsebenchError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("results")).path


def test_onnx_of_a_run_classifies_as_the_run_did(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    line = export_model(run, path)
    network = finished_network(run)
    zeros = sum(int((p == 0).sum()) for p in network.model.parameters() if p.dim() > 1)
    assert line.startswith(f"{path}: {path.stat().st_size:,} bytes, opset ")
    assert f", {zeros:,} zeros kept; ONNX Runtime differs from torch by " in line
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (pixels,) = network.workload.example_input(33).arguments
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    with torch.no_grad():
        assert np.allclose(found, network.model(pixels).numpy(), atol=1e-4)


def test_program_of_a_run_computes_what_the_run_did(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    assert export_model(run / "model.safetensors", path) == f"{path}: {path.stat().st_size:,} bytes"
    program = torch.export.load(path)
    network = finished_network(run)
    for name, value in network.model.named_parameters():
        assert torch.equal(program.state_dict[name], value)
    (pixels,) = network.workload.example_input(5).arguments
    with torch.no_grad():
        torch.testing.assert_close(program.module()(pixels), network.model(pixels))


@pytest.mark.parametrize("name", ["model.pt", "model", "model.onnx.gz"])
def test_other_endings_are_refused(run: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SparsebenchError, match=rf"^cannot export to '{name}': expected a name that ends in \.onnx or \.pt2$"):
        export_model(run, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_command(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    ask = partial(answer, monkeypatch, capfd, "export-model")
    path = tmp_path / "model.pt2"
    status, out, err = ask(run, path)
    assert (status, err) == (0, "")
    assert out == f"{path}: {path.stat().st_size:,} bytes\n"
    status, _, err = ask(tmp_path / "no", path)
    assert status == 2
    assert err == f"error: there is no {tmp_path / 'no'}: expected the folder of a finished run, or its model.safetensors\n"
    status, _, err = ask(run, tmp_path / "no" / "model.pt2")
    assert status == 2
    assert err.startswith(f"error: cannot write {tmp_path / 'no' / 'model.pt2'}: ")
