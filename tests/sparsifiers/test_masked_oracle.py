"""Magnitude pruning against a NumPy oracle, at every step of training runs."""

import numpy as np
import pytest
import torch
from masked_oracle import MagnitudePruning, cubic, dropped_count, erdos_renyi_kernel, update_steps
from masked_toys import classifier, train
from torch import nn

import sparsebench
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.sparsifiers.masked import masks

NAMES = ("convolution.weight", "hidden.weight", "head.weight")
STEPS = 500
BEGIN, END, FREQUENCY, SPARSITY = 37, 401, 50, 0.87


def layer_groups(allocation, shapes):
    """Who shares a budget, and how large it is, from the definition of each allocation."""
    if allocation == "global":
        return [(NAMES, SPARSITY)]
    if allocation == "uniform":
        sparsities = dict.fromkeys(NAMES, SPARSITY)
    elif allocation == "erdos-renyi-kernel":
        sparsities = erdos_renyi_kernel(shapes, SPARSITY)
    else:
        sparsities = {"convolution.weight": 0.0, "hidden.weight": SPARSITY, "head.weight": 0.5}
    return [((name,), sparsity) for name, sparsity in sparsities.items()]


def values(model):
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().float().numpy().copy() for name in NAMES}


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("policy", ["returning", "gone"])
@pytest.mark.parametrize(
    "allocation",
    ["uniform", "global", "erdos-renyi-kernel", {"convolution": 0.0, "head.*": 0.5}],
    ids=["uniform", "global", "erk", "map"],
)
def test_masks_and_weights_equal_the_oracle_s_at_every_step(allocation, policy, ties):
    model = classifier(memory_format=torch.channels_last)
    shapes = {name: value.shape for name, value in values(model).items()}
    oracle = MagnitudePruning(values(model), layer_groups(allocation, shapes), BEGIN, END, FREQUENCY, policy == "returning")
    sparsifier = sparsebench.magnitude_pruning(
        sparsity=SPARSITY, begin=BEGIN, end=END, frequency=FREQUENCY, allocation=allocation, policy=policy
    )
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.05)
    left_by_optimizer = {}
    generator = torch.Generator().manual_seed(0)

    def look(*_):
        # Registered before the sparsifier's hook: this is what the optimizer left.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ties and name in NAMES:
                    jitter = torch.randint(-1, 2, parameter.shape, generator=generator)
                    parameter.copy_(((parameter * 64).round() + jitter) / 64)
        left_by_optimizer.update(values(model))

    optimizer.register_step_post_hook(look)
    sparsifier.attach(optimizer)
    seen = {"ties": 0, "returned": 0, "zeros kept": 0}

    def compare(step):
        before = dict(oracle.masks)
        expected = oracle.after_step(step + 1, left_by_optimizer)
        held = sparsifier.masks()
        found = values(model)
        assert tuple(held) == NAMES
        for name in NAMES:
            assert np.array_equal(held[name].numpy(), oracle.masks[name]), f"mask of {name} after step {step + 1}"
            assert np.array_equal(found[name], expected[name]), f"{name} after step {step + 1}"
            seen["returned"] += int((oracle.masks[name] & ~before[name]).sum())
            seen["zeros kept"] += int(((found[name] == 0) & oracle.masks[name]).sum())
        if step + 1 in oracle.updates:
            seen["ties"] += sum(value.size - np.unique(np.abs(value)).size for value in left_by_optimizer.values())

    train(model, optimizer, range(STEPS), after=compare)
    assert model.convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert (seen["returned"] > 0) == (policy == "returning"), "the run must exercise what it is about"
    if ties:
        assert seen["ties"] > 1_000
        assert seen["zeros kept"] > 0


@pytest.mark.parametrize(("begin", "end", "frequency"), [(0, 10, 3), (0, 0, 1), (5, 5, 2), (2, 9, 100), (3, 12, 3), (1, 4, 1)])
@pytest.mark.parametrize("initial", [0.0, 0.3])
def test_sparsity_rises_along_the_cubic_and_ends_at_the_target_exactly(begin, end, frequency, initial):
    model = nn.Linear(23, 19)
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.9, begin=begin, end=end, frequency=frequency, initial_sparsity=initial)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    dropped = 0
    for step in range(15):
        if step:
            optimizer.step()
        if step in update_steps(begin, end, frequency):
            dropped = dropped_count(cubic(step, begin, end, 0.9, initial), 23 * 19)
        assert int((~sparsifier.masks()["weight"]).sum()) == dropped
        assert sparsifier.sparsity == pytest.approx(dropped / (23 * 19), abs=1e-12)
        assert sparsifier.step == step
    assert dropped == dropped_count(0.9, 23 * 19)


