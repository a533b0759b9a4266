"""The networks of the workloads at full size as ONNX: the export itself compares outputs at three batch sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from sparsebench.inference.export import export_onnx
from sparsebench.workloads.images.networks import make_network
from sparsebench.workloads.translation.transformer import SIZES, Transformer


def pruned(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) >= 0.9)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("resnet-20", 32), ("wrn-16-2", 32), ("resnet-50", 224)])
def test_residual_networks(name: str, size: int, tmp_path: Path) -> None:
    model = pruned(make_network(name, 3, size, 10)).to(memory_format=torch.channels_last)
    written = export_onnx(model, torch.randn(2, 3, size, size), tmp_path / "model.onnx")
    assert written.greatest_difference < 1e-4
    assert written.zeros == sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "base"])
def test_transformers(size: str, tmp_path: Path) -> None:
    model = pruned(Transformer(8000, SIZES[size]))
    example = (torch.randint(3, 8000, (2, 20)), torch.randint(3, 8000, (2, 23)))
    dynamic = {"source": {0: "sentences", 1: "source_positions"}, "target": {0: "sentences", 1: "target_positions"}}
    written = export_onnx(model, example, tmp_path / "model.onnx", dynamic=dynamic)
    assert written.greatest_difference < 1e-4
