"""Whole networks: outputs as before, each layer as it was measured, nothing of the original touched."""

import copy
import math
import pickle
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_times import pretend_sparse_is_fastest, second_is_fastest
from torch import nn
from torch.nn import functional as F

from sparsebench.errors import SparsebenchError
from sparsebench.inference import compilation, compile_sparse, whole
from sparsebench.inference.choices import Seen, least_times
from sparsebench.inference.convolutions import SparseConvolution
from sparsebench.inference.folding import Rectified, fold
from sparsebench.inference.layers import SparseLinear, SparseWeight
from sparsebench.workloads.translation.transformer import SIZES, Transformer


def pruned(model: nn.Module, sparsity: float = 0.9) -> nn.Module:
    """Random zeros in every matrix and kernel, random statistics in every normalization."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                module.weight.mul_(torch.rand(module.weight.shape, generator=generator) >= sparsity)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor, least in (
                    (module.weight, 0.5),
                    (module.bias, -1),
                    (module.running_mean, -1),
                    (module.running_var, 0.5),
                ):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + least)
    return model


@pytest.fixture
def all_sparse(monkeypatch):
    """Times as they would be where sparse is always faster, chains still more, and the whole too."""
    pretend_sparse_is_fastest(monkeypatch)


def assert_same(compiled: nn.Module, model: nn.Module, *inputs: torch.Tensor) -> None:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        expected, found = model(*inputs), compiled(*inputs)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * max(1e-2, float(expected.abs().max()))


@pytest.mark.parametrize("network", ["perceptron", "convolutions", "Transformer"])
def test_another_default_type(network, all_sparse):
    """What the kernels write has their type, whatever torch's default is."""
    torch.manual_seed(0)
    if network == "perceptron":
        model: nn.Module = nn.Sequential(nn.Linear(200, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 20))
        inputs: tuple[torch.Tensor, ...] = (torch.randn(150, 200),)
    elif network == "convolutions":
        model, inputs = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)), (torch.randn(2, 8, 9, 9),)
    else:
        model, inputs = Transformer(60, SIZES["tiny"]), (torch.randint(3, 60, (9, 7)), torch.randint(3, 60, (9, 5)))
    pruned(model)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        compiled = compile_sparse(model, inputs)
        assert any(choice.sparse for choice in compiled.sparse_choices)
        assert_same(compiled, model, *inputs)
    finally:
        torch.set_default_dtype(before)


def kinds(model: nn.Module) -> list[type]:
    return [
        type(module)
        for module in model.modules()
        if isinstance(module, SparseWeight | SparseConvolution | nn.Linear | nn.Conv2d | nn.BatchNorm2d)
    ]


