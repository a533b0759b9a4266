"""Which layers get noisy weights, what that adds to them, and what is refused."""

import copy
import io
import pickle
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsebench import SparsebenchError, Sparsifier, l0_regularization, variational_dropout

METHODS = {"log_sigma2": variational_dropout, "log_alpha": l0_regularization}
both = pytest.mark.parametrize(("auxiliary", "method"), METHODS.items())


class Tied(nn.Module):
    """A language model whose embedding is its softmax."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.softmax = nn.Linear(4, 7)
        self.softmax.weight = self.embedding.weight

    def forward(self, tokens):
        return self.softmax(torch.relu(self.hidden(self.embedding(tokens))))


class Subclass(nn.Linear):
    pass


def network():
    return nn.Sequential(
        OrderedDict(
            convolution=nn.Conv2d(1, 2, 3),
            norm=nn.BatchNorm2d(2),
            flat=nn.Flatten(),
            body=nn.Sequential(nn.Linear(8, 5), nn.ReLU()),
            head=nn.Linear(5, 3, bias=False),
        )
    )


def auxiliary_names(model, auxiliary):
    return [name for name, _ in model.named_parameters() if name.endswith(auxiliary)]


@both
def test_is_a_sparsifier(auxiliary, method):
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(network())
    assert isinstance(sparsifier, Sparsifier)


@both
@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (nn.Linear(3, 2), torch.ones(2, 3)),
        (nn.Conv1d(3, 2, 2), torch.ones(2, 3, 4)),
        (nn.Conv2d(3, 2, 2, stride=2), torch.ones(2, 3, 4, 4)),
        (nn.Conv3d(3, 2, 2), torch.ones(2, 3, 4, 4, 4)),
        (nn.Embedding(3, 2), torch.ones(2).long()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_converted_layers_stay_what_they_were(auxiliary, method, layer, values):
    layer = copy.deepcopy(layer)
    kind, before, attributes = type(layer), copy.deepcopy(layer.state_dict()), dict(vars(layer))
    identities = {name: id(parameter) for name, parameter in layer.named_parameters()}
    method(penalty=1.0, layers="*").prepare(layer)
    assert isinstance(layer, kind)
    assert [name for name, _ in layer.named_parameters()] == [*before, auxiliary]
    for name, identity in identities.items():
        assert id(getattr(layer, name)) == identity
        assert torch.equal(getattr(layer, name), before[name])
    assert getattr(layer, auxiliary).shape == layer.weight.shape
    for name in ("in_features", "out_features", "stride", "padding_mode", "kernel_size", "groups", "num_embeddings"):
        if name in attributes:
            assert getattr(layer, name) == attributes[name]
    assert layer(input=values).isfinite().all()
    assert type(layer).__name__.endswith(kind.__name__)


def test_log_sigma2_starts_at_minus_ten():
    for arguments, expected in (({}, -10.0), ({"initial_log_sigma2": -7.5}, -7.5)):
        model = network()
        variational_dropout(penalty=1.0, **arguments).prepare(model)
        for name in auxiliary_names(model, "log_sigma2"):
            assert model.get_parameter(name).unique().tolist() == [expected]


@pytest.mark.parametrize(("arguments", "mean"), [({}, 2.197), ({"initial_log_alpha": -0.847}, -0.847)])
def test_log_alpha_starts_normal(arguments, mean):
    model = nn.Linear(200, 100)
    l0_regularization(penalty=1.0, **arguments).prepare(model)
    drawn = model.log_alpha.detach().double()
    assert float(drawn.mean()) == pytest.approx(mean, abs=4.5 * 0.01 / np.sqrt(drawn.numel()))
    assert float(drawn.std()) == pytest.approx(0.01, rel=0.03)
    assert drawn.unique().numel() > 100


def starts(seed=0, make=network):
    model = make()
    sparsifier = l0_regularization(penalty=1.0, seed=seed)
    sparsifier.prepare(model)
    return {name: model.get_parameter(name).detach().clone() for name in auxiliary_names(model, "log_alpha")}


def test_log_alpha_depends_on_its_seed_and_the_weights_name_only():
    torch.manual_seed(1)
    first = starts(seed=3)
    torch.manual_seed(2)
    again, other = starts(seed=3), starts(seed=4)
    for name, values in first.items():
        assert torch.equal(values, again[name])
        assert not torch.equal(values, other[name])
    # Two layers of one shape get different numbers.
    twins = starts(make=lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert not torch.equal(twins["0.log_alpha"], twins["1.log_alpha"])


def test_log_alpha_does_not_depend_on_memory_format_default_dtype_or_default_device():
    plain = starts(make=lambda: nn.Conv2d(4, 4, 3))["log_alpha"]
    last = starts(make=lambda: nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last))["log_alpha"]
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    model = nn.Conv2d(4, 4, 3)
    with torch.device("meta"):
        l0_regularization(penalty=1.0).prepare(model)
    assert torch.equal(model.log_alpha, plain)
    torch.set_default_dtype(torch.float64)
    try:
        model = nn.Conv2d(4, 4, 3, dtype=torch.float32)
        l0_regularization(penalty=1.0).prepare(model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(model.log_alpha, plain)


@both
def test_prepare_leaves_global_generators_alone(auxiliary, method):
    model = network()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    method(penalty=1.0).prepare(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


@both
@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["convolution", "body.0", "head"]),
        ("head", ["head"]),
        ("head.weight", ["head"]),
        (["body.*", "head"], ["body.0", "head"]),
        ("!head", ["convolution", "body.0"]),
        (["*", "!body*"], ["convolution", "head"]),
        (lambda name, module: isinstance(module, nn.Conv2d), ["convolution"]),
    ],
)
def test_layers_by_pattern_and_predicate(auxiliary, method, layers, expected):
    model = network()
    sparsifier = method(penalty=1.0, layers=layers)
    sparsifier.prepare(model)
    assert auxiliary_names(model, auxiliary) == [f"{name}.{auxiliary}" for name in expected]
    assert list(sparsifier.masks()) == [f"{name}.weight" for name in expected]
    for name, module in model.named_modules():
        if name not in expected:
            assert type(module) is type(network().get_submodule(name))


@both
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("haed", "'haed' matches no layer"),
        (["head", "!bdy*"], "'bdy\\*' matches no layer"),
        (["head", "!head"], "leaves no layer"),
    ],
)
def test_patterns_that_match_nothing_are_refused(auxiliary, method, layers, message):
    model = network()
    with pytest.raises(SparsebenchError, match=message):
        method(penalty=1.0, layers=layers).prepare(model)
    assert auxiliary_names(model, auxiliary) == []


@both
def test_a_model_with_nothing_to_convert_is_refused(auxiliary, method):
    with pytest.raises(SparsebenchError, match="Linear"):
        method(penalty=1.0).prepare(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))


@both
def test_embeddings_are_converted_when_named_or_tied_only(auxiliary, method):
    model = nn.ModuleDict({"table": nn.Embedding(3, 2), "head": nn.Linear(2, 2)})
    method(penalty=1.0).prepare(model)
    assert type(model["table"]) is nn.Embedding
    model = nn.ModuleDict({"table": nn.Embedding(3, 2), "head": nn.Linear(2, 2)})
    method(penalty=1.0, layers=["table", "head"]).prepare(model)
    assert auxiliary_names(model, auxiliary) == [f"table.{auxiliary}", f"head.{auxiliary}"]


@both
@pytest.mark.parametrize("left", [nn.LSTMCell(3, 3), nn.ConvTranspose2d(2, 2, 2), Subclass(3, 3), nn.Bilinear(2, 2, 2)])
def test_layers_of_other_types_stay_dense_with_a_warning_that_names_them(auxiliary, method, left):
    model = nn.ModuleDict({"left": copy.deepcopy(left), "head": nn.Linear(2, 2)})
    with pytest.warns(UserWarning, match=rf"left \({type(left).__name__}\)"):
        method(penalty=1.0).prepare(model)
    assert type(model["left"]) is type(left)
    assert auxiliary_names(model, auxiliary) == [f"head.{auxiliary}"]


@both
def test_a_subclass_cannot_be_chosen_by_name(auxiliary, method):
    model = nn.ModuleDict({"left": Subclass(3, 3), "head": nn.Linear(2, 2)})
    with pytest.raises(SparsebenchError, match="'left' matches no layer"):
        method(penalty=1.0, layers="left").prepare(model)


def transformer_parts():
    return {
        "MultiheadAttention": nn.MultiheadAttention(4, 2),
        "TransformerEncoderLayer": nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        "TransformerDecoderLayer": nn.TransformerDecoderLayer(4, 2, 8, batch_first=True),
        "TransformerEncoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1),
        "Transformer": nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
    }


@both
@pytest.mark.parametrize("kind", list(transformer_parts()))
def test_modules_that_read_weights_without_calling_layers_are_refused(auxiliary, method, kind):
    part = transformer_parts()[kind]
    for where, model in (
        ("'reader'", nn.ModuleDict({"reader": part, "head": nn.Linear(4, 2)})),
        ("'deep.reader'", nn.ModuleDict({"deep": nn.ModuleDict({"reader": part}), "head": nn.Linear(4, 2)})),
    ):
        before = [name for name, _ in model.named_parameters()]
        with pytest.raises(SparsebenchError, match=rf"{where} is a {kind}, which reads weights") as caught:
            method(penalty=1.0).prepare(model)
        assert "\n" not in str(caught.value)
        assert [name for name, _ in model.named_parameters()] == before
        assert type(model["head"]) is nn.Linear


@both
def test_a_bare_transformer_is_refused(auxiliary, method):
    with pytest.raises(SparsebenchError, match="the model is a Transformer, which reads weights"):
        method(penalty=1.0).prepare(nn.Transformer(4, 2, 1, 1, 8, batch_first=True))


@both
def test_a_subclass_of_a_weight_reader_is_refused(auxiliary, method):
    class Mine(nn.TransformerEncoderLayer):
        pass

    with pytest.raises(SparsebenchError, match="'0' is a Mine"):
        method(penalty=1.0).prepare(nn.Sequential(Mine(4, 2, 8, batch_first=True), nn.Linear(4, 2)))


@both
@pytest.mark.parametrize(
    "layers", ["!reader.*", "head", ["*", "!reader*"], lambda name, module: name == "head"], ids=["out", "in", "but", "predicate"]
)
def test_weight_readers_may_stay_when_their_layers_are_left_out(auxiliary, method, layers):
    model = nn.Sequential(
        OrderedDict(reader=nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), head=nn.Linear(4, 2))
    )
    sparsifier = method(penalty=1e-3, layers=layers)
    sparsifier.prepare(model)
    assert auxiliary_names(model, auxiliary) == [f"head.{auxiliary}"]
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(lr=0.1))
    sparsifier.attach(optimizer)
    (model(torch.ones(2, 3, 4)).sum() + sparsifier.penalty()).backward()
    optimizer.step()
    for point in sparsifier.points():
        with point, torch.no_grad():
            assert model.eval()(torch.ones(2, 3, 4)).isfinite().all()


@both
def test_attention_beside_chosen_layers_may_stay(auxiliary, method):
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 2)})
    method(penalty=1.0, layers="head").prepare(model)
    assert auxiliary_names(model, auxiliary) == [f"head.{auxiliary}"]


@both
def test_part_of_a_weight_reader_is_refused(auxiliary, method):
    model = nn.ModuleDict({"reader": nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)})
    with pytest.raises(SparsebenchError, match="'reader' is a TransformerEncoderLayer"):
        method(penalty=1.0, layers="!*linear1").prepare(model)


@both
@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"sparse": True}])
def test_embeddings_that_change_by_themselves_are_refused_and_the_model_stays_as_it_was(auxiliary, method, option):
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "table": nn.Embedding(3, 2, **option)})
    with pytest.raises(SparsebenchError, match=rf"'table' is an Embedding with {next(iter(option))}"):
        method(penalty=1.0, layers="*").prepare(model)
    assert type(model["first"]) is nn.Linear
    assert auxiliary_names(model, auxiliary) == []
    method(penalty=1.0).prepare(model)
    assert auxiliary_names(model, auxiliary) == [f"first.{auxiliary}"]


@both
def test_peers_row_21_tied_weights_count_once(auxiliary, method):
    model = Tied()
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(model)
    assert auxiliary_names(model, auxiliary) == [f"embedding.{auxiliary}", f"hidden.{auxiliary}"]
    assert getattr(model.embedding, auxiliary) is getattr(model.softmax, auxiliary)
    assert list(sparsifier.masks()) == ["embedding.weight", "hidden.weight"]
    alone = []
    for layer in (nn.Linear(4, 7), nn.Linear(4, 4)):
        other = method(penalty=1.0)
        other.prepare(layer)
        source = model.softmax if layer.out_features == 7 else model.hidden
        layer.load_state_dict(source.state_dict())
        alone.append(float(other.penalty().detach()))
    assert float(sparsifier.penalty().detach()) == pytest.approx(sum(alone), rel=1e-6)
    with torch.no_grad():
        model.embedding.weight.fill_(1.0)
        getattr(model.embedding, auxiliary)[:2] = 20.0 if auxiliary == "log_sigma2" else -20.0
        model.hidden.weight.fill_(1.0)
    assert sparsifier.sparsity == 8 / (28 + 16)
    groups = sparsifier.parameter_groups(lr=0.1)
    assert [len(group["params"]) for group in groups] == [4, 2]
    optimizer = torch.optim.SGD(groups)
    sparsifier.attach(optimizer)
    (model(torch.tensor([[1, 2]])).sum() + sparsifier.penalty()).backward()
    optimizer.step()
    assert sparsifier.finalize() is model
    assert model.softmax.weight is model.embedding.weight
    assert (type(model.embedding), type(model.softmax)) == (nn.Embedding, nn.Linear)


@both
@pytest.mark.parametrize("layers", ["softmax", "embedding"])
def test_naming_one_user_of_a_tied_weight_converts_both(auxiliary, method, layers):
    model = Tied()
    method(penalty=1.0, layers=layers).prepare(model)
    assert getattr(model.embedding, auxiliary) is getattr(model.softmax, auxiliary)
    model = Tied()
    method(penalty=1.0, layers=f"!{layers}").prepare(model)
    assert auxiliary_names(model, auxiliary) == [f"hidden.{auxiliary}"]


@both
def test_a_weight_shared_with_an_unconverted_layer_is_refused(auxiliary, method):
    model = nn.ModuleDict({"plain": nn.Linear(3, 3), "mine": Subclass(3, 3)})
    model["mine"].weight = model["plain"].weight
    with pytest.raises(SparsebenchError, match=r"'plain.weight' is also used by 'mine' \(Subclass\)"):
        method(penalty=1.0).prepare(model)
    assert type(model["plain"]) is nn.Linear
    assert auxiliary_names(model, auxiliary) == []


@both
def test_one_layer_used_twice_is_one_layer(auxiliary, method):
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(model)
    assert list(sparsifier.masks()) == ["0.weight"]
    assert model(torch.ones(2, 3)).shape == (2, 3)


@both
def test_frozen_weights_get_frozen_auxiliary_parameters(auxiliary, method):
    model = network()
    model.head.requires_grad_(False)
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(model)
    assert not getattr(model.head, auxiliary).requires_grad
    # Which need not be in the optimizer, as frozen weights need not.
    sparsifier.attach(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))


@both
def test_a_converted_model_is_not_converted_again(auxiliary, method):
    model = network()
    method(penalty=1.0).prepare(model)
    names = [name for name, _ in model.named_parameters()]
    for other in METHODS.values():
        with pytest.raises(SparsebenchError):
            other(penalty=1.0).prepare(model)
    assert [name for name, _ in model.named_parameters()] == names


@both
def test_forward_hooks_of_the_user_survive(auxiliary, method):
    model, calls = nn.Sequential(nn.Linear(3, 2)), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(model)
    model(torch.ones(1, 3))
    sparsifier.finalize()
    model(torch.ones(1, 3))
    assert len(calls) == 2


def trains(model, sparsifier, values):
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(lr=0.01))
    sparsifier.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        (model(values).square().mean() + sparsifier.penalty()).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@both
def test_peers_row_13_deepcopy_and_pickle(auxiliary, method):
    values = torch.randn(4, 1, 4, 4)
    model = network()
    sparsifier = method(penalty=1e-3)
    sparsifier.prepare(model)
    trains(model, sparsifier, values)
    buffer = io.BytesIO()
    torch.save((model, sparsifier), buffer)
    buffer.seek(0)
    pairs = [
        copy.deepcopy((model, sparsifier)),
        pickle.loads(pickle.dumps((model, sparsifier))),
        torch.load(buffer, weights_only=False),
    ]
    torch.manual_seed(0)
    expected = trains(model, sparsifier, values)
    for copied, its_sparsifier in pairs:
        assert copied is not model
        assert its_sparsifier.step == 2
        torch.manual_seed(0)
        found = trains(copied, its_sparsifier, values)
        assert its_sparsifier.step == 4
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert its_sparsifier.finalize() is copied
        assert type(copied.head) is nn.Linear
    assert sparsifier.step == 4
    assert auxiliary_names(model, auxiliary) != []


@both
def test_peers_row_20_any_module_and_any_loop(auxiliary, method):
    """Functional use of other parts, a loop without an epoch, LBFGS with its closure."""

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 4)])
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, values):
            for layer in self.encoder:
                values = F.gelu(layer(values)) * self.scale
            return {"loss": values.square().mean()}

    model = Custom()
    sparsifier = method(penalty=1e-4)
    sparsifier.prepare(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    sparsifier.attach(optimizer)
    values = torch.randn(5, 3)

    def closure():
        optimizer.zero_grad()
        loss = model(values)["loss"] + sparsifier.penalty()
        loss.backward()
        return loss

    for step in range(3):
        assert optimizer.step(closure).isfinite()
        assert sparsifier.step == step + 1
