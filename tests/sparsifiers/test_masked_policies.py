"""Policies "gone" and "returning", and random pruning."""

import itertools

import numpy as np
import pytest
import torch
from masked_toys import classifier, magnitude, matrices, train
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked import allocation, schedules, scores
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier


def masks_over_training(sparsifier, steps=14, model=None):
    model = matrices() if model is None else model
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.02)
    sparsifier.attach(optimizer)
    history = [sparsifier.masks()]
    train(model, optimizer, range(steps), (8, 8), after=lambda _: history.append(sparsifier.masks()))
    return history


def never_grows(history):
    return all(bool((later[name] <= earlier[name]).all()) for earlier, later in itertools.pairwise(history) for name in earlier)


def random(seed=0, **changes):
    return sparsebench.random_pruning(**{"sparsity": 0.8, "begin": 0, "end": 10, "frequency": 2, "seed": seed} | changes)


@pytest.mark.parametrize("allocation_name", ["uniform", "global", "erdos-renyi-kernel"])
def test_gone_masks_never_grow(allocation_name):
    assert never_grows(masks_over_training(magnitude(policy="gone", allocation=allocation_name, begin=0, frequency=1)))
    assert never_grows(masks_over_training(random(allocation=allocation_name)))


@pytest.mark.parametrize("policy", ["gone", "returning"])
@pytest.mark.parametrize("method", [magnitude, random])
def test_layers_that_end_with_less_than_the_initial_sparsity_never_have_more(method, policy):
    sparsities = {"0": 0.0, "2": 0.75}
    history = masks_over_training(method(sparsity=0.6, initial_sparsity=0.5, policy=policy, begin=0, allocation=sparsities))
    assert all(masks["0.weight"].all() for masks in history)
    dropped = [int((~masks["2.weight"]).sum()) for masks in history]
    assert dropped == sorted(dropped)
    assert (dropped[0], dropped[-1]) == (15, 23)  # of 30 weights, half and three quarters
    falling = MaskedSparsifier(scores.magnitude, allocation.Uniform(0.3), schedules.polynomial(0, 10, 2, initial=0.7), policy)
    for masks in masks_over_training(falling):
        assert all(int((~mask).sum()) == int(0.3 * mask.numel() + 0.5) for mask in masks.values())


@pytest.mark.parametrize("method", [magnitude, random])
def test_an_initial_sparsity_above_the_final_one_is_refused(method):
    with pytest.raises(SparsebenchError, match=r"^initial_sparsity=0.7: expected at most the final sparsity, 0.3$"):
        method(sparsity=0.3, initial_sparsity=0.7)


@pytest.mark.parametrize("worst", [-torch.inf, torch.finfo(torch.float32).min, 0.0])
def test_gone_masks_never_grow_when_kept_weights_score_as_low_as_can_be(worst):
    def first_are_dropped_then_all_are_worst(layer):
        position = torch.arange(layer.mask.numel(), dtype=torch.float32).reshape(layer.mask.shape)
        return position if layer.mask.all() else torch.full_like(position, worst)

    model = matrices()
    sparsifier = MaskedSparsifier(
        first_are_dropped_then_all_are_worst, allocation.Uniform(0.6), schedules.linear(1, 5, 1), "gone"
    )
    history = masks_over_training(sparsifier, 6, model)
    assert never_grows(history)
    assert all(int((~mask).sum()) == int(0.6 * mask.numel() + 0.5) for mask in history[-1].values())


def test_minus_infinity_is_the_lowest_score_of_weights_that_may_return():
    def logarithm(layer):
        return layer.weight.abs().log()

    model = matrices()
    with torch.no_grad():
        model[0].weight[:5] = 0.0
    MaskedSparsifier(logarithm, allocation.Uniform(0.5), schedules.one_shot(), "returning").prepare(model)
    assert bool((model[0].weight[:5] == 0).all())
    assert bool((model[0].weight[5:] != 0).all())


def test_random_pruning_by_default_is_cumulative_and_returning_draws_anew():
    assert never_grows(masks_over_training(random()))
    assert not never_grows(masks_over_training(random(policy="returning")))


def test_random_masks_depend_on_the_seed_alone():
    first, again, other = (masks_over_training(random(seed))[-1] for seed in (1, 1, 2))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_random_masks_differ_between_layers_and_between_steps():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    sparsifier = random(policy="returning", sparsity=0.5, initial_sparsity=0.5)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier.attach(optimizer)
    seen = [sparsifier.masks()]
    for step in range(4):
        optimizer.step()
        if step % 2:
            seen.append(sparsifier.masks())
    patterns = {mask.numpy().tobytes() for masks in seen for mask in masks.values()}
    assert len(patterns) == 6


def test_random_masks_do_not_depend_on_the_memory_format_nor_on_torch_s_generator():
    found = []
    for memory_format, seed in [(torch.contiguous_format, 0), (torch.channels_last, 99)]:
        model = classifier(memory_format=memory_format)
        torch.manual_seed(seed)
        random(begin=0, end=0, frequency=1).prepare(model)
        found.append({name: parameter.detach() != 0 for name, parameter in model.named_parameters() if parameter.dim() > 1})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("make", [random, magnitude])
def test_global_random_states_are_left_alone(make):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - it is the global state that is looked at
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    history = masks_over_training(make())
    assert len(history) == 15
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_peers_row_10_returning_keeps_dropped_values_and_gone_does_not():
    for policy, comes_back in [("returning", True), ("gone", False)]:
        model = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, initial_sparsity=0.5, begin=0, end=1, frequency=1, policy=policy)
        sparsifier.prepare(model)
        assert model.weight.tolist() == [[0.0, 0.0, 3.0, 4.0]]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        sparsifier.attach(optimizer)
        # The dropped weights get a gradient, which must not reach them; the third falls to 0.5, below the dropped second.
        model.weight.grad = torch.tensor([[7.0, 7.0, 2.5, 0.0]])
        optimizer.step()
        assert model.weight.tolist() == ([[0.0, 2.0, 0.0, 4.0]] if comes_back else [[0.0, 0.0, 0.5, 4.0]])


@pytest.mark.parametrize("policy", ["lost", "", None, ["gone"]])
def test_an_unknown_policy_is_an_error(policy):
    with pytest.raises(SparsebenchError, match=r"^policy=.*: expected 'gone' or 'returning'$"):
        magnitude(policy=policy)
