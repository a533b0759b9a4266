from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from exact_bits import raw, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.storage import container, inspect, load_compressed, save_compressed
from sparsebench.storage.element_types import _BY_TORCH

TYPES = sorted(_BY_TORCH, key=str)
PAIRS_OF_4_BITS = [dtype for dtype in TYPES if "float4" in str(dtype)]
WHOLE = [dtype for dtype in TYPES if dtype not in PAIRS_OF_4_BITS]


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, sparsity: float, seed: int) -> torch.Tensor:
    """Any bits at all, NaN and infinities and -0.0 among them; a part of the elements zero."""
    generator = torch.Generator().manual_seed(seed)
    elements = torch.Size(shape).numel()
    data = torch.randint(0, 2 if dtype == torch.bool else 256, (elements, dtype.itemsize), generator=generator, dtype=torch.uint8)
    data[torch.rand(elements, generator=generator) < sparsity] = 0
    return data.reshape(-1).view(dtype).reshape(shape) if elements else torch.empty(shape, dtype=dtype)


@st.composite
def states(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    state = {}
    for name in draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 12), max_size=4)))
        sparsity = draw(st.sampled_from([0.0, 0.05, 0.5, 0.9, 0.99, 1.0]))
        tensor = random_bits(shape, draw(st.sampled_from(WHOLE)), sparsity, draw(st.integers(0, 2**32)))
        state[name] = tensor.permute(draw(st.permutations(range(tensor.dim()))))
    return state


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(state=states())
def test_any_state_comes_back_to_the_last_bit(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "x"
    save_compressed(state, path)
    back = load_compressed(path)
    assert list(back) == list(state)
    assert same_bits(back, state)
    assert all(tensor.is_contiguous() for tensor in back.values())
    assert [(row.name, row.shape) for row in inspect(path).tensors] == [(name, tuple(state[name].shape)) for name in state]
    for name, row in zip(state, inspect(path).tensors, strict=True):
        bits = torch.frombuffer(bytearray(raw(state[name])) or bytearray(1), dtype=torch.uint8).reshape(-1, 1)
        words = bits.reshape(-1, state[name].dtype.itemsize) if state[name].numel() else bits[:0]
        assert row.zeros == int((words == 0).all(1).sum())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.93, 1.0])
