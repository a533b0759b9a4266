"""A report as text, JSON and DataFrame."""

import ast
import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsebench import accounting
from sparsebench.accounting import LayerReport, Report, report
from sparsebench.errors import SparsebenchError


@pytest.fixture
def model():
    model = nn.Sequential()
    model.add_module("a_layer_with_a_rather_long_name", nn.Linear(1000, 64))
    model.add_module("norm", nn.BatchNorm1d(64))
    model.add_module("out", nn.Linear(64, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[0].weight[:48] = 0
    return model


def test_the_table(model):
    """PEERS 1 and 2: what is simulated stands beside what is there, and says that it is no measured speed."""
    assert str(report(model, torch.ones(2, 1000))).splitlines() == [
        "layer                                   type    shape      weights   zeros  sparsity      bytes  compressed"
        "  multiply-adds  simulated sparse",
        "-" * 140,
        "a_layer_with_a_rather_long_name.weight  Linear  64 x 1000   64,000  48,000   75.00 %  250.0 KiB    70.3 KiB"
        "        128,000            32,000",
        "out.weight                              Linear  10 x 64        640       0    0.00 %    2.5 KiB     2.5 KiB"
        "          1,280             1,280",
        "-" * 140,
        "all layers (2)                                              64,640  48,000   74.26 %  252.5 KiB    72.8 KiB"
        "        129,280            33,280",
        "other parameters                                               202                        808 B       808 B",
        "buffers                                                                                   520 B       520 B",
        "whole model                                                 64,842                    253.8 KiB    74.1 KiB",
        "compressed: estimated for one mask bit per weight and the non-zero values, or as held where that is smaller",
        "multiply-adds: for the example input as given; simulated sparse: of non-zero weights only, not a measured speed",
    ]


def test_the_table_without_an_example_says_how_to_count(model):
    text = str(report(model))
    assert "simulated sparse" not in text
    assert text.endswith("multiply-adds: not counted; report(model, example_input) counts them")
    table = text.splitlines()[:-2]
    assert len({len(line) for line in table if set(line) == {"-"}}) == 1
    assert repr(report(model)) == text


def test_the_table_of_nothing():
    assert str(report(nn.ReLU())).splitlines()[-1].split() == ["whole", "model", "0", "0", "B", "0", "B"]


def test_large_sizes_are_readable():
    layer = LayerReport("w", "Linear", (2**20, 2**20), 2**40, 0, 2**42, 2**42)
    assert "4.0 TiB" in str(Report((layer,), 0, 0, 0))
    layer = dataclasses.replace(layer, bytes=2**30 - 1, compressed_bytes=2**30)
    assert "1024.0 MiB" not in str(Report((layer,), 0, 0, 0))


@pytest.mark.parametrize("counted", [False, True])
def test_json_round_trip(model, counted):
    held = report(model, torch.ones(1, 1000) if counted else None)
    for indent in (None, 2):
        assert json.loads(held.to_json(indent)) == held.to_dict()
    totals = held.to_dict()
    assert totals["multiply_adds"] == (64_640 if counted else None)
    layers = totals.pop("layers")
    assert {type(value) for row in [totals, *layers] for value in row.values()} <= {int, float, str, list, type(None)}
    for name, value in totals.items():
        assert value == getattr(held, name)
    assert layers[0]["shape"] == [64, 1000]


@pytest.mark.parametrize("counted", [False, True])
def test_dataframe_round_trip(model, counted):
    held = report(model, torch.ones(1, 1000) if counted else None)
    frame = held.to_dataframe()
    assert frame["weights"].sum() == held.weights
    assert frame["zeros"].sum() == held.zeros
    assert str(frame["multiply_adds"].dtype) == "Int64"
    assert frame["multiply_adds"].isna().all() != counted
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    assert records == held.to_dict()["layers"]


def test_the_dataframe_of_nothing_has_the_columns():
    frame = report(nn.ReLU()).to_dataframe()
    assert len(frame) == 0
    assert list(frame.columns) == list(report(nn.Linear(1, 1)).to_dict()["layers"][0])


def test_without_pandas_the_error_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SparsebenchError, match=r"^to_dataframe needs pandas: pip install sparsebench\[results\]$"):
        report(model).to_dataframe()


def test_reports_are_frozen(model):
    held = report(model)
    with pytest.raises(dataclasses.FrozenInstanceError):
        held.other_bytes = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        held.layers[0].zeros = 0


def test_accounting_imports_of_ours_only_itself_and_the_error():
    for file in Path(accounting.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sparsebench"):
                assert node.module.startswith(("sparsebench.accounting", "sparsebench.errors")), file
