"""The end of a stochastic method: an ordinary network again."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from sparsebench import SparsebenchError, l0_regularization, variational_dropout

METHODS = {"log_sigma2": variational_dropout, "log_alpha": l0_regularization}
both = pytest.mark.parametrize(("auxiliary", "method"), METHODS.items())
KINDS = (nn.Embedding, nn.Conv1d, nn.ReLU, nn.Flatten, nn.Linear)


def plain_network():
    return nn.Sequential(nn.Embedding(6, 4), nn.Conv1d(4, 4, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


def trained(method, auxiliary, **arguments):
    torch.manual_seed(1)
    model = plain_network()
    sparsifier = method(penalty=1e-3, layers="*", **arguments)
    sparsifier.prepare(model)
    with torch.no_grad():
        for index in (0, 1, 4):
            getattr(model[index], auxiliary).add_(
                torch.randn(model[index].weight.shape) * 6.0 + (8.0 if auxiliary == "log_sigma2" else 0.0)
            )
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(lr=1e-3))
    sparsifier.attach(optimizer)
    tokens = torch.randint(6, (4, 4))
    (model(tokens).square().mean() + sparsifier.penalty()).backward()
    optimizer.step()
    return model, sparsifier, optimizer, tokens


@both
def test_finalize_gives_the_same_module_with_ordinary_layers(auxiliary, method):
    model, sparsifier, _, tokens = trained(method, auxiliary)
    masks, parameters = sparsifier.masks(), {name: id(p) for name, p in model.named_parameters()}
    (point,) = sparsifier.points()
    with point:
        inside = model(tokens)
        weights = {name: model.get_parameter(name).detach().clone() for name in masks}
    assert sparsifier.finalize() is model
    assert [type(layer) for layer in model] == list(KINDS)
    dense = plain_network()
    assert list(model.state_dict()) == list(dense.state_dict())
    for layer, fresh in zip(model, dense, strict=True):
        assert set(vars(layer)) == set(vars(fresh))
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert id(weight) == parameters[name]
        assert weight.requires_grad
        assert torch.equal(weight, weights[name])
        assert torch.equal(weight != 0, mask)
        assert 0 < int((~mask).sum()) < mask.numel()
        assert not weight.detach()[~mask].signbit().any()
    assert torch.equal(model.train()(tokens), inside)
    assert torch.equal(model.eval()(tokens), inside)


@both
def test_a_finalized_model_is_saved_copied_and_loaded_like_any_other(auxiliary, method):
    model, sparsifier, _, tokens = trained(method, auxiliary)
    sparsifier.finalize()
    expected = model(tokens)
    buffer, whole = io.BytesIO(), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    torch.save(model, whole)
    for stream in (buffer, whole):
        stream.seek(0)
    dense = plain_network()
    dense.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (dense, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(whole, weights_only=False)):
        assert torch.equal(other(tokens), expected)
    assert b"sparsebench" not in pickle.dumps(model)
    # And it may begin anew.
    other = method(penalty=1.0)
    other.prepare(model)
    assert auxiliary in dict(model[4].named_parameters())


def test_finalize_at_another_threshold():
    found = {}
    for threshold in (None, -5.0, 0.0, 3.0):
        model, sparsifier, _, tokens = trained(variational_dropout, "log_sigma2", thresholds=(3.0, 0.0))
        masks = sparsifier.masks(threshold)
        sparsifier.finalize(threshold)
        for name, mask in masks.items():
            assert torch.equal(model.get_parameter(name) != 0, mask)
        found[threshold] = sum(int((p == 0).sum()) for p in model.parameters())
        assert model(tokens).isfinite().all()
    assert found[None] == found[3.0]
    assert found[-5.0] > found[0.0] > found[3.0]


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf, True, "3"])
def test_a_threshold_that_is_no_number_is_refused(threshold):
    model, sparsifier, _, _ = trained(variational_dropout, "log_sigma2")
    before = model.state_dict()
    before = {name: values.clone() for name, values in before.items()}
    for call in (sparsifier.finalize, sparsifier.masks):
        with pytest.raises(SparsebenchError, match=f"threshold={threshold!r}: expected a finite number"):
            call(threshold)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_l0_has_no_threshold_to_choose():
    _, sparsifier, _, _ = trained(l0_regularization, "log_alpha")
    for call in (sparsifier.finalize, sparsifier.masks):
        with pytest.raises(SparsebenchError, match=r"threshold=2\.0: this method has no threshold"):
            call(2.0)
    sparsifier.finalize(None)


@both
def test_finalize_removes_the_hooks(auxiliary, method):
    model, sparsifier, optimizer, tokens = trained(method, auxiliary)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    sparsifier.finalize()
    assert len(optimizer._optimizer_step_post_hooks) == 0
    assert len(optimizer._optimizer_step_pre_hooks) == 0
    model(tokens).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert sparsifier.step == 1


@both
def test_finalize_leaves_layers_that_were_not_chosen_alone(auxiliary, method):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    sparsifier = method(penalty=1.0, layers="!2")
    sparsifier.prepare(model)
    before = {name: values.clone() for name, values in model.state_dict().items() if not name.startswith("0.")}
    nn.init.zeros_(model[0].weight)
    sparsifier.finalize()
    assert all(torch.equal(model.state_dict()[name], values) for name, values in before.items())


@both
def test_apply_masks_zeroes_another_model(auxiliary, method):
    _, sparsifier, _, _ = trained(method, auxiliary)
    masks = sparsifier.masks()
    average = plain_network()
    nn.init.constant_(average[0].weight, -math.inf)
    values = {name: p.detach().clone() for name, p in average.named_parameters()}
    sparsifier.apply_masks(average)
    for name, parameter in average.named_parameters():
        mask = masks.get(name, torch.ones_like(values[name], dtype=torch.bool))
        assert torch.equal(parameter, torch.where(mask, values[name], torch.zeros(())))
        assert not parameter.detach()[~mask].signbit().any()


@both
def test_apply_masks_refuses_another_network_and_leaves_it_alone(auxiliary, method):
    _, sparsifier, _, _ = trained(method, auxiliary)
    other = plain_network()
    other[4] = nn.Linear(11, 3)
    values = {name: p.detach().clone() for name, p in other.named_parameters()}
    with pytest.raises(SparsebenchError, match=r"no parameter '4\.weight' of shape \(3, 12\)"):
        sparsifier.apply_masks(other)
    assert all(torch.equal(p, values[name]) for name, p in other.named_parameters())
