"""Recurrent layers and Hugging Face's Conv1D with noisy weights."""

import copy
import io
import pickle
import sys
import types

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from sparsebench import SparsebenchError, l0_regularization, variational_dropout
from sparsebench.sparsifiers.stochastic.l0 import evaluation_gate, sample_gate
from sparsebench.sparsifiers.stochastic.noise import normal_like

METHODS = {"log_sigma2": variational_dropout, "log_alpha": l0_regularization}
both = pytest.mark.parametrize(("auxiliary", "method"), METHODS.items())
kinds = pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])


def converted(method, layer, **options):
    sparsifier = method(penalty=1e-3, **options)
    sparsifier.prepare(layer)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "log_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) - 1.0)
    return sparsifier


@both
@kinds
def test_training_pass_is_the_ordinary_layer_with_weights_sampled_once(auxiliary, method, kind):
    """PEERS 15: recurrent layers break."""
    layer = kind(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    ordinary = copy.deepcopy(layer)
    converted(method, layer)
    values = torch.randn(2, 5, 3)
    torch.manual_seed(7)
    found, _ = layer(values)
    torch.manual_seed(7)
    weights = {}
    for name in layer._flat_weights_names:
        parameter = getattr(layer, name).detach()
        if name.startswith("weight"):
            extra = getattr(layer, auxiliary + name.removeprefix("weight")).detach()
            if method is variational_dropout:
                parameter = parameter + (0.5 * extra).exp() * normal_like(parameter)
            else:
                parameter = parameter * sample_gate(extra, torch.rand_like(extra))
        weights[name] = parameter
    expected, _ = functional_call(ordinary, weights, (values,))
    torch.testing.assert_close(found, expected)
    layer.eval()
    means = {
        name: value * (evaluation_gate(getattr(layer, "log_alpha" + name[6:])) if method is l0_regularization else 1.0)
        for name, value in ((name, getattr(layer, name)) for name in weights)
        if name.startswith("weight")
    }
    torch.testing.assert_close(layer(values)[0], functional_call(ordinary, means, (values,))[0])


@both
@kinds
def test_all_parameters_get_gradients_and_the_layer_keeps_its_own_weights(auxiliary, method, kind):
    layer = kind(3, 4)
    converted(method, layer)
    for _ in range(2):
        layer(torch.randn(5, 2, 3))[0].square().sum().backward()
    assert all(parameter.grad.count_nonzero() for parameter in layer.parameters())
    assert all(one is getattr(layer, name) for one, name in zip(layer._flat_weights, layer._flat_weights_names, strict=True))


@both
def test_points_and_finalize_fold_into_recurrent_weights(auxiliary, method):
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4), "head": nn.Linear(4, 2)})
    sparsifier = converted(method, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "log_" in name:
                parameter[: len(parameter) // 2] = 9.0 if method is variational_dropout else -9.0
    values = torch.randn(5, 2, 3)
    (point,) = sparsifier.points()
    with point:
        inside = model["head"](model["rnn"](values)[0])
        zeros = sum(int((value == 0).sum()) for name, value in model.named_parameters() if "weight" in name)
    masks = sparsifier.masks()
    assert set(masks) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "head.weight"}
    assert zeros == sum(int((~mask).sum()) for mask in masks.values()) > 50
    model = sparsifier.finalize()
    assert type(model["rnn"]) is nn.LSTM
    assert [name for name, _ in model["rnn"].named_parameters()] == [name for name, _ in nn.LSTM(3, 4).named_parameters()]
    assert torch.equal(model["head"](model["rnn"](values)[0]), inside)


@both
def test_one_weight_of_a_layer_alone_may_be_noisy(auxiliary, method):
    layer = nn.LSTM(3, 4)
    converted(method, layer, layers="weight_hh_l0")
    assert [name for name, _ in layer.named_parameters() if name.startswith(auxiliary)] == [f"{auxiliary}_hh_l0"]
    layer(torch.randn(5, 2, 3))[0].sum().backward()


@both
def test_packed_sequences_and_copies_work(auxiliary, method):
    layer = nn.GRU(3, 4)
    converted(method, layer)
    packed = pack_padded_sequence(torch.randn(5, 2, 3), [5, 3])
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    outputs = []
    for one in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        torch.manual_seed(0)
        outputs.append(one(packed)[0].data)
        assert type(one) is type(layer)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@both
def test_a_recurrent_layer_that_never_ran_is_named(auxiliary, method):
    model = nn.ModuleDict({"rnn": nn.GRU(3, 4), "head": nn.Linear(3, 2)})
    sparsifier = converted(method, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    (model["head"](torch.randn(2, 3)).sum() + sparsifier.penalty()).backward()
    with pytest.raises(SparsebenchError, match="'rnn' did not run"):
        optimizer.step()


@pytest.fixture
def conv1d(monkeypatch):
    """The real class where transformers is installed, else one that is like it."""
    try:
        from transformers.pytorch_utils import Conv1D
    except ImportError:

        class Conv1D(nn.Module):
            def __init__(self, nf, nx):
                super().__init__()
                self.nf, self.nx = nf, nx
                self.weight = nn.Parameter(torch.randn(nx, nf))
                self.bias = nn.Parameter(torch.randn(nf))

            def forward(self, x):
                return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.size()[:-1], self.nf)

        module = types.ModuleType("transformers.pytorch_utils")
        module.Conv1D = Conv1D
        monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", module)
    return Conv1D


@both
def test_hugging_face_conv1d_equals_the_linear_layer_of_the_transposed_weight(auxiliary, method, conv1d):
    layer, linear = conv1d(4, 3).double(), nn.Linear(3, 4).double()
    with torch.no_grad():
        layer.bias.normal_()
        linear.weight.copy_(layer.weight.t())
        linear.bias.copy_(layer.bias)
    converted(method, layer)
    converted(method, linear)
    with torch.no_grad():
        getattr(linear, auxiliary).copy_(getattr(layer, auxiliary).t())
    values = torch.randn(2, 5, 3, dtype=torch.float64)
    # Gates are drawn in the weight's own order: open ones make the layers alike.
    if method is l0_regularization:
        for one in (layer, linear):
            nn.init.constant_(one.log_alpha, 50.0)
    outputs = []
    for one in (layer, linear):
        torch.manual_seed(5)
        outputs.append(one(values))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(layer.weight.grad, linear.weight.grad.t())
    torch.testing.assert_close(getattr(layer, auxiliary).grad, getattr(linear, auxiliary).grad.t())


@both
def test_hugging_face_conv1d_is_copied_pickled_and_restored(auxiliary, method, conv1d):
    layer = conv1d(4, 3)
    sparsifier = converted(method, layer)
    copies = [copy.deepcopy(layer)]
    if conv1d.__qualname__ == "Conv1D":
        copies.append(pickle.loads(pickle.dumps(layer)))
    for one in copies:
        outputs = []
        for each in (layer, one):
            torch.manual_seed(0)
            outputs.append(each(torch.ones(2, 3)))
        assert torch.equal(*outputs)
    sparsifier.finalize()
    assert type(layer) is conv1d


def test_weight_noise_is_the_weight_plus_deviation_times_noise():
    layer = nn.Conv2d(2, 3, 3)
    converted(variational_dropout, layer, noise="weight")
    values = torch.randn(2, 2, 5, 5)
    torch.manual_seed(3)
    found = layer(values)
    torch.manual_seed(3)
    noisy = layer.weight + (0.5 * layer.log_sigma2).exp() * normal_like(layer.weight)
    torch.testing.assert_close(found, nn.functional.conv2d(values, noisy, layer.bias))
