"""`sparsebench compress | inspect | decompress`."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from exact_bits import same_bits
from torch import nn

from sparsebench import cli
from sparsebench.storage import inspect, load_compressed, save_compressed


@dataclass
class Answer:
    status: int
    out: str
    err: str


Ask = Callable[..., Answer]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Ask:
    monkeypatch.chdir(tmp_path)

    def ask(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["sparsebench", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        text = capfd.readouterr()
        return Answer(int(ended.value.code or 0), text.out, text.err)

    return ask


def is_mistake(answer: Answer, *words: str) -> None:
    assert (answer.status, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith("error: ")
    for word in words:
        assert word in answer.err


def model() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 60), nn.BatchNorm1d(60), nn.Linear(60, 50), nn.Linear(40, 50))
    with torch.no_grad():
        network[1].weight[torch.rand(60, 40) < 0.9] = 0.0
    network[4].weight = network[0].weight
    return network


@pytest.mark.parametrize("kind", ["safetensors", "pt", "legacy.pt"])
def test_there_and_back(ask: Ask, kind: str) -> None:
    state = model().state_dict()
    if kind == "safetensors":
        safetensors.torch.save_model(model(), f"model.{kind}")
        state = safetensors.torch.load_file("model.safetensors")  # knows tied names once
    else:
        torch.save(state, f"model.{kind}", _use_new_zipfile_serialization=kind == "pt")
    answer = ask("compress", f"model.{kind}", "small.safetensors")
    size = Path("small.safetensors").stat().st_size
    assert (answer.status, answer.err) == (0, "")
    ratio = inspect("small.safetensors").ratio
    assert answer.out == f"small.safetensors: {size:,} bytes, {ratio:.2f} times smaller than the dense tensors\n"
    assert size < Path(f"model.{kind}").stat().st_size
    assert same_bits(load_compressed("small.safetensors"), state)
    answer = ask("decompress", "small.safetensors", "back.safetensors")
    written = Path("back.safetensors").stat().st_size
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == f"back.safetensors: {written:,} bytes, {len(state)} tensors\n"
    assert same_bits(safetensors.torch.load_file("back.safetensors"), state)
    with safetensors.safe_open("back.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_inspect_prints_every_tensor_and_the_totals(ask: Ask) -> None:
    save_compressed(model(), "x.safetensors")
    answer = ask("inspect", "x.safetensors")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == f"{inspect('x.safetensors')}\n"
    heading, _, *rows, _, total, tied, file = answer.out.splitlines()
    assert " ".join(heading.split()) == "tensor shape type coding elements zeros sparsity dense bytes stored bytes"
    assert [row.split()[0] for row in rows] == [name for name in model().state_dict() if name != "4.weight"]
    zeros = int((model()[1].weight == 0).sum())
    (sparse,) = [row for row in rows if row.startswith("1.weight")]
    assert f"60 x 40  F32   gaps (k=3)     2,400  {zeros:,}   {zeros / 24:.2f} %" in sparse
    assert total.startswith("all tensors")
    assert tied == "4.weight is 0.weight (tied, stored once)"
    assert file.startswith(f"file: {Path('x.safetensors').stat().st_size:,} bytes with its header, ")


def test_values_and_signs_of_zeros(ask: Ask) -> None:
    weight = torch.randn(100, 100) * (torch.rand(100, 100) < 0.1)
    torch.save({"w": weight}, "model.pt")
    assert ask("compress", "model.pt", "x", "--values", "bfloat16", "--unsigned-zeros").status == 0
    expected = torch.where(weight == 0, 0.0, weight).bfloat16().float()
    assert same_bits(load_compressed("x"), {"w": expected})
    is_mistake(ask("compress", "model.pt", "x", "--values", "int8"), "'int8' is not one of 'float16', 'bfloat16'")


def test_zstd(ask: Ask) -> None:
    torch.save({"w": torch.randn(100, 100)}, "model.pt")
    answer = ask("compress", "model.pt", "x", "--zstd", 3)
    if importlib.util.find_spec("zstandard") is None:
        is_mistake(answer, "zstd needs the package zstandard: pip install sparsebench[storage]")
        return
    assert answer.status == 0
    assert "plain + zstd" in ask("inspect", "x").out
    is_mistake(ask("compress", "model.pt", "y", "--zstd", 23), "zstd=23: expected a level from 1 (fast) to 22 (small)")


def test_limit(ask: Ask) -> None:
    save_compressed({"w": torch.zeros(100, 100)}, "x")
    is_mistake(ask("decompress", "x", "y.safetensors", "--max-bytes", 39_999), "x unfolds to 40,000 bytes, the limit is 39,999")
    assert not Path("y.safetensors").exists()
    assert ask("decompress", "x", "y.safetensors", "--max-bytes", 40_000).status == 0


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_mistakes_are_one_line_and_leave_nothing(ask: Ask, tmp_path: Path) -> None:
    save_compressed({"w": torch.ones(3)}, "x")
    torch.save({"state_dict": {"w": torch.ones(3)}, "epoch": 3}, "nested.pt")
    torch.save(torch.ones(3), "tensor.pt")
    torch.save(model(), "whole.pt")
    torch.save({"w": torch.ones(3)}, "cut.pt")
    Path("cut.pt").write_bytes(Path("cut.pt").read_bytes()[:-100])
    Path("evil.pt").write_bytes(pickle.dumps(Evil()))
    Path("text").write_text("hello")
    safetensors.torch.save_file({"w": torch.ones(30)}, "short.safetensors")
    Path("short.safetensors").write_bytes(Path("short.safetensors").read_bytes()[:-1])
    before = {file.name for file in tmp_path.iterdir()}
    is_mistake(ask("compress", "none", "y"), "cannot read none: No such file")
    is_mistake(ask("compress", "x", "y"), "x is a compressed checkpoint already")
    is_mistake(ask("compress", "text", "./text"), "IN and OUT are the same file, text")
    is_mistake(ask("decompress", "x", "x"), "IN and OUT are the same file, x")
    is_mistake(ask("decompress", "x", "y.pt"), "OUT is y.pt: expected a name that ends in .safetensors")
    is_mistake(
        ask("compress", "nested.pt", "y"), "nested.pt: 'state_dict' is no tensor but dict: expected a state dict by itself"
    )
    is_mistake(ask("compress", "tensor.pt", "y"), "tensor.pt holds one Tensor: expected a state dict")
    for name in ("whole.pt", "cut.pt", "evil.pt", "text"):
        is_mistake(ask("compress", name, "y"), f"{name} is no safetensors file and no file of tensors that torch.save wrote")
    is_mistake(ask("compress", "short.safetensors", "y"), "short.safetensors: not a whole safetensors file")
    is_mistake(ask("inspect", "short.safetensors"), "short.safetensors: not a compressed checkpoint of sparsebench")
    is_mistake(ask("compress", "nested.pt", "no/y"))
    is_mistake(ask("decompress", "x", "no/y.safetensors"), "cannot write no/y.safetensors: No such file")
    assert {file.name for file in tmp_path.iterdir()} == before


def test_help_tells_a_newcomer_what_to_type(ask: Ask) -> None:
    assert {"compress", "inspect", "decompress"} <= set(ask("--help").out.split())
    for command, example in [
        ("compress", "sparsebench compress model.pt small.safetensors"),
        ("inspect", "sparsebench inspect small.safetensors"),
        ("decompress", "sparsebench decompress small.safetensors model.safetensors"),
    ]:
        answer = ask(command, "--help")
        assert answer.status == 0
        assert f"Example: {example}" in answer.out


def test_negative_zeros_are_told(ask: Ask) -> None:
    torch.save({"w": torch.full((100, 100), -0.0)}, "model.pt")
    answer = ask("compress", "model.pt", "x")
    assert answer.status == 0
    assert answer.err.startswith("warning: 10,000 of 10,000 elements are -0.0")
    assert "--unsigned-zeros" in answer.err
    assert answer.err.count("\n") == 1
    answer = ask("compress", "model.pt", "y", "--unsigned-zeros")
    assert (answer.status, answer.err) == (0, "")
