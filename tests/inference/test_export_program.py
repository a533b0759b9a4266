"""Programs of torch.export compute what the network computes, after being saved and loaded too."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.inference.export import export_program
from sparsebench.workloads.images.digits import DIGITS
from sparsebench.workloads.translation.transformer import Size, Transformer


def pruned(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) >= 0.8)
    return model


def saved_and_loaded(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def test_digits_network_at_other_batch_sizes() -> None:
    model = pruned(DIGITS.network())
    program = saved_and_loaded(export_program(model, torch.randn(1, 1, 8, 8)))
    for name, weight in model.named_parameters():
        assert program.state_dict[name].equal(weight)
    assert model.training
    model.eval()
    for batch in (1, 2, 9):
        x = torch.randn(batch, 1, 8, 8)
        torch.testing.assert_close(program.module()(x), model(x))


def test_transformer_at_other_lengths() -> None:
    model = pruned(Transformer(50, Size(width=16, feed_forward=32, heads=2, layers=1))).eval()
    example = (torch.randint(3, 50, (2, 5)), torch.randint(3, 50, (2, 7)))
    program = export_program(model, example, dynamic={"source": {0: "n", 1: "s"}, "target": {0: "n", 1: "t"}})
    source, target = torch.randint(3, 50, (4, 9)), torch.randint(3, 50, (4, 3))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(source, target), model(source, target))


def test_without_dynamic_dimensions_the_sizes_are_the_examples() -> None:
    program = export_program(pruned(nn.Linear(4, 2)), torch.randn(3, 4), dynamic={})
    assert program.module()(torch.randn(3, 4)).shape == (3, 2)
    with pytest.raises(AssertionError, match="Guard failed"):
        program.module()(torch.randn(2, 4))


def test_what_is_not_finalized_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    sparsifier = sparsebench.l0_regularization(penalty=1.0, end=10, layers=["1"])
    sparsifier.prepare(model)
    with pytest.raises(
        SparsebenchError, match=r"^'1' still has noisy weights \(StochasticLinear\): call sparsifier\.finalize\(\)"
    ):
        export_program(model, torch.randn(1, 4))


def test_what_torch_cannot_trace_is_one_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(SparsebenchError, match=r"^torch cannot export Branches: ") as raised:
        export_program(Branches(), torch.randn(2, 2))
    assert "\n" not in str(raised.value)
