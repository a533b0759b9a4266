"""The integral of multiply-adds over a training, against sums by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sparsebench
from sparsebench.accounting import TrainingCost
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.methods import dense

STEPS, BATCH = 20, 4
# 9 positions of the convolution's output.
CONVOLUTION, LINEAR = 9 * 2 * 1 * 4, 18 * 5


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 5))


def trained(sparsifier):
    """The cost, and the masks that each step began with."""
    model = network()
    cost = TrainingCost.of(model, torch.ones(3, 1, 4, 4), examples=3)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(lr=0.1))
    sparsifier.attach(optimizer)
    before = []
    for step in range(STEPS):
        cost.add_step(sparsifier.training_work(), BATCH)
        before.append({name: float(mask.double().mean()) for name, mask in sparsifier.masks().items()})
        images = torch.randn(BATCH, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(images).square().sum() + sparsifier.penalty()).backward()
        optimizer.step()
    return cost, before


def test_dense_training_costs_one():
    cost, _ = trained(dense())
    assert cost.multiply_adds == cost.dense_multiply_adds == STEPS * BATCH * 3 * (CONVOLUTION + LINEAR)
    assert cost.relative == 1.0


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("policy", ["gone", "returning"])
def test_pruning_costs_what_its_masks_keep_at_every_step(allocation, policy):
    cost, before = trained(
        sparsebench.magnitude_pruning(sparsity=0.8, begin=3, end=15, frequency=4, allocation=allocation, policy=policy)
    )
    expected = sum(3 * BATCH * (CONVOLUTION * kept["0.weight"] + LINEAR * kept["3.weight"]) for kept in before)
    assert cost.multiply_adds == pytest.approx(expected, rel=1e-12)
    assert 0.3 < cost.relative < 0.9


def test_rigl_pays_for_dense_gradients_at_updates_and_set_does_not():
    """Evci et al. 2020, appendix H: 3 f_S a step, 2 f_S + f_D where masks move."""
    options = {"sparsity": 0.5, "begin": 0, "end": 16, "frequency": 4, "allocation": "uniform"}
    sparse, dense_step = 3 * 0.5, 2 * 0.5 + 1
    updates = 4
    for method, moved in ((sparsebench.rigl, dense_step), (sparsebench.set_training, sparse)):
        cost, _ = trained(method(**options))
        expected = ((STEPS - updates) * sparse + updates * moved) / (3 * STEPS)
        assert cost.relative == pytest.approx(expected, rel=1e-12)


def test_momentum_of_snfs_is_dense_at_every_step():
    cost, before = trained(sparsebench.snfs(sparsity=0.5, begin=0, end=16, frequency=4, allocation="uniform"))
    layers = {"0.weight": CONVOLUTION, "3.weight": LINEAR}
    expected = sum(BATCH * layers[name] * (2 * density + 1) for kept in before for name, density in kept.items())
    assert cost.multiply_adds == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("noise", "expected"), [("example", 2.0), ("position", 2.0), ("weight", 1.0)])
def test_variational_dropout_computes_means_and_variances(noise, expected):
    cost, _ = trained(sparsebench.variational_dropout(penalty=1e-4, noise=noise))
    assert cost.relative == expected


def test_l0_costs_what_dense_training_costs():
    cost, _ = trained(sparsebench.l0_regularization(penalty=1e-4))
    assert cost.relative == 1.0


def test_layers_left_out_are_dense():
    cost, _ = trained(sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=0, frequency=1, layers="3"))
    assert cost.relative == pytest.approx((CONVOLUTION + 0.5 * LINEAR) / (CONVOLUTION + LINEAR), rel=1e-12)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.0, 6.0), st.integers(1, 100)), max_size=10))
def test_sums_are_those_by_hand_and_go_on_where_they_were_saved(steps):
    cost = TrainingCost({"a": 10.0, "b": 5.0})
    assert cost.relative == 1.0
    for work, examples in steps:
        cost.add_step({"a": work}, examples)
        resumed = TrainingCost({"a": 10.0, "b": 5.0})
        resumed.load_state_dict(cost.state_dict())
        cost = resumed
    assert cost.multiply_adds == pytest.approx(sum(n * (10.0 * work + 15.0) for work, n in steps))
    assert cost.dense_multiply_adds == 45.0 * sum(n for _, n in steps)


def test_no_examples_is_one_clear_line():
    with pytest.raises(SparsebenchError, match="examples=0: expected"):
        TrainingCost.of(nn.Linear(2, 2), torch.ones(1, 2), examples=0)
