"""ONNX files compute what torch computes, at batch sizes that were not the example's, and every zero is still one."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.inference import compile_sparse
from sparsebench.inference.choices import Choices, LayerChoice
from sparsebench.inference.export import export_onnx
from sparsebench.inference.layers import SparseLinear
from sparsebench.workloads.images.digits import DIGITS
from sparsebench.workloads.images.networks import BasicBlock, make_network
from sparsebench.workloads.translation.keys_values import Memory
from sparsebench.workloads.translation.transformer import Size, Transformer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def pruned(model: nn.Module, sparsity: float = 0.8) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() > 1 and isinstance(tensor, nn.Parameter):
                tensor.mul_(torch.rand(tensor.shape, generator=generator) >= sparsity).add_(0.0)
            elif "running" in name or "norm" in name:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model


def run(path: Path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    named = {held.name: tensor.numpy() for held, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, named)]


def constants(path: Path) -> dict[str, np.ndarray]:
    return {held.name: onnx.numpy_helper.to_array(held) for held in onnx.load(path).graph.initializer}


def zero_patterns(path: Path) -> set[tuple[Any, ...]]:
    """Shape and place of the zeros of every matrix in the file, also of matrices turned around."""
    arrays = [array for array in constants(path).values() if array.ndim > 1]
    return {(array.shape, (array == 0).tobytes()) for one in arrays for array in (one, np.ascontiguousarray(one.T))}


def assert_same(path: Path, model: nn.Module, *inputs: torch.Tensor) -> None:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        expected = model(*inputs)
    (found,) = run(path, *inputs)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def dimensions(path: Path) -> dict[str, list[Any]]:
    graph = onnx.load(path).graph
    return {
        held.name: [size.dim_param or size.dim_value for size in held.type.tensor_type.shape.dim]
        for held in (*graph.input, *graph.output)
    }


IMAGES = {
    "digits": (DIGITS.network, (1, 8, 8)),
    "lenet-300-100": (lambda: make_network("lenet-300-100", 1, 28, 10), (1, 28, 28)),
    "lenet-5": (lambda: make_network("lenet-5", 1, 28, 10), (1, 28, 28)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_networks_for_images(name: str, tmp_path: Path) -> None:
    build, shape = IMAGES[name]
    model = pruned(build().to(memory_format=torch.channels_last))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    path = tmp_path / "model.onnx"
    written = export_onnx(model, torch.randn(1, *shape), path)
    onnx.checker.check_model(str(path), full_check=True)
    for batch in (1, 2, 7):
        assert_same(path, model, torch.randn(batch, *shape))
    held = constants(path)
    for key, weight in model.named_parameters():
        assert torch.from_numpy(held[key].copy()).equal(weight.detach().contiguous())
        # Not as -0.0 either, which a mask multiplied with negative weights would have left.
        assert not np.signbit(held[key][held[key] == 0]).any()
    assert written.zeros == sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)
    assert written.file_bytes == path.stat().st_size
    assert written.greatest_difference < 1e-5
    assert dimensions(path)["output"] == ["batch", 10]
    assert model.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_batch_norm_becomes_part_of_convolutions_and_zeros_stay(tmp_path: Path) -> None:
    blocks = (BasicBlock(4, 4, 1), BasicBlock(4, 8, 2))
    model = pruned(nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), *blocks))
    path = tmp_path / "model.onnx"
    export_onnx(model, torch.randn(2, 3, 8, 8), path)
    assert_same(path, model, torch.randn(5, 3, 8, 8))
    patterns = zero_patterns(path)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert (tuple(module.weight.shape), (module.weight == 0).numpy().tobytes()) in patterns


def test_transformer_with_teacher_forcing(tmp_path: Path) -> None:
    model = pruned(Transformer(50, Size(width=16, feed_forward=32, heads=2, layers=1)))
    path = tmp_path / "model.onnx"
    source, target = torch.randint(3, 50, (2, 5)), torch.randint(3, 50, (2, 7))
    dynamic = {"source": {0: "sentences", 1: "source_positions"}, "target": {0: "sentences", 1: "target_positions"}}
    written = export_onnx(model, (source, target), path, dynamic=dynamic)
    for sentences, length, other in ((1, 9, 3), (4, 3, 11), (1, 1, 1)):
        source = torch.randint(3, 50, (sentences, length))
        source[-1, length // 2 + 1 :] = 0  # padding
        assert_same(path, model, source, torch.randint(3, 50, (sentences, other)))
    patterns = zero_patterns(path)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert (tuple(module.weight.shape), (module.weight == 0).numpy().tobytes()) in patterns
    assert dimensions(path) == {
        "source": ["sentences", "source_positions"],
        "target": ["sentences", "target_positions"],
        "output": ["sentences", "target_positions", 50],
    }
    # The embedding and the softmax share a matrix, whose zeros are counted once.
    weights = {id(p): p for p in model.parameters() if p.dim() > 1}
    assert written.zeros == sum(int((p == 0).sum()) for p in weights.values())


class Encoding(nn.Module):
    """What a translation network's decoder reads, for a program that decodes by itself: keys and values of each layer, a mask."""

    def __init__(self, translation: Transformer) -> None:
        super().__init__()
        self.translation = translation

    def forward(self, source: torch.Tensor) -> Memory:
        return self.translation.encode(source)


