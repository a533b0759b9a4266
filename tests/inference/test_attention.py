"""Attention inside chains: found by what it computes, equal to torch's for all lengths and masks; anything else stays."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_times import pretend_sparse_is_fastest
from torch import nn
from torch.nn import functional as F

from sparsebench.inference import chaining, chains, compile_sparse
from sparsebench.inference.chaining import ChainedForward
from sparsebench.inference.chains import SparseChain
from sparsebench.workloads.translation.transformer import Dropouts, EncoderLayer, Size


def plain(q, k, v, mask, heads):
    """As most write it."""
    q, k, v = (x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2).reshape(mixed.shape[0], mixed.shape[2], -1)


def permuted(q, k, v, mask, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).permute(0, 2, 1, 3) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0).permute(0, 2, 1, 3).contiguous().flatten(2)


def causal(q, k, v, mask, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def rescaled(q, k, v, mask, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=0.9).transpose(1, 2).flatten(2)


def interleaved(q, k, v, mask, heads):
    """Features of a head are not neighbours."""
    q, k, v = (x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 1).flatten(2)


def within_windows(q, k, v, mask, heads):
    """The same as attention for six positions alone."""
    windows = [x.reshape(-1, 6, heads, x.shape[2] // heads).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*windows).transpose(1, 2).reshape(q.shape)


def across_sentences(q, k, v, mask, heads):
    """The same as attention for one sentence alone."""
    joined = [x.reshape(1, -1, heads, x.shape[2] // heads).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*joined).transpose(1, 2).reshape(q.shape)


FEED_FORWARD = ["product", "rectify", "product", "add"]


class Mixer(nn.Module):
    """A layer of a Transformer, around any attention."""

    def __init__(self, attention, heads=2, head_width=4, hidden=20, zeros=0.5):
        super().__init__()
        self.attention, self.heads, width = attention, heads, heads * head_width
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        with torch.no_grad():
            for part in self.children():
                if isinstance(part, nn.Linear):
                    part.weight.mul_(2 * (torch.rand_like(part.weight) >= zeros))
                    part.weight[0, 0] = 0  # what has no zeros is no sparse layer
        self.eval().requires_grad_(False)

    def forward(self, x, mask=None):
        normed = self.norm(x)
        mixed = self.attention(self.query(normed), self.key(normed), self.value(normed), mask, self.heads)
        x = x + self.output(mixed)
        return x + self.down(F.relu(self.up(x)))


@pytest.fixture
def fastest(monkeypatch):
    pretend_sparse_is_fastest(monkeypatch)


def chain_kinds(compiled) -> list[list[str]]:
    """Of every chain in the code that runs, the kinds of its links."""
    found = []
    for module in compiled.modules():
        for forward in (vars(module).get("forward"), vars(module).get("chained")):
            if isinstance(forward, ChainedForward):
                for network in forward.networks.values():
                    found += [[link.kind for link in part.links] for part in network.children() if isinstance(part, SparseChain)]
    return found


def some_mask(kind, sentences, positions):
    if kind == "none":
        return None
    mask = torch.rand(1 if kind == "shared" else sentences, 1, 1, positions) >= 0.5
    if kind == "padding":
        mask = torch.arange(positions) < torch.randint(1, positions + 1, (sentences, 1, 1, 1))
    return mask


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


@settings(max_examples=6)
@given(
    st.sampled_from([plain, permuted]),
    st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 8, 16, 21])),
    st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 5, 15, 16, 31, 32, 33, 48, 63, 64, 65, 90])),
    st.sampled_from(["none", "shared", "each", "padding"]),
    st.integers(0, 2**31),
)
@pytest.mark.usefixtures("threads", "fastest")
def test_random_attentions_are_torchs(path, attention, heads, sizes, kind, seed):
    torch.manual_seed(seed)
    model = Mixer(attention, *heads)
    x, mask = torch.randn(*sizes, heads[0] * heads[1]), some_mask(kind, *sizes)
    arguments = (x,) if mask is None else (x, mask)
    compiled = compile_sparse(model, arguments)
    if path != "torch":
        assert chain_kinds(compiled) == [["normalize", *["product"] * 3, "attend", "product", "add", *FEED_FORWARD]]
    assert_close(compiled(*arguments), model(*arguments))
    # It is for all other sizes too.
    for shape in ((1, 1), (2, 7), (3, 64), (1, 100)):
        x = torch.randn(*shape, heads[0] * heads[1])
        arguments = (x,) if mask is None else (x, some_mask(kind, *shape))
        assert_close(compiled(*arguments), model(*arguments))


@pytest.mark.usefixtures("fastest")
@pytest.mark.parametrize("attention", [causal, rescaled, interleaved, within_windows, across_sentences])
def test_what_is_something_else_stays_as_it_is(attention):
    model, x = Mixer(attention), torch.randn(1, 6, 8)
    compiled = compile_sparse(model, x)
    assert all("attend" not in kinds for kinds in chain_kinds(compiled))
    for shape in ((1, 6, 8), (4, 6, 8), (1, 12, 8)):
        x = torch.randn(shape)
        assert_close(compiled(x), model(x))


@pytest.mark.usefixtures("fastest")
def test_layer_of_the_translation_workload():
    layer = EncoderLayer(Size(24, 40, 3, 1), Dropouts(0.1, 0.1, 0.1)).eval().requires_grad_(False)
    for part in layer.modules():
        if isinstance(part, nn.Linear):
            part.weight.mul_(torch.rand_like(part.weight) >= 0.5)
    x, mask = torch.randn(9, 5, 24), torch.arange(5) < torch.randint(1, 6, (9, 1, 1, 1))
    compiled = compile_sparse(layer, (x, mask))
    assert [kinds.count("attend") for kinds in chain_kinds(compiled)] == [1]
    (choice,) = [choice for choice in compiled.sparse_choices if "+" in choice.name]
    assert choice.name.startswith("attention_norm + attention.")
    assert choice.name.endswith("feed_forward.outer")
    assert choice.inputs == ((9, 5, 24),)
    copies = compiled, copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))
    for sizes in ((9, 5), (1, 60), (2, 64), (3, 70)):
        x, mask = torch.randn(*sizes, 24), torch.arange(sizes[1]) < torch.randint(1, sizes[1] + 1, (sizes[0], 1, 1, 1))
        for network in copies:
            torch.testing.assert_close(network(x, mask), layer(x, mask), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("fastest")
def test_masks_of_another_kind_run_by_torch(path):
    model, x = Mixer(plain), torch.randn(3, 6, 8)
    compiled = compile_sparse(model, (x, some_mask("padding", 3, 6)))
    kinds = {
        "for each query": torch.rand(3, 1, 6, 6) < 0.8,
        "for each head": torch.rand(3, 2, 1, 6) < 0.8,
        "added": torch.randn(3, 1, 1, 6),
        "not contiguous": (torch.rand(1, 1, 6, 3) < 0.8).transpose(0, 3),
        "every other": (torch.rand(3, 1, 1, 12) < 0.8)[..., ::2],
        "fewer dimensions": torch.rand(6, 6) < 0.8,
    }
    for name, mask in kinds.items():
        if mask.dtype == torch.bool:
            mask[..., 0] = True
        found, expected = compiled(x, mask), model(x, mask)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.usefixtures("fastest")
def test_where_nothing_may_be_read_and_where_numbers_are_none(path):
    model, x = Mixer(plain), torch.randn(3, 6, 8)
    mask = torch.ones(3, 1, 1, 6, dtype=torch.bool)
    mask[1] = False
    compiled = compile_sparse(model, (x, mask))
    assert bool(model(x, mask).isfinite().all())
    assert_close(compiled(x, mask), model(x, mask))
    # Of one sentence alone, and of all that reads it.
    x[0, 2, 3] = math.nan
    found, expected = compiled(x, mask), model(x, mask)
    torch.testing.assert_close(found.isnan(), expected.isnan())
    assert 0 < int(found.isnan().sum()) < found.numel()


@pytest.mark.usefixtures("fastest")
def test_large_scores_do_not_overflow(path):
    model, x = Mixer(plain, zeros=0.2), torch.randn(2, 20, 8)
    for part in (model.query, model.key):
        part.weight.mul_(15)
    compiled = compile_sparse(model, x)
    assert_close(compiled(x), model(x))


def test_chains_with_attention_must_be_faster_than_chains_beside_it(monkeypatch):
    pretend_sparse_is_fastest(monkeypatch)
    monkeypatch.setattr(chaining, "least_times_of", lambda ways, inputs: [2.0, 1.0, *(1.05 for _ in ways[2:])])
    model, x = Mixer(plain), torch.randn(2, 6, 8)
    compiled = compile_sparse(model, x)
    assert chain_kinds(compiled) == [["normalize", *["product"] * 3], ["product", "add", *FEED_FORWARD]]
    assert_close(compiled(x), model(x))


@pytest.mark.usefixtures("fastest")
def test_longer_sequences_run_in_chains_beside_attention(monkeypatch):
    """And so do those that would leave more than a quarter of a panel empty."""
    model = Mixer(plain)
    compiled = compile_sparse(model, torch.randn(2, 6, 8))
    calls = []
    run = chains.SparseChain._run
    monkeypatch.setattr(chains.SparseChain, "_run", lambda chain, *rest: (calls.append(len(chain.links)), run(chain, *rest))[1])
    for positions, expected in ((6, [11]), (64, [11]), (65, [4, 6]), (33, [4, 6]), (31, [11]), (40, [11])):
        calls.clear()
        x = torch.randn(2, positions, 8)
        assert_close(compiled(x), model(x))
        assert calls == expected, positions
