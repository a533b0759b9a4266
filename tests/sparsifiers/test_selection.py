"""Which weights become sparse."""

import warnings

import pytest
import torch
from masked_toys import Classifier, LanguageModel, classifier
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations, prune

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.layer_types import layer_types
from sparsebench.sparsifiers.methods import freeze_masks
from sparsebench.sparsifiers.selection import by_parameter, matrices_of, select_weights, warn_of_dense


def names(model, layers=None, **options):
    return [selected.name for selected in select_weights(model, layers, **options)]


LAYERS = {
    nn.Linear: (2, 3),
    nn.Conv1d: (2, 3, 2),
    nn.Conv2d: (2, 3, 2),
    nn.Conv3d: (2, 3, 2),
    nn.ConvTranspose1d: (2, 3, 2),
    nn.ConvTranspose2d: (2, 3, 2),
    nn.ConvTranspose3d: (2, 3, 2),
}


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_weights_of_linear_and_convolution_layers_are_chosen_and_biases_are_not(kind):
    model = nn.Sequential(kind(*LAYERS[kind]), nn.BatchNorm1d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.PReLU())
    assert names(model) == ["0.weight"]


def test_every_supported_type_is_tested():
    hugging_face = {kind for kind in layer_types() if kind.__module__ == "transformers.pytorch_utils"}
    attention = {nn.MultiheadAttention, NonDynamicallyQuantizableLinear}
    assert {*LAYERS, nn.Embedding, *RECURRENT, *attention} == set(layer_types()) - hugging_face


RECURRENT = {
    nn.RNN: ["weight_ih_l0", "weight_hh_l0"],
    nn.LSTM: ["weight_ih_l0", "weight_hh_l0"],
    nn.GRU: ["weight_ih_l0", "weight_hh_l0"],
    nn.RNNCell: ["weight_ih", "weight_hh"],
    nn.LSTMCell: ["weight_ih", "weight_hh"],
    nn.GRUCell: ["weight_ih", "weight_hh"],
}


@pytest.mark.parametrize("kind", RECURRENT, ids=lambda kind: kind.__name__)
def test_peers_row_15_weights_of_recurrent_layers_are_chosen_and_biases_are_not(kind):
    assert names(nn.Sequential(kind(2, 3))) == [f"0.{weight}" for weight in RECURRENT[kind]]


def test_all_weights_of_a_deep_bidirectional_projected_lstm_are_chosen():
    model = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)
    assert names(model) == [name for name, _ in model.named_parameters() if name.startswith("weight")]
    assert len(names(model)) == 12
    assert names(model, ["!*_hr_*", "!*_reverse"]) == ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]


def test_projections_of_attention_are_chosen_and_are_matrices_of_their_own():
    model = nn.Sequential(nn.MultiheadAttention(4, 2))
    selected = select_weights(model)
    assert [one.name for one in selected] == ["0.in_proj_weight", "0.out_proj.weight"]
    matrices = matrices_of(selected)
    packed = [f"0.in_proj_weight.{part}" for part in ("query", "key", "value")]
    assert [matrix.name for matrix in matrices] == [*packed, "0.out_proj.weight"]
    model[0].in_proj_weight.grad = torch.randn(12, 4)
    for index, matrix in enumerate(matrices[:3]):
        rows = slice(4 * index, 4 * index + 4)
        assert torch.equal(matrix.tensor, model[0].in_proj_weight[rows])
        assert matrix.tensor.data_ptr() == model[0].in_proj_weight[rows].data_ptr()
        assert torch.equal(matrix.gradient, model[0].in_proj_weight.grad[rows])
    joined = by_parameter(matrices, [matrix.tensor for matrix in matrices])
    assert all(torch.equal(joined[one.name], one.parameter) for one in selected)
    separate = nn.MultiheadAttention(4, 2, kdim=2, vdim=3)
    assert [matrix.name for matrix in matrices_of(select_weights(separate))] == [
        *(f"{part}_proj_weight" for part in "qkv"),
        "out_proj.weight",
    ]


def test_the_model_itself_may_be_a_layer():
    assert names(nn.Linear(2, 2)) == ["weight"]
    assert names(nn.Linear(2, 2), "weight") == ["weight"]


def test_peers_row_21_a_tied_weight_is_chosen_once():
    (tied, hidden) = select_weights(LanguageModel(tied=True))
    assert (tied.name, hidden.name) == ("embedding.weight", "hidden.weight")
    assert [holder.name for holder in tied.holders] == ["embedding", "head"]


