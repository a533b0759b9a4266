"""Given masks, rewinding and sparse re-initialization."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_oracle import dropped_count
from masked_toys import LanguageModel, classifier, dropped_weights_are_zero, loss_of, magnitude, train
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.training.config import resolve


def masks_of(model, sparsity=0.7, seed=0):
    return sparsebench.initialize_masks(model, sparsity=sparsity, score="random", seed=seed)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


@settings(max_examples=50)
@given(st.floats(0.0, 1.0), st.integers(0, 1000), st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_given_masks_are_held_exactly(sparsity, seed, memory_format):
    model = classifier(memory_format=memory_format)
    masks = masks_of(model, sparsity, seed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sparsifier = sparsebench.fixed_masks(masks)
    sparsifier.prepare(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), before[name] * masks[name] if name in masks else before[name])
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks().items())


def test_they_stay_through_training_and_resume_exactly():
    runs = []
    for split in (None, 6):
        model = classifier()
        sparsifier = sparsebench.fixed_masks(masks_of(model))
        sparsifier.prepare(model)
        optimizer = sgd(model)
        sparsifier.attach(optimizer)
        if split:
            train(model, optimizer, range(split))
            file = io.BytesIO()
            torch.save([model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()], file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            model = classifier(seed=8)
            sparsifier = sparsebench.fixed_masks(masks_of(model))
            sparsifier.prepare(model)
            optimizer = sgd(model)
            sparsifier.attach(optimizer)
            for part, state in zip((model, optimizer, sparsifier), saved, strict=True):
                part.load_state_dict(state)
        train(model, optimizer, range(split or 0, 12))
        assert dropped_weights_are_zero(model, sparsifier)
        runs.append(sparsifier.finalize().state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_only_the_layers_with_a_mask_are_sparse_embeddings_and_tied_weights_among_them():
    for tied, names in [(False, {"embedding.weight"}), (True, {"embedding.weight"}), (False, {"hidden.weight", "head.weight"})]:
        model = LanguageModel(tied=tied)
        masks = {name: torch.rand(model.state_dict()[name].shape) < 0.5 for name in names}
        sparsifier = sparsebench.fixed_masks(masks)
        sparsifier.prepare(model)
        assert set(sparsifier.masks()) == names
        assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks().items())


def test_names_with_brackets_are_names_and_the_masks_given_are_copied():
    model = nn.ModuleDict({"a[0]": nn.Linear(3, 3), "a0": nn.Linear(3, 3)})
    masks = {"a[0].weight": torch.eye(3, dtype=torch.bool), "a0.weight": ~torch.eye(3, dtype=torch.bool)}
    sparsifier = sparsebench.fixed_masks(masks)
    masks["a0.weight"].fill_(True)
    sparsifier.prepare(model)
    assert torch.equal(model["a[0]"].weight != 0, torch.eye(3, dtype=torch.bool))
    assert torch.equal(model["a0"].weight != 0, ~torch.eye(3, dtype=torch.bool))


@pytest.mark.parametrize("score", ["snip", "grasp", "synflow", "magnitude", "random"])
def test_masks_chosen_at_initialization_are_trained_with(score):
    model = classifier()
    masks = sparsebench.initialize_masks(model, lambda m, s: loss_of(m, s), [0, 1], sparsity=0.6, score=score)
    sparsifier = sparsebench.fixed_masks(masks)
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    sparsifier.attach(optimizer)
    first = float(loss_of(model, 0).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model, 0).backward()
        optimizer.step()
    assert float(loss_of(model, 0).detach()) < 0.5 * first
    assert sum(int((~mask).sum()) for mask in sparsifier.masks().values()) == dropped_count(0.6, 876)


BAD = [
    ({"hidden.weight": torch.ones(12, 64)}, r"masks\['hidden.weight'\]: expected a bool tensor, .* got torch.float32"),
    ({"hidden.weight": [True]}, r"masks\['hidden.weight'\]: expected a bool tensor, .* got list"),
    ({}, "masks={}: expected bool tensors by parameter name"),
    (None, "masks=None: expected bool tensors by parameter name"),
    (
        {"head.weight": torch.ones(3, 13, dtype=torch.bool)},
        r"masks\['head.weight'\] has the shape \(3, 13\), the weight \(3, 12\)",
    ),
    (
        {"head.weight": torch.ones(3, 12, dtype=torch.bool), "tail.weight": torch.ones(3, 12, dtype=torch.bool)},
        "masks: the model has no weight 'tail.weight' to make sparse; it has head.weight",
    ),
    ({"tail.weight": torch.ones(3, dtype=torch.bool)}, "layers=those of the masks tail.weight leaves no layer to make sparse"),
    (
        {"head.bias": torch.ones(3, dtype=torch.bool)},
        "masks: the model has no weight 'head.bias' to make sparse; it has head.weight",
    ),
]


@pytest.mark.parametrize(("masks", "message"), BAD)
def test_masks_that_do_not_fit_are_refused_and_change_nothing(masks, message):
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    for use in (
        lambda: sparsebench.fixed_masks(masks).prepare(model),
        lambda: sparsebench.rewind(model, copy.deepcopy(classifier(seed=1).state_dict()), masks),
        lambda: sparsebench.reinitialize(model, masks),
    ):
        with pytest.raises(SparsebenchError, match="^" + message):
            use()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Rewinding


@pytest.mark.parametrize("saved_at", [0, 5])
def test_peers_row_14_rewound_weights_equal_the_saved_ones(saved_at):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    sparsifier = magnitude()
    sparsifier.prepare(model)
    optimizer = sgd(model)
    sparsifier.attach(optimizer)
    parameters = [id(parameter) for parameter in model.parameters()]
    train(model, optimizer, range(saved_at))
    snapshot = copy.deepcopy(model.state_dict())
    train(model, optimizer, range(saved_at, 14))
    masks = sparsifier.masks()
    sparsifier.finalize()
    assert not torch.equal(model[4].weight, snapshot["4.weight"])
    sparsebench.rewind(model, snapshot, masks)
    for name, value in model.state_dict().items():
        assert torch.equal(value, snapshot[name] * masks[name] if name in masks else snapshot[name]), name
    assert [id(parameter) for parameter in model.parameters()] == parameters
    ticket = sparsebench.fixed_masks(masks)
    ticket.prepare(model)
    optimizer = sgd(model)
    ticket.attach(optimizer)
    train(model, optimizer, range(5))
    assert all(torch.equal(mask, masks[name]) for name, mask in ticket.masks().items())
    assert bool((model[4].weight.detach()[masks["4.weight"]] != snapshot["4.weight"][masks["4.weight"]]).any())
    assert dropped_weights_are_zero(model, ticket)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda s: {n: v for n, v in s.items() if n != "head.bias"},
            "snapshot: 'head.bias' is in the model and not in the snapshot",
        ),
        (lambda s: s | {"tail": torch.zeros(1)}, "snapshot: 'tail' is in the snapshot and not in the model"),
        (lambda s: s | {"head.bias": torch.zeros(4)}, r"snapshot\['head.bias'\] has the shape \(4,\), the model's is \(3,\)"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused_and_changes_nothing(damage, message):
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SparsebenchError, match="^" + message):
        sparsebench.rewind(model, damage(copy.deepcopy(classifier(seed=1).state_dict())), masks_of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_snapshot_that_was_never_copied_is_refused():
    model = classifier()
    snapshot = model.state_dict()
    optimizer = sgd(model)
    train(model, optimizer, range(2))
    with pytest.raises(SparsebenchError, match=r"is the model's own memory and has changed with it: keep copy.deepcopy"):
        sparsebench.rewind(model, snapshot, masks_of(model))


# Re-initialization


def test_each_kept_weight_is_drawn_for_the_inputs_that_its_output_has():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.Flatten(), nn.Linear(7, 5)).to(
        memory_format=torch.channels_last
    )
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(parameter.shape, generator=generator) < 0.4
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }
    masks["3.weight"][2] = False  # an output without inputs
    biases = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.dim() == 1}
    sparsebench.reinitialize(model, masks, gain=1.5, seed=3)
    for name, mask in masks.items():
        drawn = torch.randn(mask.shape, generator=keyed_generator(3, "reinitialize", name)).numpy()
        expected = np.zeros(mask.shape, dtype=np.float32)
        for index in np.argwhere(mask.numpy()):
            if name == "1.weight":  # [in, out / groups, ...]: the inputs of an output are those of its group
                group = index[0] // 3
                inputs = int(mask[3 * group : 3 * group + 3, index[1]].sum())
            else:
                inputs = int(mask[index[0]].sum())
            expected[tuple(index)] = drawn[tuple(index)] * 1.5 / np.sqrt(inputs)
        found = dict(model.named_parameters())[name].detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert ((found != 0) == mask.numpy()).all()
    for name, value in biases.items():
        assert torch.equal(dict(model.named_parameters())[name].detach(), value)
    again = copy.deepcopy(model)
    sparsebench.reinitialize(again, masks, gain=1.5, seed=4)
    assert not torch.equal(again[3].weight, model[3].weight)


def test_signals_keep_their_size_through_a_sparse_network():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(400, 400, bias=False), nn.ReLU())))
    masks = masks_of(model, 0.95)
    inputs, sizes = torch.randn(64, 400), {}
    for name in ("dense", "sparse"):
        sparsebench.fixed_masks(masks).prepare(model)
        if name == "sparse":
            sparsebench.reinitialize(model, masks)
        with torch.no_grad():
            sizes[name] = float(model(inputs).square().mean())
    assert 0.2 < sizes["sparse"] < 3.0
    assert sizes["dense"] < 1e-6


@pytest.mark.parametrize("gain", [0.0, -1.0, float("nan"), float("inf"), "2", True])
def test_a_gain_out_of_range_is_refused(gain):
    model = nn.Linear(3, 3)
    with pytest.raises(SparsebenchError, match=r"^gain=.*: expected a number above 0"):
        sparsebench.reinitialize(model, {"weight": torch.ones(3, 3, dtype=torch.bool)}, gain=gain)


# One shot


@pytest.mark.parametrize("step", [0, 4])
def test_one_shot_pruning_drops_the_smallest_weights_of_all_layers_once(step):
    model = classifier()
    sparsifier = sparsebench.one_shot_pruning(sparsity=0.75, step=step)
    sparsifier.prepare(model)
    reference = classifier()
    optimizer, plain = sgd(model), sgd(reference)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(step))
    train(reference, plain, range(step))
    weights = torch.cat([p.detach().flatten() for p in reference.parameters() if p.dim() > 1])
    threshold = weights.abs().sort().values[dropped_count(0.75, weights.numel())]
    masks = sparsifier.masks()
    for name, mask in masks.items():
        assert torch.equal(mask, dict(reference.named_parameters())[name].detach().abs() >= threshold)
    train(model, optimizer, range(step, step + 5))
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks().items())


def test_one_shot_pruning_is_a_named_method():
    config = resolve("digits", "magnitude-one-shot", {"sparsity": 0.9})
    assert config.parameters["step"] == config.recipe.steps // 2
