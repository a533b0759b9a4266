"""Weights that do not train, layers that are replaced, copies that are not what they are taken for: said, or right."""

import copy
import re

import pytest
import torch
from torch import nn

import sparsebench
from sparsebench import SparsebenchError

METHODS = {
    "magnitude": lambda: sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=2, frequency=1),
    "rigl": lambda: sparsebench.rigl(sparsity=0.5, begin=1, end=4, frequency=1, allocation="uniform"),
    "snfs": lambda: sparsebench.snfs(sparsity=0.5, begin=1, end=4, frequency=1),
    "variational-dropout": lambda: sparsebench.variational_dropout(penalty=1e-3),
    "l0": lambda: sparsebench.l0_regularization(penalty=1e-3),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def step(model, sparsifier, optimizer):
    optimizer.zero_grad()
    loss = model(torch.linspace(-1, 1, 12).reshape(2, 6)).square().sum() + sparsifier.penalty()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("groups", ["parameter_groups", "trainable"])
@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_layer_need_not_be_in_the_optimizer(method, groups):
    model = network()
    model[0].requires_grad_(False)
    sparsifier = METHODS[method]()
    sparsifier.prepare(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(0.1) if groups == "parameter_groups" else trainable, 0.1)
    sparsifier.attach(optimizer)
    before = model[0].weight.detach().clone()
    for _ in range(3):
        step(model, sparsifier, optimizer)
    masks = sparsifier.masks()
    sparsifier.finalize()
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
    if method not in ("l0",):  # whose gates are part of what the weights are
        assert torch.equal(model[0].weight, before * masks["0.weight"])
    if method in ("magnitude", "rigl"):
        assert all(int(mask.sum()) == mask.numel() // 2 for mask in masks.values())


def test_what_trains_must_still_be_in_the_optimizer():
    model = network()
    sparsifier = METHODS["magnitude"]()
    sparsifier.prepare(model)
    with pytest.raises(SparsebenchError, match=r"^the optimizer does not hold '0\.weight'"):
        sparsifier.attach(torch.optim.SGD(model[2].parameters(), 0.1))


def test_a_layer_that_was_replaced_is_missed():
    model = network()
    sparsifier = METHODS["magnitude"]()
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier.attach(optimizer)
    sparsifier.state_dict()
    model[0] = nn.Linear(6, 8)
    message = r"^'0\.weight' is no longer in the model: its layer was replaced after prepare\(\), call it again$"
    for read in (sparsifier.state_dict, sparsifier.finalize, lambda: list(sparsifier.points())):
        with pytest.raises(SparsebenchError, match=message):
            read()


def test_weights_that_are_no_longer_tied_are_missed():
    model = nn.ModuleDict({"input": nn.Embedding(8, 6), "output": nn.Linear(6, 8, bias=False)})
    model["output"].weight = model["input"].weight
    sparsifier = METHODS["magnitude"]()
    sparsifier.prepare(model)
    sparsifier.state_dict()
    model["output"].weight = nn.Parameter(model["output"].weight.detach().clone())
    with pytest.raises(
        SparsebenchError, match=r"^'output' no longer has 'input\.weight', to which it was tied: call prepare\(\) again$"
    ):
        sparsifier.state_dict()


@pytest.mark.parametrize("method", ["variational-dropout", "l0"])
def test_a_sparsifier_that_is_prepared_again_lets_go_of_its_optimizer(method):
    first, second = network(), network()
    sparsifier = METHODS[method]()
    sparsifier.prepare(first)
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(0.1), 0.1)
    sparsifier.attach(optimizer)
    step(first, sparsifier, optimizer)
    sparsifier.prepare(second)
    first(torch.zeros(2, 6)).sum().backward()
    optimizer.step()
    assert sparsifier.step == 0


def test_a_copy_of_another_method_is_refused_and_stays_as_it_was():
    models = {method: network() for method in ("variational-dropout", "l0")}
    sparsifiers = {method: METHODS[method]() for method in models}
    for method, model in models.items():
        sparsifiers[method].prepare(model)
    for method, other in (("variational-dropout", "l0"), ("l0", "variational-dropout")):
        copied = copy.deepcopy(models[other])
        before = copy.deepcopy(copied.state_dict())
        with pytest.raises(
            SparsebenchError, match=r"^finalize_copy: the other model has no layer '0' of the type StochasticLinear with log_"
        ):
            sparsifiers[method].finalize_copy(copied)
        assert all(torch.equal(value, before[name]) for name, value in copied.state_dict().items())


def test_arguments_of_a_wrong_kind_are_one_line():
    with pytest.raises(SparsebenchError, match=r"^allocation: the pattern 0 is no text: write '0', in quotes$"):
        sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=1, frequency=1, allocation={0: 0.25})
    with pytest.raises(SparsebenchError, match=re.escape("snapshot=None: expected what copy.deepcopy(model.state_dict()) gave")):
        sparsebench.rewind(nn.Linear(2, 2), None, {"weight": torch.ones(2, 2, dtype=torch.bool)})


@pytest.mark.parametrize("sparsity", [0.4991, 0.5, 0.5009])
def test_a_sparsity_that_stands_for_a_pattern_is_the_pattern_s(sparsity):
    layer = nn.Linear(2_000, 2)
    sparsifier = sparsebench.magnitude_pruning(sparsity=sparsity, begin=0, end=0, frequency=1, structure="500:1000")
    sparsifier.prepare(layer)
    assert (layer.weight.reshape(2, 2, 1_000) != 0).sum(-1).unique().tolist() == [500]