def test_embeddings_are_chosen_only_where_tied_or_named():
    untied = LanguageModel(tied=False)
    assert names(untied) == ["hidden.weight", "head.weight"]
    assert names(untied, "embedding") == ["embedding.weight"]
    assert names(untied, ["embedding", "head"]) == ["embedding.weight", "head.weight"]
    assert names(untied, lambda name, module: isinstance(module, nn.Embedding)) == ["embedding.weight"]
    # Two embeddings that share their weight are still only looked up.
    shared = nn.ModuleDict({"source": nn.Embedding(5, 3), "target": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    shared["target"].weight = shared["source"].weight
    assert names(shared) == ["head.weight"]


def test_a_tied_weight_can_be_named_by_any_of_its_layers():
    for pattern in ("embedding", "head", "head.weight"):
        assert names(LanguageModel(tied=True), pattern) == ["embedding.weight"]


def test_a_module_used_twice_is_chosen_once():
    layer = nn.Linear(3, 3)
    assert names(nn.Sequential(layer, nn.ReLU(), layer)) == ["0.weight"]


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ("hidden", ["hidden.weight"]),
        ("hidden.weight", ["hidden.weight"]),
        ("h*", ["hidden.weight", "head.weight"]),
        (["head", "convolution"], ["convolution.weight", "head.weight"]),
        ("!head", ["convolution.weight", "hidden.weight"]),
        (["!head", "!conv*"], ["hidden.weight"]),
        (["h*", "!head"], ["hidden.weight"]),
        (("!head", "h*"), ["hidden.weight"]),
        (lambda name, module: name != "hidden" and isinstance(module, nn.Linear), ["head.weight"]),
    ],
)
def test_patterns_include_and_exclude(layers, chosen):
    assert names(classifier(), layers) == chosen


def test_excluding_one_user_of_a_tied_weight_excludes_it():
    assert names(LanguageModel(tied=True), "!head") == ["hidden.weight"]


@pytest.mark.parametrize("layers", ["encoder.*", "!encoder.*", ["hidden", "encoder.*"], ["hidden", "!encoder.*"]])
def test_a_pattern_that_matches_nothing_is_an_error_naming_it(layers):
    with pytest.raises(SparsebenchError, match=r"pattern 'encoder\.\*' matches no layer; the layers are 'convolution', 'hidden'"):
        select_weights(classifier(), layers)


@pytest.mark.parametrize("layers", ["normalization", "normalization.weight", "hidden.bias", ""])
def test_biases_and_normalizations_cannot_be_named(layers):
    with pytest.raises(SparsebenchError, match="matches no layer"):
        select_weights(classifier(), layers)


@pytest.mark.parametrize("layers", [["h*", "!h*"], lambda name, module: False])
def test_choosing_nothing_is_an_error(layers):
    with pytest.raises(SparsebenchError, match="leaves no layer to make sparse"):
        select_weights(classifier(), layers)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.LayerNorm(3), nn.Embedding(3, 2)], ids=repr)
def test_a_model_with_nothing_to_make_sparse_is_an_error(model):
    with pytest.raises(SparsebenchError, match="the model has no layer to make sparse: expected at least one of"):
        select_weights(model)


class MyLinear(nn.Linear):
    pass


@pytest.mark.parametrize(("other", "kind"), [(MyLinear(3, 3), "MyLinear"), (nn.Bilinear(2, 2, 2), "Bilinear")])
def test_layers_of_other_types_stay_dense_and_are_warned_about(other, kind):
    model = nn.ModuleDict({"known": nn.Linear(3, 3), "other": other})
    nn.init.zeros_(model["known"].weight[0].detach())
    with pytest.warns(UserWarning, match=rf"stay dense, their types are not supported: other \({kind}\)$"):
        freeze_masks(model)
    assert names(model) == ["known.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freeze_masks(model, "known")
    exact = rf"pattern 'other' matches no layer whose exact type is known \('other' is a {kind}\)"
    with pytest.raises(SparsebenchError, match=exact):
        names(model, "other")


def test_peers_row_20_a_subclassed_model_with_a_loop_of_its_own():
    class Wrapped(Classifier):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList([Classifier()])

    assert names(Wrapped(), "!head") == [
        "convolution.weight",
        "hidden.weight",
        "inner.0.convolution.weight",
        "inner.0.hidden.weight",
        "inner.0.head.weight",
    ]


def test_a_parameter_is_looked_up_when_used():
    model = nn.Sequential(nn.Linear(2, 2))
    (selected,) = select_weights(model)
    model.load_state_dict({"0.weight": torch.ones(2, 2), "0.bias": torch.zeros(2)}, assign=True)
    assert selected.parameter is model[0].weight


def test_layers_without_weights_yet_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(4))
    with pytest.raises(SparsebenchError, match=r"'1' \(LazyLinear\) has no weights yet: run the model once before prepare"):
        select_weights(model)
    model(torch.zeros(1, 3))
    assert names(model) == ["0.weight", "1.weight"]


def test_weights_computed_from_other_parameters_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    with pytest.raises(SparsebenchError, match="the weight of '1' is not a parameter but computed from others"):
        select_weights(model)
    assert names(model, "!1") == ["0.weight"]
    prune.remove(model[1], "weight")
    assert names(model) == ["0.weight", "1.weight"]
    parametrizations.weight_norm(model[1])
    assert names(model) == ["0.weight"]
    with pytest.warns(UserWarning, match=r"stay dense.*1\.parametrizations\.weight"):
        warn_of_dense(model, None)
