"""Multiply-adds against numbers worked out by hand, a naive loop and torch's own FLOP counter."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from sparsebench.accounting import report


def costs(model, example_input):
    return {row.name: (row.multiply_adds, row.sparse_multiply_adds) for row in report(model, example_input).layers}


def make_sparse(model, every=3):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.view(-1)[::every] = 0
    return model


def naive_conv2d(layer, image):
    """Count, one by one, the products of a convolution with all weights and with non-zero ones."""
    padded = F.pad(image, (layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0]))
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    dense = sparse = 0
    per_group = layer.out_channels // layer.groups
    for _ in range(image.shape[0]):
        for top in range(0, padded.shape[2] - dh * (kh - 1), sh):
            for left in range(0, padded.shape[3] - dw * (kw - 1), sw):
                for out in range(layer.out_channels):
                    first_input = out // per_group * (layer.in_channels // layer.groups)
                    for channel in range(first_input, first_input + layer.in_channels // layer.groups):
                        for y, x in itertools.product(range(kh), range(kw)):
                            weight = layer.weight[out, channel - first_input, y, x].item()
                            assert padded[0, channel, top + dh * y, left + dw * x] is not None
                            dense += 1
                            sparse += weight != 0
    return dense, sparse


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"dilation": 2},
        {"groups": 2},
        {"groups": 4},
        {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2), "groups": 2},
    ],
    ids=str,
)
def test_convolutions_against_a_naive_loop(options):
    layer = make_sparse(nn.Conv2d(4, 8, (3, 2), **options))
    image = torch.ones(2, 4, 7, 6)
    assert costs(layer, image)["weight"] == naive_conv2d(layer, image)


@settings(max_examples=40)
@given(
    dims=st.integers(1, 3),
    transposed=st.booleans(),
    groups=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 3),
)
def test_convolutions_against_the_flop_counter(dims, transposed, groups, kernel, stride, padding, dilation, batch):
    name = ("ConvTranspose" if transposed else "Conv") + f"{dims}d"
    layer = getattr(nn, name)(2 * groups, 3 * groups, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
    image = torch.ones(batch, 2 * groups, *[6, 7, 8][:dims])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(image)
    assert costs(layer, image)["weight"] == (counter.get_total_flops() // 2,) * 2


def test_a_small_network_against_the_flop_counter():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, groups=4),
        nn.Flatten(),
        nn.Linear(16 * 9, 10),
    ).eval()
    images = torch.ones(5, 3, 8, 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    assert report(model, images).multiply_adds == counter.get_total_flops() // 2


def test_unbatched_convolutions():
    assert costs(nn.Conv1d(2, 3, 2), torch.ones(2, 5))["weight"][0] == 12 * 4
    assert costs(nn.ConvTranspose2d(2, 3, 2), torch.ones(2, 5, 4))["weight"][0] == 24 * 20


@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (2, 3, 4)])
def test_linear_with_any_leading_dimensions(leading):
    layer = make_sparse(nn.Linear(6, 4))
    positions = torch.Size(leading).numel()
    assert costs(layer, torch.ones(*leading, 6))["weight"] == (24 * positions, 16 * positions)


def test_bilinear():
    assert costs(nn.Bilinear(2, 3, 4), (torch.ones(5, 2), torch.ones(5, 3)))["weight"][0] == 24 * 5


def test_an_embedding_costs_nothing():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    assert costs(nn.Embedding(5, 4), tokens) == {"weight": (0, 0)}
    assert costs(nn.EmbeddingBag(5, 4), tokens) == {"weight": (0, 0)}


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("batch_first", [False, True])
def test_recurrent_layers(kind, batch_first):
    layer = make_sparse(kind(4, 6, num_layers=2, bidirectional=True, batch_first=batch_first), every=2)
    cost = costs(layer, torch.ones(5, 3, 4))
    gates = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[kind]
    for direction in ("", "_reverse"):
        for name, weights in {
            "weight_ih_l0": gates * 6 * 4,
            "weight_hh_l0": gates * 6 * 6,
            "weight_ih_l1": gates * 6 * 12,  # both directions of the layer below
            "weight_hh_l1": gates * 6 * 6,
        }.items():
            assert cost[name + direction] == (weights * 15, weights // 2 * 15)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_lstm_with_projection_and_unbatched():
    cost = costs(nn.LSTM(4, 6, proj_size=2), torch.ones(7, 4))
    assert cost == {
        "weight_ih_l0": (24 * 4 * 7,) * 2,
        "weight_hh_l0": (24 * 2 * 7,) * 2,
        "weight_hr_l0": (2 * 6 * 7,) * 2,
    }


def test_packed_sequences_cost_nothing_for_padding():
    packed = pack_sequence([torch.ones(4, 3), torch.ones(2, 3), torch.ones(1, 3)])
    assert costs(nn.GRU(3, 2), packed) == {"weight_ih_l0": (18 * 7,) * 2, "weight_hh_l0": (12 * 7,) * 2}


def test_recurrent_cells_used_in_a_loop():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(3, 2)

        def forward(self, steps):
            state = None
            for step in steps:
                state = self.cell(step, state)
            return state

    assert costs(Loop(), torch.ones(5, 4, 3)) == {"cell.weight_ih": (24 * 20,) * 2, "cell.weight_hh": (16 * 20,) * 2}


@pytest.mark.parametrize("grad", [False, True])
def test_attention_with_different_lengths(grad):
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        layer.in_proj_weight.fill_(1.0)
        layer.in_proj_weight[8:16] = 0  # the keys' projection only
    query, memory = torch.ones(3, 5, 8), torch.ones(3, 7, 8)
    with torch.set_grad_enabled(grad):
        cost = costs(layer, {"query": query, "key": memory, "value": memory})
    assert cost == {
        "in_proj_weight": (64 * 3 * (5 + 7 + 7), 64 * 3 * (5 + 7)),
        "out_proj.weight": (64 * 15, 64 * 15),
    }


def test_attention_with_different_widths():
    layer = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    inputs = (torch.ones(5, 2, 8), torch.ones(7, 2, 6), torch.ones(7, 2, 4))
    assert {name: dense for name, (dense, _) in costs(layer, inputs).items()} == {
        "q_proj_weight": 64 * 10,
        "k_proj_weight": 48 * 14,
        "v_proj_weight": 32 * 14,
        "out_proj.weight": 64 * 10,
    }


def test_self_attention_is_counted_on_the_fast_path_too():
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = torch.ones(2, 5, 8)
    assert report(layer, (tokens, tokens, tokens)).multiply_adds == 4 * 64 * 10


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_encoder_layers_are_counted_despite_their_fast_path(training, padding):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).train(training)
    tokens = {"src": torch.ones(3, 5, 8)}
    if padding:
        tokens["src_key_padding_mask"] = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5])
    fast_path = torch.backends.mha.get_fastpath_enabled()
    cost = costs(model, tokens)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    for depth in range(2):
        assert cost[f"layers.{depth}.self_attn.in_proj_weight"][0] == 3 * 64 * 15
        assert cost[f"layers.{depth}.self_attn.out_proj.weight"][0] == 64 * 15
        assert cost[f"layers.{depth}.linear1.weight"][0] == 128 * 15
        assert cost[f"layers.{depth}.linear2.weight"][0] == 128 * 15


def test_transformer_decoder():
    cost = costs(nn.Transformer(8, 2, 1, 1, 16, batch_first=True), (torch.ones(1, 5, 8), torch.ones(1, 3, 8)))
    assert cost["decoder.layers.0.self_attn.in_proj_weight"][0] == 3 * 64 * 3
    assert cost["decoder.layers.0.multihead_attn.in_proj_weight"][0] == 64 * (3 + 5 + 5)
    assert cost["decoder.layers.0.multihead_attn.out_proj.weight"][0] == 64 * 3


def test_a_layer_called_twice_costs_twice_and_an_unused_one_nothing():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(3, 3)
            self.unused = nn.Linear(3, 9)

        def forward(self, x):
            return self.used(self.used(x))

    assert costs(Twice(), torch.ones(4, 3)) == {"used.weight": (72, 72), "unused.weight": (0, 0)}


def test_layers_sharing_a_weight_add_up():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    model[2].weight = model[1].weight
    model[3].weight = model[0].weight
    cost = costs(model, torch.zeros(2, 5, dtype=torch.long))
    assert cost == {"0.weight": (28 * 10,) * 2, "1.weight": (16 * 20,) * 2}


class TiedInCode(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.logits = logits

    def forward(self, tokens):
        return self.logits(self.embedding(tokens), self.embedding.weight)


def under_autocast(hidden, weight):
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(hidden, weight)


def under_inference_mode(hidden, weight):
    with torch.inference_mode():
        return F.linear(hidden, weight)


@pytest.mark.parametrize(
    "logits",
    [
        F.linear,
        lambda hidden, weight: F.linear(hidden, weight, torch.zeros(7)),
        lambda hidden, weight: hidden @ weight.T,
        lambda hidden, weight: hidden @ weight.T.contiguous(),
        lambda hidden, weight: torch.einsum("btd,vd->btv", hidden, weight),
        lambda hidden, weight: torch.cat([F.linear(hidden, half) for half in weight.split([3, 4])], -1),
        under_autocast,
        under_inference_mode,
    ],
)
def test_a_softmax_tied_in_the_models_code_is_counted(logits):
    model = TiedInCode(logits)
    with torch.no_grad():
        model.embedding.weight[2] = 0
    assert costs(model, torch.zeros(2, 5, dtype=torch.long)) == {"embedding.weight": (28 * 10, 24 * 10)}


def test_layers_whose_forward_is_called_directly_are_counted():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 2, bias=False)
            self.transposed = nn.ConvTranspose1d(3, 2, 2)
            self.linear = nn.Linear(5, 4)

        def forward(self, x):
            return self.linear.forward(self.transposed.forward(self.conv.forward(x)))

    cost = costs(Direct(), torch.ones(3, 2, 5))
    assert cost == {
        "conv.weight": (12 * 12,) * 2,
        "transposed.weight": (12 * 12,) * 2,
        "linear.weight": (20 * 6,) * 2,
    }


def test_a_converted_layer_that_computes_more_counts_as_the_layer_it_stands_for():
    class LocalReparameterization(nn.Linear):
        def __init__(self, inputs, outputs):
            super().__init__(inputs, outputs)
            self.log_sigma2 = nn.Parameter(torch.zeros_like(self.weight))

        def forward(self, x):
            mean = F.linear(x, self.weight, self.bias)
            variance = F.linear(x.square(), self.weight.square() * self.log_sigma2.exp())
            return mean + variance.sqrt() * torch.randn_like(mean)

    assert costs(LocalReparameterization(3, 2), torch.ones(4, 3)) == {"weight": (24, 24)}


def test_a_layer_that_delegates_to_another_with_its_weight_counts_once():
    class Delegating(nn.Linear):
        def __init__(self, inputs, outputs):
            super().__init__(inputs, outputs)
            self.inner = nn.Linear(inputs, outputs)
            self.inner.weight = self.weight

        def forward(self, x):
            return self.inner(x)

    assert costs(Delegating(3, 2), torch.ones(4, 3)) == {"weight": (24, 24)}


def test_a_cast_cached_before_the_report_does_not_hide_a_use():
    model, tokens = TiedInCode(F.linear), torch.zeros(2, 5, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens)  # autocast now keeps the embedding in bfloat16
        assert costs(model, tokens)["embedding.weight"][0] == 28 * 10


def test_parts_of_one_storage_are_told_apart():
    flat = torch.ones(32)
    flat[:4] = 0
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[0].weight = nn.Parameter(flat[:16].view(4, 4))
    model[1].weight = nn.Parameter(flat[16:].view(4, 4))

    class InCode(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            return F.linear(F.linear(F.linear(x, self.layers[0].weight), self.layers[1].weight), self.layers[1].weight)

    assert costs(InCode(), torch.ones(1, 4)) == {"layers.0.weight": (16, 12), "layers.1.weight": (32, 32)}


@pytest.mark.parametrize("inputs", [torch.ones(2, 3), (torch.ones(2, 3),), [torch.ones(2, 3)], {"input": torch.ones(2, 3)}])
def test_example_inputs_of_every_form(inputs):
    assert costs(nn.Linear(3, 4), inputs) == {"weight": (24, 24)}


def test_a_model_without_arguments():
    class NoArguments(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self):
            return self.linear(torch.ones(2, 3))

    assert costs(NoArguments(), ())["linear.weight"] == (24, 24)


def test_wrapped_models_keep_their_parameter_names():
    assert costs(nn.DataParallel(nn.Linear(3, 4)), torch.ones(2, 3)) == {"module.weight": (24, 24)}


def test_a_compiled_model_is_counted():
    compiled = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.Conv1d(2, 2, 3)), backend="eager")
    compiled(torch.ones(1, 2, 3))  # compiled before the report, so without its hooks
    expected = {"_orig_mod.0.weight": (24, 24), "_orig_mod.1.weight": (24, 24)}
    assert costs(compiled, torch.ones(1, 2, 3)) == expected
    assert costs(compiled, torch.ones(1, 2, 3)) == expected


@pytest.mark.filterwarnings("ignore")  # it warns that it is slow when not compiled
def test_higher_order_operators_run():
    flex_attention = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention

    class Flexible(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            hidden = self.linear(x)
            return flex_attention(hidden, hidden, hidden)

    assert costs(Flexible(), torch.ones(1, 1, 8, 16))["linear.weight"] == (256 * 8, 256 * 8)


def test_half_precision():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).bfloat16()
    assert report(model, torch.ones(2, 3, dtype=torch.bfloat16)).multiply_adds == 2 * (12 + 8)
