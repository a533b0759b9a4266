"""Evaluation points: many sparse networks from one trained network, which stays as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from torch import nn

from sparsebench import SparsebenchError, l0_regularization, variational_dropout

METHODS = {"log_sigma2": variational_dropout, "log_alpha": l0_regularization}
both = pytest.mark.parametrize(("auxiliary", "method"), METHODS.items())
THRESHOLDS = (3.0, -4.0, -1.0, 0.0, 0.5, 1.0, 9.5, 15.0)


def plain_network():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


def prepared(auxiliary, **arguments):
    """A network whose auxiliary parameters lie widely spread, as after training."""
    torch.manual_seed(2)
    model = plain_network()
    if auxiliary == "log_sigma2":
        arguments = {"thresholds": THRESHOLDS} | arguments
    sparsifier = METHODS[auxiliary](penalty=1e-3, **arguments)
    sparsifier.prepare(model)
    with torch.no_grad():
        for index in (0, 3, 5):
            values = torch.randn(model[index].weight.shape) * 4.0 - 3.0
            if auxiliary == "log_alpha":
                values = torch.randn(model[index].weight.shape) * 3.0
            getattr(model[index], auxiliary).copy_(values)
    return model, sparsifier


def snapshot(model):
    return {name: (id(p), p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}


def assert_unchanged(model, before):
    for name, parameter in model.named_parameters():
        identity, address, values = before[name]
        assert id(parameter) == identity
        assert parameter.data_ptr() == address
        assert parameter.view(-1).view(torch.int32).equal(values.view(-1).view(torch.int32))


def expected_weight(layer, auxiliary, threshold):
    """In float64 by NumPy, and whether each weight is too near to the edge to tell in float32."""
    weight = layer.weight.detach().double().numpy()
    values = getattr(layer, auxiliary).detach().double().numpy()
    if auxiliary == "log_sigma2":
        ratio = values - np.log(weight**2 + 1e-8)
        return np.where(ratio >= threshold, 0.0, weight), np.abs(ratio - threshold) < 1e-4
    gate = np.clip(expit(values) * 1.2 - 0.1, 0.0, 1.0)
    return weight * gate, np.abs(expit(values) * 1.2 - 0.1) < 1e-6


@both
def test_each_point_is_the_thresholded_network(auxiliary, method):
    model, sparsifier = prepared(auxiliary)
    before = snapshot(model)
    values = torch.randn(5, 1, 4, 4)
    seen = []
    for point in sparsifier.points():
        expected = [expected_weight(model[index], auxiliary, point.threshold) for index in (0, 3, 5)]
        manual = plain_network()
        manual.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith(auxiliary)})
        with point as entered:
            assert entered is point
            zeros = 0
            for index, (weight, unclear) in zip((0, 3, 5), expected, strict=True):
                found = model[index].weight.detach()
                np.testing.assert_allclose(np.where(unclear, weight, found.numpy()), weight, rtol=3e-6, atol=1e-8)
                if auxiliary == "log_sigma2":
                    assert (np.where(unclear, weight, found.numpy()) == weight.astype(np.float32)).all()
                zeros += int((found == 0).sum())
                assert not (found[found == 0].signbit()).any()
                with torch.no_grad():
                    manual[index].weight.copy_(found)
            training = model.train()(values)
            assert torch.equal(training, model.eval()(values))
            assert torch.equal(training, manual(values))
            assert torch.equal(training, model.train()(values))
        assert point.sparsity == zeros / (36 + 512 + 24)
        assert_unchanged(model, before)
        seen.append((point.threshold, point.sparsity))
    assert [threshold for threshold, _ in seen] == (list(THRESHOLDS) if auxiliary == "log_sigma2" else [None])
    sparsities = [sparsity for _, sparsity in sorted(seen)]
    assert sparsities == sorted(sparsities, reverse=True)
    assert 0.05 < min(sparsities[:3]) < 1.0
    assert sparsifier.sparsity == seen[0][1]
    if auxiliary == "log_sigma2":
        assert len(set(sparsities)) == len(THRESHOLDS)


def test_log_alpha_is_not_clipped_in_evaluation():
    layer = nn.Linear(4, 1)
    sparsifier = variational_dropout(penalty=1.0, thresholds=(-12.0, 8.0, 8.5, 12.0))
    sparsifier.prepare(layer)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.log_sigma2.copy_(torch.tensor([[-14.0, -10.0, 10.0, 14.0]]))
    assert [point.sparsity for point in sparsifier.points()] == [0.75, 0.5, 0.5, 0.25]


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.lists(st.floats(-30.0, 30.0), min_size=1, max_size=6))
def test_sparsity_is_the_exact_fraction_and_falls_as_the_threshold_rises(seed, thresholds):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    sparsifier = variational_dropout(penalty=1.0, thresholds=thresholds)
    sparsifier.prepare(model)
    with torch.no_grad():
        for layer in model:
            layer.weight.normal_(generator=generator)
            layer.log_sigma2.normal_(0.0, 8.0, generator=generator)
    points = list(sparsifier.points())
    assert [point.threshold for point in points] == thresholds
    for point in points:
        masks = sparsifier.masks(point.threshold)
        dropped = sum(int((~mask).sum()) for mask in masks.values())
        assert point.sparsity == dropped / 25
    ordered = [point.sparsity for point in sorted(points, key=lambda point: point.threshold)]
    assert ordered == sorted(ordered, reverse=True)
    assert sparsifier.sparsity == points[0].sparsity


@both
def test_outside_points_means_are_used(auxiliary, method):
    model, _ = prepared(auxiliary)
    model.eval()
    manual = plain_network()
    manual.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith(auxiliary)})
    if auxiliary == "log_alpha":
        with torch.no_grad():
            for index in (0, 3, 5):
                manual[index].weight.copy_(torch.from_numpy(expected_weight(model[index], auxiliary, None)[0]))
    values = torch.randn(5, 1, 4, 4)
    torch.testing.assert_close(model(values), manual(values), rtol=1e-5, atol=1e-6)
    assert torch.equal(model(values), model(values))


@both
def test_points_may_be_kept_and_entered_again(auxiliary, method):
    model, sparsifier = prepared(auxiliary)
    before, values = snapshot(model), torch.randn(2, 1, 4, 4)
    points = list(sparsifier.points())
    outputs = []
    for point in [*points, *points]:
        with point:
            outputs.append(model(values))
    for first, second in zip(outputs[: len(points)], outputs[len(points) :], strict=True):
        assert torch.equal(first, second)
    assert_unchanged(model, before)


@both
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_points_work_without_gradients_and_training_goes_on(auxiliary, method, mode):
    model, sparsifier = prepared(auxiliary)
    before, values = snapshot(model), torch.randn(2, 1, 4, 4)
    with mode():
        for point in sparsifier.points():
            with point:
                model(values)
    for point in sparsifier.points():
        with point, mode():
            model(values)
    assert_unchanged(model, before)
    (model.train()(values).sum() + sparsifier.penalty()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@both
def test_nested_points_are_refused_and_the_outer_one_stays(auxiliary, method):
    model, sparsifier = prepared(auxiliary)
    before, values = snapshot(model), torch.randn(2, 1, 4, 4)
    outer, inner = next(sparsifier.points()), list(sparsifier.points())[-1]
    with outer:
        inside = model(values)
        for point in (inner, outer):
            with pytest.raises(SparsebenchError, match="inside an active evaluation point"), point:
                pass
        assert torch.equal(model(values), inside)
    assert_unchanged(model, before)
    with inner:
        model(values)


@both
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, StopIteration, SparsebenchError])
def test_an_error_inside_a_point_propagates_and_weights_are_restored(auxiliary, method, error):
    model, sparsifier = prepared(auxiliary)
    before = snapshot(model)
    raised = error("mine")

    def evaluate():
        for point in sparsifier.points():
            with point:
                model[0](torch.ones(1, 1, 4, 4))
                raise raised

    with pytest.raises(error) as caught:
        evaluate()
    assert caught.value is raised
    assert_unchanged(model, before)
    for point in sparsifier.points():
        with point:
            model(torch.ones(1, 1, 4, 4))


@both
def test_a_layer_that_is_passed_over_in_an_evaluation_is_named(auxiliary, method):
    model, sparsifier = prepared(auxiliary)
    before = snapshot(model)
    with pytest.raises(SparsebenchError, match="'3' did not run in this evaluation"), next(sparsifier.points()):
        model[5](model[0](torch.ones(1, 1, 4, 4)).flatten()[:8])
    assert_unchanged(model, before)
    # What ran in an earlier point does not count for the next.
    for run_all in (True, False):
        point = next(sparsifier.points())
        if run_all:
            with point:
                model(torch.ones(1, 1, 4, 4))
        else:
            with pytest.raises(SparsebenchError, match="'0' did not run in this evaluation"), point:
                model[3:](torch.ones(1, 64))


@both
def test_a_point_in_which_nothing_ran_is_no_error(auxiliary, method):
    model, sparsifier = prepared(auxiliary)
    for point in sparsifier.points():
        with point:
            assert int(model[0].weight.count_nonzero()) < 36


@both
def test_finalize_inside_a_point_is_refused(auxiliary, method):
    model, sparsifier = prepared(auxiliary)
    before = snapshot(model)
    with next(sparsifier.points()), pytest.raises(SparsebenchError, match=r"finalize\(\) inside an active evaluation point"):
        sparsifier.finalize()
    assert_unchanged(model, before)


@both
def test_masks_and_sparsity_say_what_a_point_keeps(auxiliary, method):
    model, sparsifier = prepared(auxiliary)
    for point in sparsifier.points():
        masks = sparsifier.masks(point.threshold)
        with point:
            for name, mask in masks.items():
                assert mask.dtype == torch.bool
                assert torch.equal(model.get_parameter(name) != 0, mask)


@both
def test_zeros_of_points_are_positive_even_where_a_kept_weight_is_a_negative_zero(auxiliary, method):
    layer = nn.Linear(3, 2)
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(layer)
    with torch.no_grad():
        layer.weight.fill_(-0.0)
        getattr(layer, auxiliary).fill_(-30.0 if auxiliary == "log_sigma2" else 5.0)
    assert all(mask.all() for mask in sparsifier.masks().values())
    with next(sparsifier.points()):
        assert not layer.weight.signbit().any()
    assert layer.weight.signbit().all()
    assert not sparsifier.finalize().weight.signbit().any()