def test_encoder_alone(tmp_path: Path) -> None:
    model = Encoding(pruned(Transformer(50, Size(width=16, feed_forward=32, heads=2, layers=1))))
    path = tmp_path / "model.onnx"
    dynamic = {"source": {0: "sentences", 1: "positions"}}
    export_onnx(model, torch.randint(3, 50, (1, 5)), path, dynamic=dynamic)
    source = torch.randint(3, 50, (3, 8))
    source[1, 6:] = 0  # padding
    keys, values, mask = run(path, source)
    with torch.no_grad():
        expected = model.eval()(source)
    torch.testing.assert_close(keys, expected.layers[0].keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, expected.layers[0].values, rtol=1e-4, atol=1e-5)
    assert torch.equal(mask, expected.mask)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(sequences)
        return self.head(states[:, -1])


def test_lstm(tmp_path: Path) -> None:
    model = pruned(Recurrent())
    path = tmp_path / "model.onnx"
    export_onnx(model, torch.randn(2, 4, 6), path)
    for batch in (1, 3):
        assert_same(path, model, torch.randn(batch, 4, 6))
    # Gates are put in another order and directions together: the numbers that are not zero are still the same ones.
    weights = [p for name, p in model.named_parameters() if p.dim() > 1]
    ours = torch.cat([weight.detach().flatten() for weight in weights])
    theirs = np.concatenate([array.ravel() for array in constants(path).values() if array.ndim > 1 and array.shape[-1] != 40])
    assert np.array_equal(np.sort(ours[ours != 0].numpy()), np.sort(theirs[theirs != 0]))


