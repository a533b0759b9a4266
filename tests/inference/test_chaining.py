"""Chains in whole networks: the same results by every way of calling, wherever the code allows them."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from built_kernels import kernels
from torch import nn
from torch.nn import functional as F

from sparsebench.inference import chaining, chains, compilation, compile_sparse, native, whole
from sparsebench.inference.chaining import ChainedForward
from sparsebench.inference.compilation import FASTER_DENSE
from sparsebench.inference.folding import Traced
from sparsebench.inference.layers import SparseLinear
from sparsebench.workloads.translation.decoding import beam_search
from sparsebench.workloads.translation.transformer import SIZES, Transformer


@pytest.fixture(autouse=True)
def always_chained(monkeypatch):
    """Kernels are there, and chains faster than layers; layers by themselves are not."""
    chosen = kernels("generic")
    for module in (chains, chaining):
        monkeypatch.setattr(module, "load_kernels", lambda: chosen)
    monkeypatch.setattr(chaining, "least_times_of", lambda ways, inputs: [2.0, 1.0, *(2.0 for _ in ways[2:])])
    monkeypatch.setattr(compilation, "least_times", lambda ways, seen: [1.0] + [2.0] * (len(ways) - 1))
    monkeypatch.setattr(whole, "take_turns", lambda ways, rounds: [2.0, 1.0, *(3.0 for _ in ways[2:])])


def pruned(model: nn.Module, sparsity: float = 0.8) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(torch.rand(module.weight.shape, generator=generator) >= sparsity)
    return model.eval()


def chains_of(model: nn.Module) -> list[str]:
    """Modules that have code with chains, and how many chains in each."""
    found = []
    for name, module in model.named_modules():
        forward = vars(module).get("chained" if isinstance(module, Traced) else "forward")
        if isinstance(forward, ChainedForward):
            parts = [part for network in forward.networks.values() for part in network.children()]
            found.append(f"{name}: {sum(isinstance(part, chains.SparseChain) for part in parts)}")
    return found


def assert_same(compiled, model, *args, **kwargs) -> None:
    with torch.no_grad():
        found, expected = compiled(*args, **kwargs), model(*args, **kwargs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Layer(nn.Module):
    """Self-attention and feed-forward; reads something else where it is given."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.dropout = nn.Linear(width, 40), nn.Linear(40, width), nn.Dropout(0.1)

    def forward(self, x, memory=None, scaled: bool = False):
        normed = self.norm(x)
        read = normed if memory is None else memory
        mixed = F.scaled_dot_product_attention(self.query(normed), self.key(read), self.value(read))
        x = x + self.dropout(self.output(mixed))
        if scaled:
            x = x * 2
        return x + self.down(F.relu(self.up(self.last(x))))


class Stack(nn.Module):
    """With an encoder that can be traced as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_whole_network_is_traced_at_once():
    model, x = pruned(Stack()), torch.randn(2, 5, 24)
    compiled = compile_sparse(model, x)
    # Before the first attention, between the two, after the second.
    assert chains_of(compiled) == [": 3"]
    for shape in ((2, 5, 24), (1, 1, 24), (4, 9, 24), (0, 5, 24)):
        assert_same(compiled, model, torch.randn(shape))
    names = [choice.name for choice in compiled.sparse_choices if choice.sparse]
    assert names[0] == "layers.0.norm + layers.0.query + layers.0.key + layers.0.value"
    assert names[1].startswith("layers.0.output + layers.0.last + layers.0.up + layers.0.down + layers.1.norm")
    choice = next(choice for choice in compiled.sparse_choices if choice.name == names[0])
    zeros = sum(int((getattr(model.layers[0], name).weight == 0).sum()) for name in ("query", "key", "value"))
    assert choice.weights == 3 * 24 * 24
    assert choice.sparsity == pytest.approx(zeros / choice.weights)
    assert (choice.dense_ms, choice.sparse_ms) == (2.0, 1.0)


def test_code_for_each_kind_of_call():
    model, x, memory = pruned(Layer()), torch.randn(2, 5, 24), torch.randn(2, 7, 24)

    def run(network):
        network(x)
        network(x, memory)
        network(x, memory=memory, scaled=True)

    compiled = compile_sparse(model, run)
    assert type(compiled) is Layer
    assert len(vars(compiled)["forward"].networks) == 3
    assert_same(compiled, model, x)
    assert_same(compiled, model, x, None)
    assert_same(compiled, model, x, memory)
    assert_same(compiled, model, x=x, memory=memory, scaled=True)
    # This one did not occur: its own code.
    assert_same(compiled, model, x, scaled=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'more'"):
        compiled(x, more=1)
    with pytest.raises(TypeError, match="missing 1 required"):
        compiled()


@pytest.mark.parametrize("beam", [1, 3])
def test_decoding_of_the_translation_workload(beam):
    model = pruned(Transformer(60, SIZES["tiny"], dropout=0.1))
    source = torch.randint(4, 60, (3, 7))
    source[1, 5:] = 0
    compiled = compile_sparse(model, lambda network: beam_search(network, source, 8, beam))
    # Every layer of the decoder: without earlier positions and with them.
    assert [name.split(":")[0] for name in chains_of(compiled)] == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]
    assert len(vars(compiled.decoder[0])["forward"].networks) == 2
    assert type(compiled) is Transformer
    assert beam_search(compiled, source, 8, beam) == beam_search(model, source, 8, beam)
    target = torch.randint(4, 60, (3, 4))
    assert_same(compiled, model, source, target)


def test_training_and_gradients_are_refused_or_the_layers_own():
    model, x = pruned(Stack()), torch.randn(2, 5, 24)
    compiled = compile_sparse(model, x)
    with pytest.raises(ValueError, match="no gradients"):
        compiled(x.requires_grad_())
    # The layers here are dense by themselves, and so is the network in training mode.
    compiled.train()
    for part in compiled.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    assert_same(compiled, model, x)


class Changes(nn.Module):
    """The sum is changed in place after it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.first(x)
        z = self.second(y)
        y.add_(1)
        return z + y