class Bottleneck(nn.Module):
    """With a sum, one normalization object for one place, one rectifier object for three."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, inputs, 1, bias=False), nn.BatchNorm2d(inputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, inputs, 1, stride, bias=False), nn.BatchNorm2d(inputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def small_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Bottleneck(8, 4, 1),
        Bottleneck(8, 6, 2),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


@st.composite
def chains(draw):
    """Networks of linear layers, rectifiers, normalizations and what else stands between, with an input."""
    widths = draw(st.lists(st.integers(1, 40), min_size=2, max_size=5))
    images = draw(st.booleans())
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        bias = draw(st.booleans())
        parts.append(
            nn.Conv2d(inputs, outputs, 1, draw(st.integers(1, 2)), bias=bias) if images else nn.Linear(inputs, outputs, bias)
        )
        if draw(st.booleans()):
            parts.append(nn.BatchNorm2d(outputs) if images else nn.BatchNorm1d(outputs))
        parts += draw(st.lists(st.sampled_from([nn.ReLU(), nn.Dropout(), nn.Sigmoid(), nn.Identity()]), max_size=2))
    shape = [draw(st.integers(1, 70)), widths[0]] + ([draw(st.integers(1, 6)), draw(st.integers(1, 6))] if images else [])
    x = torch.randn(shape)
    return pruned(nn.Sequential(*parts), 0.7), x.to(memory_format=torch.channels_last) if images and draw(st.booleans()) else x


@settings(max_examples=25)
@given(chains())
def test_chains_compute_the_same(chain):
    model, x = chain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "least_times", lambda ways, seen: [2.0] + [1.0] * (len(ways) - 1))
        patch.setattr(whole, "take_turns", second_is_fastest)
        compiled = compile_sparse(model, x)
    assert_same(compiled, model, x)
    # Every normalization comes after a layer, and is then part of it.
    assert not any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in compiled.modules())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.usefixtures("all_sparse")
def test_residual_network(last):
    model = pruned(small_resnet(), 0.5)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    compiled = compile_sparse(model, x)
    assert_same(compiled, model, x)
    assert nn.BatchNorm2d not in kinds(compiled)
    assert kinds(compiled).count(SparseConvolution) == 9
    assert nn.Conv2d not in kinds(compiled)
    # The sum of a block is part of its last convolution, and so is the rectifier after it; the shortcut has none.
    layers = [layer.rectify for layer in compiled.modules() if isinstance(layer, SparseConvolution)]
    assert layers == [True, *[True, True, True, False] * 2]
    # For any other batch too: nothing was traced as a constant.
    assert_same(compiled, model, torch.randn(5, 3, 8, 8))


@pytest.mark.usefixtures("all_sparse")
def test_transformer_keeps_its_methods():
    model = pruned(Transformer(60, SIZES["tiny"], dropout=0.1))
    source, target = torch.randint(4, 60, (3, 7)), torch.randint(4, 60, (3, 5))
    compiled = compile_sparse(model, (source, target))
    assert type(compiled) is Transformer
    assert_same(compiled, model, source, target)
    assert isinstance(compiled.softmax, SparseLinear)
    assert torch.equal(compiled.softmax.weight, model.softmax.weight)
    model.eval()
    with torch.no_grad():
        found, expected = compiled.encode(source), model.encode(source)
    torch.testing.assert_close(found.layers[0].keys, expected.layers[0].keys, rtol=1e-4, atol=1e-4)
    # The rectifier between the two layers of the feed-forward part is within the first.
    assert all(layer.feed_forward.inner.rectify for layer in compiled.encoder)


def test_peers_row_3_break_even_is_measured_for_the_shapes_of_each_call(monkeypatch):
    """Of one run of the example: four calls with one row at 1 ms, one with eight rows at 8."""
    monkeypatch.setattr(compilation, "least_times", lambda ways, seen: [seen[0].shape[0], 1.5 * seen[0].shape[0] - 2])
    monkeypatch.setattr(whole, "take_turns", second_is_fastest)
    model = pruned(nn.ModuleDict({"first": nn.Linear(20, 20), "other": nn.Linear(20, 20), "full": nn.Linear(4, 4)}))
    model["full"].weight.data.fill_(1)

    def run(network):
        for rows in (1, 1, 1, 1, 8):
            network["first"](torch.randn(rows, 20))

    choices = {choice.name: choice for choice in compile_sparse(model, run).sparse_choices}
    assert choices["first"].dense_ms == 12
    assert choices["first"].sparse_ms == 4 * -0.5 + 10
    assert choices["first"].sparse
    assert set(choices["first"].inputs) == {(1, 20), (8, 20)}
    assert choices["other"].reason == "not called by the example"
    assert choices["full"].reason == "not called by the example" or choices["full"].reason == "no zeros"
    assert not choices["other"].sparse
    assert not choices["full"].sparse
    assert choices["first"].sparsity == 1 - int(model["first"].weight.count_nonzero()) / 400


@pytest.mark.parametrize(("sparse_ms", "sparse"), [(0.89, True), (0.91, False), (2.0, False)])
def test_peers_row_3_what_is_not_clearly_faster_stays_dense(monkeypatch, sparse_ms, sparse):
    monkeypatch.setattr(compilation, "least_times", lambda ways, seen: [1.0, sparse_ms])
    monkeypatch.setattr(whole, "take_turns", second_is_fastest)
    compiled = compile_sparse(pruned(nn.Linear(20, 20)), torch.randn(3, 20))
    assert isinstance(compiled, SparseLinear) == sparse
    assert compiled.sparse_choices[0].sparse == sparse


def test_measured_where_the_outcome_is_beyond_doubt():
    """One example: what is read of the weight decides, eight bytes of each entry that is kept, or four of each weight."""
    model = nn.Sequential(pruned(nn.Linear(1024, 1024), 0.99), nn.Tanh(), pruned(nn.Linear(1024, 1024), 0.02))
    compiled = compile_sparse(model, torch.randn(1, 1024))
    nearly_empty, nearly_full = compiled.sparse_choices
    assert nearly_empty.sparse
    assert not nearly_full.sparse
    assert nearly_empty.sparse_ms < nearly_empty.dense_ms
    assert nearly_full.sparse_ms > nearly_full.dense_ms
    table = str(compiled.sparse_choices).splitlines()
    assert table[0].split()[:2] == ["layer", "runs"]
    assert table[1].split()[:4] == ["0", "sparse", "1,048,576", f"{nearly_empty.sparsity:.3f}"]
    assert table[2].split()[1] == "dense"


def test_least_times_take_turns_and_keep_the_least(monkeypatch):
    clock, calls = [0.0], []

    def way(name, durations):
        def run(x):
            calls.append(name)
            clock[0] += durations[min(calls.count(name) - 1, len(durations) - 1)]

        return run

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    # The first call of each warms up and does not count, however short.
    times = least_times((way("a", [0.001, 0.5, 0.2, 0.9]), way("b", [9.0, 0.3, 0.4])), (Seen((2, 3), (3, 1)),))
    assert times == pytest.approx([200, 300])
    assert calls == ["a", "b"] * 8


@pytest.mark.parametrize(
    "x",
    [torch.randn(3, 4), torch.randn(2, 5, 3, 3).to(memory_format=torch.channels_last), torch.randn(4, 6).t(), torch.empty(0, 3)],
)
def test_random_input_is_laid_out_as_what_was_seen(x):
    again = Seen.of(x).random()
    assert (again.shape, again.stride()) == (x.shape, x.stride())


@pytest.mark.usefixtures("all_sparse")
def test_original_is_not_changed():
    model = pruned(small_resnet()).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    compiled = compile_sparse(model, torch.randn(2, 3, 8, 8))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in compiled.parameters())
    assert not compiled.training
    assert SparseConvolution not in kinds(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in compiled.modules())


class Undecided(nn.Module):
    """Tracing sees something that is no tensor, and takes the other branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x):
        if isinstance(x, torch.Tensor):
            return self.layer(x)
        return F.relu(self.layer(x))