def test_several_outputs_and_keyword_arguments(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"a": self.a(x) * scale, "b": self.b(x)}

    model, path = pruned(Two()), tmp_path / "model.onnx"
    export_onnx(model, {"scale": torch.tensor(2.0), "x": torch.randn(3, 4)}, path, dynamic={"x": {0: "rows"}})
    x = torch.randn(6, 4)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    first, second = session.run(None, {"x": x.numpy(), "scale": np.array(3.0, dtype=np.float32)})
    with torch.no_grad():
        expected = model(x, torch.tensor(3.0))
    assert np.allclose(first, expected["a"].numpy(), atol=1e-5)
    assert np.allclose(second, expected["b"].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "module"),
    [
        (sparsebench.variational_dropout(penalty=1.0), "StochasticLinear"),
        (sparsebench.l0_regularization(penalty=1.0), "StochasticLinear"),
    ],
    ids=["variational dropout", "L0"],
)
def test_what_is_not_finalized_is_refused_by_name(method: Any, module: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    method.prepare(model)
    path = tmp_path / "model.onnx"
    with pytest.raises(
        SparsebenchError, match=rf"^'1' still has noisy weights \({module}\): call sparsifier\.finalize\(\) first$"
    ):
        export_onnx(model, torch.randn(1, 4), path)
    assert not path.exists()
    export_onnx(method.finalize(), torch.randn(1, 4), path)
    assert path.exists()


def test_compiled_network_is_refused(tmp_path: Path) -> None:
    layer = nn.Linear(4, 2)
    model = nn.Sequential(SparseLinear(layer.weight, layer.bias, False))
    refusal = "runs sparse, which is possible here only: export the model that it was compiled from$"
    with pytest.raises(SparsebenchError, match=rf"^'0' \(SparseLinear\) {refusal}"):
        export_onnx(model, torch.randn(1, 4), tmp_path / "model.onnx")
    compiled = nn.Sequential(nn.Linear(8, 4))  # as compile_sparse leaves a network, whatever its layers are
    vars(compiled)["sparse_choices"] = Choices([LayerChoice("0", True, 32, 0.9, ((1, 8),), 2.0, 1.0, "")])
    with pytest.raises(SparsebenchError, match=rf"^the model \(Sequential\) {refusal}"):
        export_onnx(compiled, torch.randn(1, 8), tmp_path / "model.onnx")
    with pytest.raises(SparsebenchError, match=rf"^'part' \(Sequential\) {refusal}"):
        export_onnx(nn.ModuleDict({"part": compiled}), torch.randn(1, 8), tmp_path / "model.onnx")
    dense = compile_sparse(nn.Linear(4, 2), torch.randn(1, 4))  # no zeros: every layer is as it was
    export_onnx(dense, torch.randn(1, 4), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("example", "options", "message"),
    [
        (torch.randn(1, 5), {}, r"^Linear fails on the example: .*shapes cannot be multiplied"),
        ((torch.randn(1, 4), 1), {}, r"^example_input does not fit Linear\.forward\(input: .*too many positional arguments$"),
        (torch.randn(0, 4), {}, r"^example_input has no elements in dimension 0: expected at least one$"),
        (torch.randn(1, 4), {"dynamic": {"x": {0: "rows"}}}, r"^dynamic names 'x': expected an argument .*: input$"),
        (
            torch.randn(1, 4),
            {"dynamic": {"input": {2: "rows"}}},
            r"^dynamic\['input'\] names dimension 2: expected one of 0 to 1$",
        ),
        (
            torch.randn(1, 4),
            {"dynamic": {"input": {1: "features"}}},
            r"^Linear fails on the example|^torch cannot export Linear: ",
        ),
        (torch.randn(1, 4), {"tolerance": 0.0}, r"^tolerance=0\.0: expected a number above 0$"),
        (torch.randn(1, 4), {"tolerance": 1e-30}, r"^ONNX Runtime's output 0 differs from torch's by \S+ of its largest"),
    ],
)
def test_what_cannot_be_exported_is_one_line(example: Any, options: Any, message: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(SparsebenchError, match=message) as raised:
        export_onnx(nn.Linear(4, 200), example, tmp_path / "model.onnx", **options)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_network_elsewhere_and_folder_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SparsebenchError, match=r"^weight is on meta: expected the CPU; call model\.cpu\(\) first$"):
        export_onnx(nn.Linear(4, 2, device="meta"), torch.randn(1, 4), tmp_path / "model.onnx")
    with pytest.raises(SparsebenchError, match=r"^cannot write \S+model\.onnx: No such file or directory$"):
        export_onnx(nn.Linear(4, 2), torch.randn(1, 4), tmp_path / "no" / "model.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SparsebenchError, match=rf"^ONNX files need {package}: pip install 'sparsebench\[onnx\]'$"):
        export_onnx(nn.Linear(4, 2), torch.randn(1, 4), "model.onnx")