def test_every_type_of_safetensors(tmp_path: Path, dtype: torch.dtype, sparsity: float) -> None:
    state = {
        "matrix": random_bits((90, 40), dtype, sparsity, 1),
        "scalar": random_bits((), dtype, sparsity, 2),
        "empty": random_bits((0, 7), dtype, sparsity, 3),
    }
    if dtype in PAIRS_OF_4_BITS:
        del state["scalar"]
    save_compressed(state, tmp_path / "x")
    assert same_bits(load_compressed(tmp_path / "x"), state)
    coding = inspect(tmp_path / "x").tensors[0].coding
    if dtype != torch.bool:  # half of the random bools are zero in any case
        assert (coding == "plain") == (sparsity == 0.0 or dtype in PAIRS_OF_4_BITS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_only_elements_without_a_bit_are_left_out(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.zeros(50, 50, dtype=dtype)
    weight[0, 0] = -0.0
    weight[1, 1] = float("nan")
    weight[2, 2] = -float("inf")
    weight[3, 3] = 1.0
    smallest = weight.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    smallest[4, 4] = 1  # a subnormal number
    smallest[5, 5] = -5  # a NaN with a sign and a payload
    save_compressed({"weight": weight}, tmp_path / "x")
    (row,) = inspect(tmp_path / "x").tensors
    assert (row.zeros, row.coding) == (2494, "gaps (k=4)")
    assert same_bits(load_compressed(tmp_path / "x"), {"weight": weight})


def test_tensors_in_any_layout_are_stored_in_row_major_order(tmp_path: Path) -> None:
    sparse = random_bits((8, 6, 10, 10), torch.float32, 0.9, 0)
    state = {
        "channels last": sparse.to(memory_format=torch.channels_last),
        "transposed": sparse.transpose(0, 3),
        "strided": sparse[::2, :, 1::3],
        "expanded": sparse[:1].expand(5, 6, 10, 10),
        "conjugated": torch.complex(sparse, sparse).conj(),
        "negative": torch.complex(sparse, sparse).conj().imag,
        "parameter": nn.Parameter(sparse),
    }
    with pytest.warns(UserWarning, match=r"are -0\.0"):
        save_compressed(state, tmp_path / "x")
    assert same_bits(load_compressed(tmp_path / "x"), state)


def test_tied_parameter_is_stored_once_and_comes_back_tied(tmp_path: Path) -> None:
    """PEERS 21: a tied embedding counted or pruned twice."""
    model = nn.ModuleDict({"embedding": nn.Embedding(60, 40), "norm": nn.BatchNorm1d(40), "softmax": nn.Linear(40, 60)})
    with torch.no_grad():
        model["embedding"].weight[torch.rand(60, 40) < 0.9] = 0.0
    save_compressed(model, tmp_path / "untied")
    model["softmax"].weight = model["embedding"].weight
    model["equal"] = nn.Embedding.from_pretrained(torch.ones(30, 40))
    model["equal too"] = nn.Embedding.from_pretrained(torch.ones(30, 40))  # equal values, not the same parameter
    save_compressed(model, tmp_path / "tied")
    report = inspect(tmp_path / "tied")
    assert report.tied == {"softmax.weight": "embedding.weight"}
    assert "softmax.weight is embedding.weight (tied, stored once)" in str(report)
    assert [row.name for row in report.tensors if row.name.startswith(("emb", "soft"))] == ["embedding.weight", "softmax.bias"]
    back = load_compressed(tmp_path / "tied")
    assert back["softmax.weight"] is back["embedding.weight"]
    assert back["equal.weight"] is not back["equal too.weight"]
    assert same_bits(back, {name: model.state_dict()[name] for name in back})
    assert model.load_state_dict(back).missing_keys == []


def test_views_of_one_memory_are_not_one_tensor(tmp_path: Path) -> None:
    memory = torch.arange(16.0)
    state = {"all": memory, "first": memory[:4], "matrix": memory.view(4, 4), "transposed": memory.view(4, 4).t()}
    state |= {"ints": memory.view(torch.int32), "none": memory[:0], "none too": memory[:0]}
    waves = torch.complex(memory + 1, memory + 1)
    state |= {"waves": waves, "conjugated": waves.conj(), "imaginary": waves.imag, "negative": waves.conj().imag}
    save_compressed(state, tmp_path / "x")
    assert inspect(tmp_path / "x").tied == {}
    assert same_bits(load_compressed(tmp_path / "x"), state)


def test_names_that_a_mask_would_have_are_taken_by_tensors(tmp_path: Path) -> None:
    names = ["w", "w.mask", "w.mask_", "w.mask.mask", "", ".mask", 'a"\\\n\u0000é字😀']
    state = {name: random_bits((40, 40), torch.float32, 0.9, seed) for seed, name in enumerate(names)}
    save_compressed(state, tmp_path / "x")
    assert same_bits(load_compressed(tmp_path / "x"), state)
    backwards = dict(reversed(state.items()))
    save_compressed(backwards, tmp_path / "x")
    assert same_bits(load_compressed(tmp_path / "x"), state)


@pytest.mark.parametrize("values", [torch.float16, torch.bfloat16], ids=str)
def test_rounded_values(tmp_path: Path, values: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(60, 60, generator=generator) * (torch.rand(60, 60, generator=generator) < 0.1) + 0.0
    weight[0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, -1e-45])
    state = {
        "sparse": weight,
        "double": weight.double(),
        "dense": torch.randn(40, 40, generator=generator),
        "vanishing": torch.full((40, 40), 1e-45),
        "running_var": torch.rand(60, generator=generator),
        "scalar": torch.tensor(1 / 3),
        "half": torch.randn(20, 20, generator=generator).half(),
        "brain": torch.randn(20, 20, generator=generator).bfloat16(),
        "ids": torch.arange(400).reshape(20, 20),
    }
    save_compressed(state, tmp_path / "x", values=values)
    rounded = {"sparse", "double", "dense", "vanishing"}
    expected = {name: tensor.to(values).to(tensor.dtype) if name in rounded else tensor for name, tensor in state.items()}
    assert same_bits(load_compressed(tmp_path / "x"), expected)
    rows = {row.name: row for row in inspect(tmp_path / "x").tensors}
    assert {name for name in rows if rows[name].values_dtype != rows[name].dtype} == rounded
    assert rows["dense"].stored_bytes == 2 * 1600
    assert (rows["vanishing"].zeros, rows["vanishing"].stored_bytes) == (1600, 0)  # too small to be rounded to anything else
    assert rows["sparse"].zeros == int((raw_words(expected["sparse"]) == 0).sum())
    assert "F64 as " in str(inspect(tmp_path / "x"))


def raw_words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32)


@pytest.mark.parametrize(("values", "large"), [(torch.float16, 1e5), (torch.float16, -65520.0), (torch.bfloat16, 3.4e38)])
def test_value_too_large_for_its_new_type_is_refused(tmp_path: Path, values: torch.dtype, large: float) -> None:
    weight = torch.ones(3, 3)
    weight[1, 2] = large
    with pytest.raises(SparsebenchError, match=rf"^tensor 'layer\.weight': it holds {large:g}".replace("+", r"\+")):
        save_compressed({"layer.weight": weight}, tmp_path / "x", values=values)
    assert list(tmp_path.iterdir()) == []


def test_negative_zeros_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    """What `weight * mask` leaves: half of the dropped weights are -0.0."""
    weight = torch.randn(100, 100, dtype=torch.float64) * (torch.rand(100, 100) < 0.1)
    weight[0, 0] = torch.tensor(0x7FF0_0000_0000_0001).view(torch.float64)  # a signalling NaN, which arithmetic would change
    negative = int(((weight == 0) & weight.signbit()).sum())
    state = {"w": weight, "half": weight.half(), "tied": weight, "complex": torch.tensor([-0.0j]), "b": torch.tensor([-1, 0])}
    message = rf"{negative + int(((weight.half() == 0) & weight.half().signbit()).sum()):,} of 20,003 elements are -0\.0"
    with pytest.warns(UserWarning, match=message):
        save_compressed(state, tmp_path / "kept")
    assert same_bits(load_compressed(tmp_path / "kept"), state)
    assert 0.3 < inspect(tmp_path / "kept").tensors[0].sparsity < 0.6
    save_compressed(state, tmp_path / "left out", signed_zeros=False)
    positive = {"w": torch.where(weight == 0, 0.0, weight), "half": torch.where(weight == 0, 0.0, weight).half()}
    back = load_compressed(tmp_path / "left out")
    assert back["w"].signbit().sum() == (weight < 0).sum() + weight[0, :1].signbit().sum()
    assert same_bits(back, state | positive | {"tied": positive["w"]})
    assert back["tied"] is back["w"]
    assert 0.85 < inspect(tmp_path / "left out").tensors[0].sparsity < 0.95


def test_few_negative_zeros_are_no_matter(tmp_path: Path) -> None:
    weight = torch.randn(100, 10)
    weight[0] = -0.0
    save_compressed({"w": weight}, tmp_path / "x")
    weight[1, 0] = -0.0
    with pytest.warns(UserWarning, match=r"^11 of 1,000 elements are -0\.0.*signed_zeros=False"):
        save_compressed({"w": weight}, tmp_path / "x")


WRITE = """
import sys, torch
from sparsebench.storage import save_compressed
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(70, 50), nn.BatchNorm1d(50), nn.Linear(50, 10))
with torch.no_grad():
    model[0].weight[torch.rand(50, 70) < 0.9] = 0.0
save_compressed(model, sys.argv[1], method="m", config={"b": 1, "a": {"d": 2, "c": [1.5, None]}}, metrics={"x": 0.1})
"""


def test_same_state_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    for number in range(3):
        environment = os.environ | {"PYTHONHASHSEED": str(number)}
        command = [sys.executable, "-c", WRITE, str(tmp_path / str(number))]
        subprocess.run(command, check=True, timeout=120, env=environment)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    report = inspect(tmp_path / "0")
    assert report.method == "m"
    assert (report.config, report.metrics) == ({"b": 1, "a": {"d": 2, "c": [1.5, None]}}, {"x": 0.1})


def test_file_says_nothing_about_what_it_was_not_told(tmp_path: Path) -> None:
    save_compressed({}, tmp_path / "x")
    report = inspect(tmp_path / "x")
    assert (report.method, report.config, report.metrics, report.tensors) == (None, None, None, ())
    assert load_compressed(tmp_path / "x") == {}
    assert "all tensors" in str(report)


def test_file_is_an_aligned_safetensors_file_and_dense_tensors_are_in_it_as_ever(tmp_path: Path) -> None:
    """PEERS 25: the file reads back with safetensors alone."""
    state = {f"dense {dtype}": random_bits((7, 3), dtype, 0.0, 5) for dtype in WHOLE if "e8m0" not in str(dtype)}
    state["sparse"] = random_bits((64, 64), torch.float32, 0.9, 6)
    save_compressed(state, tmp_path / "x")
    plain = safetensors.torch.load_file(tmp_path / "x")
    assert plain.keys() == state.keys() | {"sparse.mask"}
    assert same_bits({name: plain[name] for name in state if name != "sparse"}, {n: t for n, t in state.items() if n != "sparse"})
    assert same_bits({"": plain["sparse"]}, {"": state["sparse"][state["sparse"].view(torch.int32) != 0]})
    data = (tmp_path / "x").read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    del header["__metadata__"]
    assert header_bytes % 8 == 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] % plain[name].dtype.itemsize == 0, name


