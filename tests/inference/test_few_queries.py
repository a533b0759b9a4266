"""Attention of few queries: equal to the formula whatever lies where, found by what code computes, and nothing else."""

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_times import pretend_sparse_is_fastest
from torch import fx, nn
from torch.nn import functional as F

from sparsebench.inference import compile_sparse, few_queries
from sparsebench.inference.few_queries import MOST_QUERIES, FewQueries, put_few_queries
from sparsebench.workloads.translation.decoding import beam_search
from sparsebench.workloads.translation.tokens import PADDING
from sparsebench.workloads.translation.transformer import SIZES, Transformer, attend

NEAR = {"rtol": 1e-4, "atol": 1e-4}  # of numbers up to ten

fx.wrap("attend")  # as the module does that it is from


def formula(query, keys, values, mask=None):
    """Vaswani et al. 2017, eq. 1, in double precision; what may read nothing reads zero."""
    scores = query.double() @ keys.double().transpose(2, 3) / math.sqrt(query.shape[3])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(3).nan_to_num(0.0) if mask is not None else scores.softmax(3)) @ values.double()


def never(*given):
    raise AssertionError("the kernels can do this")


@st.composite
def tensors(draw):
    """Queries, keys, values and perhaps a mask, laid out in any order but that features are neighbours."""
    sequences, heads = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    queries, keys, depth = draw(st.integers(1, MOST_QUERIES)), draw(st.integers(1, 40)), 4 * draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    made = []
    for positions in (queries, keys, keys):
        order = draw(st.permutations([0, 1, 2]))
        sizes = [(sequences, heads, positions)[place] for place in order]
        scale, unread = draw(st.sampled_from([0.1, 1.0, 3.0])), draw(st.integers(0, 3))
        tensor = scale * torch.randn(*sizes, depth + unread, generator=generator)
        made.append(tensor[..., :depth].permute(*[order.index(place) for place in range(3)], 3))
    kind = draw(st.sampled_from(["none", "shared", "each", "expanded"]))
    if kind != "none":
        dropped, masks = draw(st.sampled_from([0.1, 0.9])), sequences if kind == "each" else 1
        mask = torch.rand(masks, 1, 1, keys, generator=generator) >= dropped
        made.append(mask.expand(sequences, 1, 1, keys) if kind == "expanded" else mask)
    return made


@settings(max_examples=60)
@given(given=tensors())
def test_it_equals_the_formula(path, threads, given):
    attention = FewQueries(F.scaled_dot_product_attention if path == "torch" else never)
    torch.testing.assert_close(attention(*given).double(), formula(*given), **NEAR)


def test_many_sequences_are_shared_among_threads(path, threads):
    """So many that each thread takes several, and none is left out."""
    query, keys, values = torch.randn(300, 4, 1, 32), torch.randn(300, 4, 50, 32), torch.randn(300, 4, 50, 32)
    found = FewQueries(F.scaled_dot_product_attention)(query, keys, values)
    torch.testing.assert_close(found.double(), formula(query, keys, values), **NEAR)


@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_shows(path, where, number):
    """As in the formula; torch's own attention hides some of it."""
    query, keys, values = torch.rand(2, 2, 1, 16), torch.rand(2, 2, 5, 16), torch.rand(2, 2, 5, 16)
    {"query": query, "key": keys, "value": values}[where][1, 0, 0, 3] = number
    attention = FewQueries(formula if path == "torch" else never)
    torch.testing.assert_close(attention(query, keys, values).double(), formula(query, keys, values), equal_nan=True, **NEAR)


def test_another_default_type():
    query, keys, values = torch.randn(2, 2, 1, 16), torch.randn(2, 2, 5, 16), torch.randn(2, 2, 5, 16)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found = FewQueries(F.scaled_dot_product_attention)(query, keys, values)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), formula(query, keys, values), **NEAR)


REFUSED = {
    "many queries": lambda q, k, v: (torch.randn(2, 2, MOST_QUERIES + 1, 8), k, v),
    "double precision": lambda q, k, v: (q.double(), k.double(), v.double()),
    "an odd number of features": lambda q, k, v: (q[..., :7], k[..., :7], v[..., :7]),
    "features apart": lambda q, k, v: (q.transpose(2, 3).contiguous().transpose(2, 3).expand(2, 2, 3, 8), k, v),
    "gradients": lambda q, k, v: (q.requires_grad_(), k, v),
    "a mask for each query": lambda q, k, v: (q, k, v, torch.ones(2, 2, 3, 5, dtype=torch.bool)),
    "a sum in the place of a mask": lambda q, k, v: (q, k, v, torch.zeros(2, 1, 1, 5)),
    "values of another width": lambda q, k, v: (q, k, v[..., :4]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_kernels_cannot_do_other_code_does(reason):
    given = REFUSED[reason](torch.randn(2, 2, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8))
    found = FewQueries(F.scaled_dot_product_attention)(*given)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*given))
    assert found.requires_grad == (reason == "gradients")


