"""Which rows a report has, and the weights, zeros and bytes in them."""

import copy
import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from sparsebench.accounting import report
from sparsebench.errors import SparsebenchError


def rows(model, example_input=None):
    return {layer.name: layer for layer in report(model, example_input).layers}


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (nn.Linear(2, 3), ["weight"]),
        (nn.Bilinear(2, 3, 4), ["weight"]),
        (nn.Conv1d(2, 3, 2), ["weight"]),
        (nn.Conv2d(2, 3, 2), ["weight"]),
        (nn.Conv3d(2, 3, 2), ["weight"]),
        (nn.ConvTranspose1d(2, 3, 2), ["weight"]),
        (nn.ConvTranspose2d(2, 3, 2), ["weight"]),
        (nn.ConvTranspose3d(2, 3, 2), ["weight"]),
        (nn.Embedding(5, 2), ["weight"]),
        (nn.EmbeddingBag(5, 2), ["weight"]),
        (nn.RNN(2, 3), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.GRU(2, 3, num_layers=2), ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]),
        (nn.LSTM(2, 3, proj_size=2), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
        (
            nn.LSTM(2, 3, bidirectional=True),
            ["weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"],
        ),
        (nn.GRUCell(2, 3), ["weight_ih", "weight_hh"]),
        (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_weight_matrix_of_each_layer_type_is_a_row(layer, names):
    held = report(layer)
    assert [row.name for row in held.layers] == names
    assert {row.layer_type for row in held.layers} == {type(layer).__name__}
    parameters = dict(layer.named_parameters())
    for row in held.layers:
        assert row.shape == tuple(parameters[row.name].shape)
        assert row.weights == parameters[row.name].numel()
    assert held.parameters == sum(p.numel() for p in layer.parameters())


def test_names_are_those_of_named_parameters_in_the_same_order():
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    names = [row.name for row in report(model).layers]
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    assert names == matrices


def test_zeros_of_both_signs_count_and_other_values_do_not():
    layer = nn.Linear(5, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, -0.0, 1e-45, float("nan"), float("inf")]]))
    row = report(layer).layers[0]
    assert (row.zeros, row.nonzeros, row.sparsity) == (2, 3, 0.4)


def test_other_parameters_and_buffers_are_counted_but_their_zeros_are_no_sparsity():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with torch.no_grad():
        for parameter in (model[0].bias, model[1].weight, model[1].bias):
            parameter.zero_()
    held = report(model)
    assert held.sparsity == 0.0
    assert held.other_parameters == 2 + 2 + 2
    assert held.other_bytes == 6 * 4
    assert held.buffer_bytes == 2 * 4 + 2 * 4 + 8
    assert held.bytes == 18 * 4 + 24 + 24


def test_compressed_bytes_are_mask_and_nonzero_values():
    layer = nn.Linear(9, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)[0, 2:] = 0
    row = report(layer).layers[0]
    assert row.compressed_bytes == 2 + 2 * 4  # 9 bits take 2 bytes
    assert report(nn.Linear(9, 1)).layers[0].compressed_bytes == 36  # dense is smaller than dense and a mask


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float16, 2),
        (torch.bfloat16, 2),
        (torch.float32, 4),
        (torch.float64, 8),
        (torch.complex64, 8),
        (torch.float8_e4m3fn, 1),
    ],
)
def test_any_dtype(dtype, size):
    layer = nn.Linear(8, 2, bias=False)
    values = torch.ones(2, 8)
    values[0] = 0
    values[1, 0] = -0.0
    layer.weight = nn.Parameter(values.to(dtype), requires_grad=False)
    row = report(layer).layers[0]
    assert (row.zeros, row.bytes, row.compressed_bytes) == (9, 16 * size, min(16 * size, 2 + 7 * size))


def test_tied_embedding_and_softmax_are_one_row_with_both_types():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    held = report(model)
    assert [(row.name, row.layer_type, row.weights) for row in held.layers] == [("0.weight", "Embedding + Linear", 28)]
    assert held.parameters == 28


def test_a_layer_used_under_two_names_is_one_row():
    layer = nn.Linear(3, 3)
    held = report(nn.ModuleDict({"a": layer, "b": layer}))
    assert [row.name for row in held.layers] == ["a.weight"]
    assert held.other_parameters == 3


def test_subclasses_are_recognised_and_keep_their_name():
    class Noisy(nn.Linear):
        def __init__(self, inputs, outputs):
            super().__init__(inputs, outputs)
            self.log_sigma2 = nn.Parameter(torch.zeros_like(self.weight))

    held = report(nn.Sequential(Noisy(3, 2)))
    assert [(row.name, row.layer_type) for row in held.layers] == [("0.weight", "Noisy")]
    assert held.other_parameters == 2 + 6