def test_dense_network_is_no_larger_than_in_safetensors_but_for_a_few_words_in_the_header(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 64, 3), nn.LSTM(64, 64), nn.Linear(64, 10))
    with torch.no_grad():
        model[0].weight[0] = 0.0  # 3 % zeros: a mask would cost as much as they do
    save_compressed(model, tmp_path / "ours")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "plain")
    report = inspect(tmp_path / "ours")
    assert {row.coding for row in report.tensors} == {"plain"}
    assert report.stored_bytes == report.dense_bytes == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert (tmp_path / "ours").stat().st_size <= (tmp_path / "plain").stat().st_size + 192


def test_sparse_network_is_small_on_disk(tmp_path: Path) -> None:
    """PEERS 1 and 5: sparse checkpoints that are as large as dense ones."""
    model = nn.Linear(1000, 1000)
    with torch.no_grad():
        model.weight[torch.rand(1000, 1000) < 0.9] = 0.0
    save_compressed(model, tmp_path / "x")
    assert (tmp_path / "x").stat().st_size < 0.12 * 4 * 1_001_000
    assert inspect(tmp_path / "x").ratio > 8.3


@pytest.mark.parametrize(
    ("state", "options", "words"),
    [
        ([1, 2], {}, "expected a torch.nn.Module or a state dict, not list"),
        ({"a": 1.5}, {}, "'a' is no tensor but float"),
        ({3: torch.ones(1)}, {}, "the key 3: expected names"),
        ({"__metadata__": torch.ones(1)}, {}, "give it another name"),
        ({"\ud800": torch.ones(1)}, {}, "not Unicode"),
        ({"m": torch.ones(2, device="meta")}, {}, "'m' is on the meta device"),
        ({"s": torch.eye(3).to_sparse()}, {}, "'s' is torch.sparse_coo"),
        ({"c": torch.ones(2, dtype=torch.complex128)}, {}, "tensor 'c': safetensors has no element type for torch.complex128"),
        ({}, {"values": torch.float32}, "values=torch.float32: expected torch.float16"),
        ({}, {"config": {"a": object()}}, "config cannot be written as JSON"),
        ({}, {"metrics": {"loss": float("nan")}}, "metrics cannot be written as JSON"),
        ({}, {"zstd": 0}, "zstd=0: expected a level from 1"),
        ({}, {"zstd": True}, "zstd=True: expected a level"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(tmp_path: Path, state: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SparsebenchError, match=words.replace("(", r"\(")) as caught:
        save_compressed(state, tmp_path / "x", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_quantized_and_sharded_tensors_are_refused(tmp_path: Path) -> None:
    class Sharded(torch.Tensor):
        def full_tensor(self) -> torch.Tensor:
            return self

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop these tensors
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with pytest.raises(SparsebenchError, match="'q' is quantized: make it an ordinary tensor first"):
        save_compressed({"q": quantized}, tmp_path / "x")
    with pytest.raises(SparsebenchError, match=r"sharded over processes: gather it first"):
        save_compressed({"a": torch.ones(3).as_subclass(Sharded)}, tmp_path / "x")


def test_type_that_an_older_safetensors_does_not_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = safetensors.deserialize

    def older(data: bytes) -> Any:
        if b"C64" in data:
            raise safetensors.SafetensorError("unknown variant")
        return read(data)

    monkeypatch.setattr(safetensors, "deserialize", older)
    container._is_known.cache_clear()
    with pytest.raises(SparsebenchError, match=r"^tensor 'c' is of type C64, which safetensors \S+ cannot read: install a newer"):
        save_compressed({"w": torch.ones(3), "c": torch.ones(3) * 1j}, tmp_path / "x")
    container._is_known.cache_clear()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_missing_and_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SparsebenchError, match=r"^cannot write \S+/no/x: No such file"):
        save_compressed({"a": torch.ones(3)}, tmp_path / "no" / "x")
    (tmp_path / "x").write_text("older")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SparsebenchError, match=r"^cannot write \S+/x: No space left on device$"):
        save_compressed({"a": torch.ones(3)}, tmp_path / "x")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "older"