def as_torch_has_it(query, keys, values, mask):
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def by_hand(query, keys, values, mask):
    return attend(query, keys, values, mask, 0.0, False)


def causal(query, keys, values, mask):
    return F.scaled_dot_product_attention(query, keys, values, is_causal=True)


def rescaled(query, keys, values, mask):
    return F.scaled_dot_product_attention(query, keys, values, mask, scale=0.3)


def backwards(query, keys, values, mask):
    return F.scaled_dot_product_attention(query, values, keys, mask)


class Around(nn.Module):
    """Any attention in code that can be traced."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, query, keys, values, mask):
        return self.attention(query, keys, values, mask) + 1


def traced(attention, *given):
    """Its code, and what each node of it gives."""
    network = fx.symbolic_trace(Around(attention))
    interpreter = fx.Interpreter(network, garbage_collect_values=False)
    interpreter.run(*given)
    return network, interpreter.env


def some(sequences=9, queries=1, keys=6):
    shapes = [(sequences, 2, positions, 8) for positions in (queries, keys, keys)]
    return [*map(torch.randn, shapes), torch.arange(keys) < torch.randint(1, keys + 1, (sequences, 1, 1, 1))]


@pytest.fixture
def fastest(monkeypatch):
    """Whatever runs on the kernels is taken to be faster."""
    pretend_sparse_is_fastest(monkeypatch)
    monkeypatch.setattr(few_queries, "least_times_of", lambda ways, inputs: [1.0, 0.1])


@pytest.mark.parametrize("attention", [as_torch_has_it, by_hand, backwards])
def test_code_that_computes_attention_runs_on_the_kernels(attention, fastest):
    given = some()
    network, values = traced(attention, *given)
    assert put_few_queries(network, values) == 1
    assert [type(part) for part in network.children()] == [FewQueries]
    for sizes in ({}, {"queries": 4}, {"queries": 20}, {"sequences": 2, "keys": 30}):
        given = some(**sizes)
        torch.testing.assert_close(network(*given), attention(*given) + 1)
    again = pickle.loads(pickle.dumps(copy.deepcopy(network)))
    torch.testing.assert_close(again(*given), attention(*given) + 1)


@pytest.mark.parametrize("attention", [causal, rescaled])
def test_code_that_computes_something_else_stays(attention, fastest):
    network, values = traced(attention, *some())
    code = network.code
    assert put_few_queries(network, values) == 0
    assert network.code == code


def test_what_is_not_faster_stays(monkeypatch):
    monkeypatch.setattr(few_queries, "least_times_of", lambda ways, inputs: [1.0, 0.95])
    network, values = traced(by_hand, *some())
    assert put_few_queries(network, values) == 0


def test_decoding_uses_it(fastest, tmp_path):
    """Both attentions of every layer, in steps that have a cache; translations are the same, in another process too."""
    torch.manual_seed(0)
    model = Transformer(50, SIZES["tiny"]).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.mul_(torch.rand_like(layer.weight) >= 0.5)
    source = torch.randint(3, 50, (10, 7)).masked_fill(torch.arange(7) >= torch.randint(2, 8, (10, 1)), PADDING)
    compiled = compile_sparse(model, lambda network: beam_search(network, source, 9))
    used = [module for module in all_parts(compiled) if isinstance(module, FewQueries)]
    assert len(used) >= 2 * len(model.decoder)
    for number in (1, 3, 10):
        assert beam_search(compiled, source[:number], 9) == beam_search(model, source[:number], 9)
    torch.save((compiled, source, beam_search(model, source, 9)), tmp_path / "network.pt")
    program = (
        "import sys, torch\n"
        "from sparsebench.workloads.translation.decoding import beam_search\n"
        "compiled, source, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "assert beam_search(compiled, source, 9) == expected\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "network.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def all_parts(compiled):
    """Modules, and those of the code that runs in the place of theirs."""
    for module in compiled.modules():
        yield module
        forward = vars(module).get("forward")
        for network in getattr(forward, "networks", {}).values():
            yield from network.modules()