class Decides(nn.Module):
    """By the numbers of a tensor, which tracing cannot see; its parts can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = Stack()

    def forward(self, x):
        return self.stack(x) if float(x.sum()) != 1.0 else x


class Any(nn.Module):
    """Takes what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = Stack()

    def forward(self, *values):
        return self.stack(values[0])


@pytest.mark.parametrize(("model", "chained"), [(Changes(), []), (Decides(), ["stack: 3"]), (Any(), ["stack: 3"])])
def test_code_that_cannot_be_traced_runs_as_it_is(model, chained):
    x = torch.randn(3, 8 if isinstance(model, Changes) else 24).unsqueeze(0)
    compiled = compile_sparse(pruned(model), x)
    assert chains_of(compiled) == chained
    assert_same(compiled, model, x)


def test_hooks_of_the_user_still_see_their_layers():
    model, seen = pruned(Stack()), []
    model.layers[0].up.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    compiled = compile_sparse(model, torch.randn(2, 5, 24))
    assert chains_of(compiled) == ["layers.1: 2"]
    seen.clear()
    assert_same(compiled, model, torch.randn(4, 5, 24))
    assert seen == [(4, 5, 40)] * 2


def test_slower_chains_are_left_out(monkeypatch):
    monkeypatch.setattr(chaining, "least_times_of", lambda ways, inputs: [1.0, 0.95])
    compiled = compile_sparse(pruned(Stack()), torch.randn(2, 5, 24))
    assert chains_of(compiled) == []
    assert not any(choice.sparse for choice in compiled.sparse_choices)


def test_layers_that_are_slow_in_chains_stay_dense(monkeypatch):
    """Chains of all layers are slower, those of layers that are faster by themselves are not."""
    monkeypatch.setattr(
        compilation, "least_times", lambda ways, seen: [2.0, 1.0] if ways[0].in_features == ways[0].out_features else [1.0, 2.0]
    )
    monkeypatch.setattr(
        chaining,
        "least_times_of",
        lambda ways, inputs: [
            2.0,
            3.0
            if "inputs=40" in repr(ways)
            or any(isinstance(part, SparseLinear) and 40 in (part.inputs, part.outputs) for part in ways[1].layers)
            else 1.0,
        ],
    )
    model, x = pruned(Layer()), torch.randn(2, 5, 24)
    model.up, model.down = pruned(nn.Linear(24, 40)), pruned(nn.Linear(40, 24))
    compiled = compile_sparse(model, x)
    assert_same(compiled, model, x)
    (network,) = vars(compiled)["forward"].networks.values()
    assert isinstance(network.get_submodule("down"), nn.Linear)