@pytest.mark.usefixtures("all_sparse")
def test_code_that_tracing_misreads_runs_as_it_is():
    model, x = pruned(Undecided()), torch.randn(4, 12)
    compiled = compile_sparse(model, x)
    assert_same(compiled, model, x)
    assert type(compiled) is Undecided
    assert isinstance(compiled.layer, SparseLinear)


@pytest.mark.usefixtures("all_sparse")
def test_misread_code_is_found_where_the_example_returns_nothing():
    model, x = pruned(Undecided()), torch.randn(4, 12)

    def run(network):
        network(x)

    compiled = compile_sparse(model, run)
    assert_same(compiled, model, x)
    assert isinstance(compiled.layer, SparseLinear)


class Around(nn.Module):
    """Calls a part's code and not the part, so that no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Undecided()

    def forward(self, x, scale):
        return self.part.forward(x) * scale


@pytest.mark.usefixtures("all_sparse")
def test_misread_code_is_found_where_hooks_do_not_see_its_part():
    model, x = pruned(Around()), torch.randn(4, 12)
    assert_same(compile_sparse(model, (x, x)), model, x, x)


class Reader(nn.Module):
    """Reads a weight without calling its layer, calls one layer twice, and reads one result twice."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.twice, self.result = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x = F.relu(self.read(x)) + x @ self.read.weight
        x = torch.relu(self.twice(x)) + self.twice(x)
        y = self.result(x)
        return F.relu(y) + y


class WithMethod(nn.Module):
    """Someone may call a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Linear(9, 9), nn.ReLU()), nn.Linear(9, 9)

    def features(self, x):
        return self.first(x)

    def forward(self, x):
        return F.relu(self.second(self.features(x)))


class Asked(nn.Module):
    """Its attributes are read by the module around it."""

    share = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(9, 9), 3.0

    def forward(self, x):
        return F.relu(self.layer(x))


class Asking(nn.Module):
    """Cannot be traced itself: it takes two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Asked()

    def forward(self, x, more=None):
        return self.part(x) * self.part.factor * self.part.share + self.part.layer.weight.sum()


@pytest.mark.usefixtures("all_sparse")
def test_methods_and_attributes_stay():
    model, x = pruned(WithMethod(), 0.5), torch.randn(4, 9)
    compiled = compile_sparse(model, x)
    assert type(compiled) is WithMethod
    assert_same(compiled, model, x)
    torch.testing.assert_close(compiled.features(x), model.features(x).detach(), rtol=1e-4, atol=1e-4)
    assert [choice.name for choice in compiled.sparse_choices][:2] == ["first.0", "second"]

    model = pruned(Asking(), 0.5)
    compiled = compile_sparse(model, x)
    assert_same(compiled, model, x)
    assert compiled.part.layer.rectify
    again = pickle.loads(pickle.dumps(copy.deepcopy(compiled)))
    assert torch.equal(again(x), compiled(x))
    assert (again.part.factor, again.part.share) == (3.0, 0.5)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = compiled.part.nothing_like_it


@pytest.mark.usefixtures("all_sparse")
def test_mistakes_in_the_example_are_shown():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compile_sparse(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 4))


@pytest.mark.usefixtures("all_sparse")
def test_rectifiers_stay_where_something_else_reads_the_layer():
    model, x = pruned(Reader(), 0.5), torch.randn(4, 6)
    compiled = compile_sparse(model, x)
    assert_same(compiled, model, x)
    assert [layer.rectify for layer in compiled.modules() if isinstance(layer, SparseLinear)] == [False] * 3