def test_a_pruned_layer_is_reported_as_it_reads_its_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    prune.l1_unstructured(model[0], "weight", amount=12)
    held = report(model, torch.ones(1, 4))
    assert [(row.name, row.zeros) for row in held.layers] == [("0.weight", 12), ("1.weight", 0)]
    assert held.layers[0].sparse_multiply_adds == 4
    assert held.other_parameters == 8  # the biases: weight_orig is not counted again
    assert held.buffer_bytes == 16 * 4  # the mask


def test_a_parametrized_layer_is_reported_as_it_reads_its_weight():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    held = report(model, torch.ones(2, 4))
    row = held.layers[0]
    assert (row.name, row.weights, row.multiply_adds) == ("0.weight", 12, 24)
    assert held.other_parameters == 3


def test_pruned_recurrent_and_attention_layers():
    lstm = nn.LSTM(3, 2)
    prune.random_unstructured(lstm, "weight_ih_l0", amount=20)
    row = rows(lstm, torch.ones(5, 1, 3))["weight_ih_l0"]
    assert (row.weights, row.zeros, row.multiply_adds, row.sparse_multiply_adds) == (24, 20, 120, 20)
    attention = nn.MultiheadAttention(4, 2)
    prune.random_unstructured(attention.out_proj, "weight", amount=10)
    held = report(attention)
    assert {row.name: row.zeros for row in held.layers} == {"in_proj_weight": 0, "out_proj.weight": 10}
    assert held.other_parameters == 12 + 4


def test_a_weight_held_as_a_buffer_is_not_counted_twice():
    layer = nn.Linear(3, 2, bias=False)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    held = report(layer)
    assert (held.weights, held.buffer_bytes, held.bytes) == (6, 0, 24)


def test_a_model_without_layers_has_no_rows():
    for model in (nn.ReLU(), nn.BatchNorm1d(3), nn.Sequential()):
        held = report(model, torch.ones(2, 3))
        assert held.layers == ()
        assert held.sparsity == 0.0
        assert held.multiply_adds == 0
        assert str(held)
    assert report(nn.BatchNorm1d(3)).other_parameters == 6


def test_empty_weights_do_not_divide_by_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the empty tensor
        layer = nn.Linear(0, 3)
    row = report(layer, torch.ones(2, 0)).layers[0]
    assert (row.weights, row.sparsity, row.multiply_adds) == (0, 0.0, 0)


def test_lazy_layers_are_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that lazy modules are new
        model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    with pytest.raises(SparsebenchError, match=r"^1\.weight has no shape yet .*run the model once.*$") as error:
        report(model)
    assert "\n" not in str(error.value)
    model(torch.ones(1, 2))
    assert len(report(model).layers) == 2


def test_meta_tensors_are_refused_by_name():
    with pytest.raises(SparsebenchError, match=r"^weight is on the meta device"):
        report(nn.Linear(2, 2, device="meta"))


def test_something_other_than_a_module_is_refused():
    with pytest.raises(SparsebenchError, match=r"needs a torch\.nn\.Module, not dict"):
        report({"weight": torch.ones(2)})


def test_the_report_of_a_copy_is_equal():
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 2))
    assert report(copy.deepcopy(model)) == report(model)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    sparsity=st.floats(0, 1),
    batch=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_totals_are_sums_and_bounds_hold(sizes, sparsity, batch, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))).to(dtype)
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(1.0)[torch.rand(layer.weight.shape, generator=generator) < sparsity] = 0
    held = report(model, torch.ones(batch, sizes[0], dtype=dtype))
    for row in held.layers:
        assert row.zeros + row.nonzeros == row.weights
        assert row.multiply_adds == row.weights * batch
        assert row.sparse_multiply_adds == row.nonzeros * batch
        assert row.compressed_bytes <= row.bytes
    for total in ("weights", "zeros", "nonzeros", "multiply_adds", "sparse_multiply_adds"):
        assert getattr(held, total) == sum(getattr(row, total) for row in held.layers)
    assert held.weight_bytes == sum(row.bytes for row in held.layers)
    assert held.sparse_multiply_adds <= held.multiply_adds
    assert held.sparsity == held.zeros / held.weights
    assert held.parameters == sum(p.numel() for p in model.parameters())
    assert held.bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert held.compressed_bytes <= held.bytes


def test_hugging_face_conv1d_counts_like_the_linear_layer_it_is():
    class Conv1D(nn.Linear):
        """What matters is the name: transformers need not be installed."""

        def forward(self, x):
            return x @ self.weight + self.bias

    Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"
    layer = Conv1D(3, 4)
    layer.weight = nn.Parameter(torch.ones(3, 4))
    (row,) = report(nn.Sequential(layer), torch.ones(2, 5, 3)).layers
    assert (row.name, row.weights, row.multiply_adds) == ("0.weight", 12, 2 * 5 * 12)