@pytest.mark.parametrize("policy", ["returning", "gone"])
@pytest.mark.parametrize(("sparsity", "dropped"), [(0.0, 0), (0.05, 1), (0.15, 2), (0.25, 3), (0.35, 4), (0.449, 4), (1.0, 10)])
def test_half_a_weight_is_rounded_up(policy, sparsity, dropped):
    model = nn.Linear(10, 1)
    sparsebench.magnitude_pruning(sparsity=sparsity, begin=0, end=0, frequency=1, policy=policy).prepare(model)
    assert int((model.weight == 0).sum()) == dropped


@pytest.mark.parametrize("sparsity", [0.1, 0.45, 0.5, 0.7, 0.9, 0.98])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_peers_row_19_the_target_is_absolute_and_reached_exactly(sparsity, allocation):
    # Ten updates: were the amount relative to what is left, or ties counted loosely, the end would be elsewhere.
    model = nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 13), nn.Linear(13, 3))
    with torch.no_grad():
        model[1].weight.copy_((model[1].weight * 10).round())
    sparsifier = sparsebench.magnitude_pruning(sparsity=sparsity, begin=0, end=9, frequency=1, allocation=allocation)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier.attach(optimizer)
    for _ in range(9):
        optimizer.step()
    sizes = {"0.weight": 77, "1.weight": 143, "2.weight": 39}
    counts = {name: int((~mask).sum()) for name, mask in sparsifier.masks().items()}
    if allocation == "uniform":
        assert counts == {name: dropped_count(sparsity, size) for name, size in sizes.items()}
    else:
        assert sum(counts.values()) == dropped_count(sparsity, 259)
    assert sparsifier.sparsity == pytest.approx(sum(counts.values()) / 259, abs=1e-12)
    assert next(sparsifier.points()).sparsity == sparsifier.sparsity


def test_peers_row_17_a_global_threshold_over_a_hundred_tensors_without_concatenating_them(monkeypatch):
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(9 + i % 7, 5 + i % 4) for i in range(100))
    scores = [layer.weight.detach().abs().numpy().copy() for layer in model]
    monkeypatch.setattr(masks, "FEW_CANDIDATES", 200)
    concatenated, cat = [], torch.cat
    monkeypatch.setattr(torch, "cat", lambda tensors: concatenated.append(sum(t.numel() for t in tensors)) or cat(tensors))
    sparsebench.magnitude_pruning(sparsity=0.83, begin=0, end=0, frequency=1, allocation="global").prepare(model)
    flat = np.concatenate([score.reshape(-1) for score in scores])
    threshold = np.sort(flat)[dropped_count(0.83, flat.size)]
    for layer, score in zip(model, scores, strict=True):
        np.testing.assert_array_equal(layer.weight.detach().numpy() != 0, score >= threshold)
    assert concatenated
    assert max(concatenated) <= 200


@pytest.mark.parametrize("structure", ["element", "block:2x3"])
@pytest.mark.parametrize("seed", [0, 11])
def test_random_pruning_drops_by_the_draws_of_each_update_and_never_gives_back(structure, seed):
    rows, columns, begin, end, frequency = 6, 9, 2, 11, 4
    model = nn.Linear(columns, rows)
    sparsifier = sparsebench.random_pruning(
        sparsity=0.7, begin=begin, end=end, frequency=frequency, structure=structure, seed=seed
    )
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    height, width = (2, 3) if structure == "block:2x3" else (1, 1)
    kept = {(row, column) for row in range(0, rows, height) for column in range(0, columns, width)}
    units = len(kept)
    for step in range(1, 15):
        optimizer.step()
        if step in update_steps(begin, end, frequency):
            draws = torch.rand(rows, columns, generator=keyed_generator(seed, step, "weight")).numpy()
            scores = {unit: draws[unit[0] : unit[0] + height, unit[1] : unit[1] + width].mean() for unit in kept}
            left = units - dropped_count(cubic(step, begin, end, 0.7, 0.0), units)
            kept = set(sorted(kept, key=scores.__getitem__, reverse=True)[:left])
        wanted = np.zeros((rows, columns), dtype=bool)
        for row, column in kept:
            wanted[row : row + height, column : column + width] = True
        assert np.array_equal(sparsifier.masks()["weight"].numpy(), wanted), f"after step {step}"
    assert len(kept) == units - dropped_count(0.7, units)