@pytest.mark.usefixtures("all_sparse")
def test_layer_in_two_places_is_replaced_in_both():
    layer = pruned(nn.Linear(8, 8), 0.5)
    model = nn.ModuleList([layer, layer])
    compiled = compile_sparse(model, lambda network: network[1](torch.randn(2, 8)))
    assert isinstance(compiled[0], SparseLinear)
    assert compiled[0] is compiled[1]


@pytest.mark.parametrize(
    "model",
    [
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2),
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    ],
)
@pytest.mark.usefixtures("all_sparse")
def test_layers_whose_weights_are_read_elsewhere_stay(model):
    x = torch.randn(2, 5, 16)
    compiled = compile_sparse(pruned(model), x)
    assert_same(compiled, model, x)
    assert compiled.sparse_choices
    for choice in compiled.sparse_choices:
        assert not choice.sparse
        assert choice.reason == "reads the weights of its parts without calling them"
        weights = [weight for weight in model.get_submodule(choice.name).parameters() if weight.dim() == 2]
        assert choice.weights == sum(weight.numel() for weight in weights)
        assert choice.sparsity == pytest.approx(sum(float((weight == 0).sum()) for weight in weights) / choice.weights)


@pytest.mark.usefixtures("all_sparse")
def test_layers_that_cannot_run_sparse_are_in_the_table_with_the_reason():
    class Own(nn.Linear):
        pass

    model = pruned(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 2, 2),
            nn.Flatten(),
            Own(18, 6),
            nn.Linear(6, 2),
        ),
        0.5,
    )
    compiled = compile_sparse(model, torch.randn(2, 3, 6, 6))
    table = {choice.name.split(".")[0]: choice.reason for choice in compiled.sparse_choices}
    assert table == {"0": "", "1": "groups", "3": "no sparse ConvTranspose2d", "5": "no sparse Own", "6": ""}
    assert "groups" in str(compiled.sparse_choices)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 17),
        nn.Conv3d(4, 4, 3),
        nn.Conv3d(4, 4, 1, padding=1),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Bilinear(4, 4, 4),
    ],
)
def test_other_layers_are_no_candidates(layer):
    assert compilation._reason_to_stay_dense(layer)


@pytest.mark.usefixtures("all_sparse")
def test_hooks_of_the_user_still_see_their_layers():
    model, seen = pruned(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), 0.5), []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    compiled = compile_sparse(model, torch.randn(3, 6))
    seen.clear()
    compiled(torch.randn(4, 6))
    assert seen == [(4, 6)]


def test_fold_gives_back_what_it_cannot_improve():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()).eval()
    assert fold(model) is model
    folded = fold(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval())
    assert isinstance(folded.get_submodule("_traced.0"), Rectified)


@pytest.mark.usefixtures("all_sparse")
def test_copies_and_fresh_processes(tmp_path):
    """Of a network that was traced and of one that was not."""
    saved = []
    for model, x in ((small_resnet(), torch.randn(2, 3, 8, 8)), (nn.Linear(192, 3), torch.randn(2, 192))):
        compiled = compile_sparse(pruned(model, 0.5), x)
        expected = compiled(x)
        for again in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
            assert torch.equal(again(x), expected)
            assert again.sparse_choices == compiled.sparse_choices
        saved.append((compiled, x, expected))
    torch.save(saved, tmp_path / "networks.pt")
    program = (
        "import sys, torch\n"
        "for network, x, expected in torch.load(sys.argv[1], weights_only=False):\n"
        "    assert torch.equal(network(x), expected)\n"
        "    print(len(network.sparse_choices))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "networks.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(len(compiled.sparse_choices)) for compiled, _, _ in saved], done.stderr


@pytest.mark.usefixtures("all_sparse")
def test_training_and_gradients_are_refused():
    compiled = compile_sparse(pruned(small_resnet(), 0.5), torch.randn(2, 3, 8, 8))
    with pytest.raises(SparsebenchError, match=r"no gradients: call it under torch.no_grad\(\)"):
        compiled(torch.randn(2, 3, 8, 8, requires_grad=True))
    with pytest.raises(SparsebenchError, match=r"cannot be trained: call model.eval\(\)"):
        compiled.train()(torch.randn(2, 3, 8, 8))


def test_other_types_of_numbers_are_refused():
    with pytest.raises(SparsebenchError, match=r"^0.weight is torch.float64 on cpu: expected torch.float32 on the CPU$"):
        compile_sparse(nn.Sequential(nn.Linear(2, 2).double()), torch.randn(1, 2))


def test_arguments_by_name_and_one_call_per_layer():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, left, right):
            return self.left(left) + self.right(right)

    model, x = pruned(Sum()), torch.randn(2, 5)
    for example in ({"left": x, "right": x}, (x, x), [x, x]):
        choices = compile_sparse(model, example).sparse_choices
        assert [choice.inputs for choice in choices] == [((2, 5),), ((2, 5),)]
        assert all(math.isfinite(choice.dense_ms) for choice in choices)