def test_copies_and_fresh_processes(tmp_path):
    model, x = pruned(Transformer(60, SIZES["tiny"])), torch.randint(4, 60, (3, 7))
    stack, y = pruned(Stack()), torch.randn(2, 5, 24)
    saved = []
    with torch.no_grad():
        for network, example in ((model, (x, x)), (stack, (y,)), (pruned(Layer()), (y, y))):
            compiled = compile_sparse(network, example)
            assert chains_of(compiled)
            expected = compiled(*example)
            for again in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
                assert chains_of(again) == chains_of(compiled)
                assert vars(again).get("forward") is None or vars(again)["forward"].module is again
                torch.testing.assert_close(again(*example), expected)
            saved.append((compiled, example, expected))
    torch.save([entry for entry in saved if type(entry[0]) is Transformer], tmp_path / "networks.pt")
    program = (
        "import sys, torch\n"
        "for compiled, example, expected in torch.load(sys.argv[1], weights_only=False):\n"
        "    with torch.no_grad():\n"
        "        torch.testing.assert_close(compiled(*example), expected, rtol=1e-4, atol=1e-4)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path / "networks.pt")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_chains_go_where_the_whole_is_faster_without(monkeypatch):
    monkeypatch.setattr(whole, "take_turns", lambda ways, rounds: [1.0, *(2.0 for _ in ways[1:])])
    model, x = pruned(Stack()), torch.randn(2, 5, 24)
    compiled = compile_sparse(model, x)
    assert chains_of(compiled) == []
    assert not any(isinstance(part, SparseLinear | chains.SparseChain) for part in compiled.modules())
    assert not any(choice.sparse for choice in compiled.sparse_choices)
    assert {choice.reason for choice in compiled.sparse_choices} == {FASTER_DENSE}
    assert_same(compiled, model, x)


@pytest.mark.parametrize("rows", [None, 1, 4])
def test_chains_take_a_batch_in_parts(monkeypatch, rows):
    asked = [None, 1, 4]
    monkeypatch.setattr(whole, "take_turns", lambda ways, rounds: [2.0, *(float(one != rows) for one in asked), 3.0])
    layers = [nn.LayerNorm(24), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24), nn.Tanh()]
    model, x = pruned(nn.Sequential(*layers)), torch.randn(9, 5, 24)
    compiled = compile_sparse(model, x)
    assert isinstance(compiled, Traced)
    assert compiled.arrangement.rows == rows
    assert chains_of(compiled) == [": 1"]
    sizes, run = [], chains.SparseChain.forward
    monkeypatch.setattr(
        chains.SparseChain, "forward", lambda self, *inputs: (sizes.append(len(inputs[0])), run(self, *inputs))[1]
    )
    assert_same(compiled, model, x)
    assert sizes == {None: [9], 1: [1] * 9, 4: [4, 4, 1]}[rows]


@pytest.mark.parametrize("path", native.INSTRUCTION_SETS)
def test_normalization_keeps_its_digits_far_from_zero(path, monkeypatch):
    """Activations of mean 1000 and deviation 1, as large residual streams have: no worse than torch, against float64."""
    chosen = kernels(path)
    for module in (chains, chaining):
        monkeypatch.setattr(module, "load_kernels", lambda: chosen)
    model = nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64))
    for layer in (model[1], model[3]):
        nn.init.sparse_(layer.weight, sparsity=0.9, std=0.05)
    x = 1000 + torch.randn(40, 512)
    model = model.eval()
    compiled = compile_sparse(model, x)
    assert chains_of(compiled) == [": 1"]
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        ours, theirs = ((found.double() - exact).abs().max() for found in (compiled(x), model(x)))
    assert ours <= 2 * theirs


def test_without_kernels_nothing_is_chained(monkeypatch):
    monkeypatch.setattr(chaining, "load_kernels", lambda: None)
    assert chains_of(compile_sparse(pruned(Stack()), torch.randn(2, 5, 24))) == []


class Continued(nn.Module):
    """Its first call is told by a None inside a tuple, which tracing does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(24), nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x, cache):
        states = self.second(F.relu(self.first(self.norm(x))))
        return states * 2 if cache[0] is None else states + cache[0]


def test_calls_that_a_none_inside_an_argument_tells_apart_run_by_their_own_code():
    model, x = pruned(Continued()), torch.randn(5, 24)
    compiled = compile_sparse(model, lambda network: network(x, (network(x, (None,)),)))
    assert isinstance(vars(compiled)["forward"], ChainedForward)
    with torch.no_grad():
        for cache in ((None,), (x,)):
            torch.testing.assert_close(compiled(x, cache), model(x, cache), rtol=1e-4, atol=1e-5)


def test_layers_that_are_always_told_apart_so_are_not_chained():
    model, x = pruned(Continued()), torch.randn(5, 24)
    compiled = compile_sparse(model, lambda network: network(x, (None,)))
    assert "forward" not in vars(compiled)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, (None,)), model(x, (None,)), rtol=1e-4, atol=1e-5)
