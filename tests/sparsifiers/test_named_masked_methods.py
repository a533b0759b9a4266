"""The masks that the named methods choose at once, each against NumPy: that a name means what its summary says."""

import inspect
import math

import numpy as np
import pytest
import torch
from masked_oracle import dropped_count, erdos_renyi_kernel, highest
from masked_toys import batch, classifier

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.sparsifiers.masked.initial_scores import GraSP
from sparsebench.sparsifiers.registry import METHODS

SPARSITY, SEED = 0.7, 4
NAMES = ("convolution.weight", "hidden.weight", "head.weight")
AT_ONCE = {"begin": 0, "end": 0, "frequency": 1}
UNTIL_LATER = {"begin": 10, "end": 20, "frequency": 5}


def magnitudes(weights):
    return {name: np.abs(weight) for name, weight in weights.items()}


def draws(weights):
    """The uniform numbers that belong to the seed, step 0 and a layer."""
    return {name: torch.rand(weight.shape, generator=keyed_generator(SEED, 0, name)).numpy() for name, weight in weights.items()}


def each(scores, sparsities):
    """The highest of every layer."""
    return {name: highest([score], score.size - dropped_count(sparsities[name], score.size))[0] for name, score in scores.items()}


def uniform(scores):
    return each(scores, dict.fromkeys(scores, SPARSITY))


def erk(scores):
    return each(scores, erdos_renyi_kernel({name: score.shape for name, score in scores.items()}, SPARSITY))


def one_ranking(scores):
    sizes = sum(score.size for score in scores.values())
    return dict(zip(scores, highest(list(scores.values()), sizes - dropped_count(SPARSITY, sizes)), strict=True))


def channels(scores):
    """Whole outputs, by the mean score of their weights."""
    masks = {}
    for name, score in scores.items():
        means = np.array([row.astype(np.float64).mean() for row in score])
        kept = highest([means], means.size - dropped_count(SPARSITY, means.size))[0]
        masks[name] = np.broadcast_to(kept.reshape(-1, *[1] * (score.ndim - 1)), score.shape)
    return masks


class FirstBatches:
    """What a run gives the methods that look at its first batches."""

    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def batches(self, count):
        return (batch(step) for step in range(count))


def first_masks(score, batches=1, **options):
    """`initialize_masks`, which has oracles of its own, on a network of the same weights."""

    def choose(_):
        begun = FirstBatches()
        model = classifier(seed=2)
        masks = sparsebench.initialize_masks(
            model, begun.loss, begun.batches(batches), sparsity=SPARSITY, score=score, seed=SEED, **options
        )
        return {name: mask.numpy() for name, mask in masks.items()}

    return choose


def nothing(weights):
    return weights


BEGUN = {"beginning": FirstBatches(), "seed": SEED}
CASES = {
    "snip": (BEGUN | {"batches": 3}, nothing, first_masks("snip", 3)),
    "grasp": (BEGUN | {"temperature": 2.0}, nothing, first_masks(GraSP(2.0))),
    "synflow": (BEGUN | {"rounds": 7}, nothing, first_masks("synflow", rounds=7)),
    "random": (AT_ONCE | {"seed": SEED}, draws, uniform),
    "magnitude": (AT_ONCE, magnitudes, uniform),
    "magnitude-global": (AT_ONCE, magnitudes, one_ranking),
    "magnitude-erk": (AT_ONCE, magnitudes, erk),
    "magnitude-structured": (AT_ONCE | {"structure": "channel"}, magnitudes, channels),
    "random-structured": (AT_ONCE | {"structure": "element", "seed": SEED}, draws, uniform),
    "magnitude-one-shot": ({"step": 0}, magnitudes, one_ranking),
    "static": ({"seed": SEED}, draws, erk),
    "set": (UNTIL_LATER | {"seed": SEED}, draws, erk),
    "rigl": (UNTIL_LATER | {"seed": SEED}, draws, erk),
    "snfs": (UNTIL_LATER | {"seed": SEED}, draws, uniform),
}


def test_every_masked_method_has_a_case():
    functions = {method.name: getattr(method.build, "func", method.build) for method in METHODS}
    modules = {name: function.__module__ for name, function in functions.items()}
    # Methods that go on from a trained network hold its masks; tests/training has theirs.
    built_in = {
        name for name, module in modules.items() if module.startswith("sparsebench.") and not module.endswith("inherited")
    }
    assert built_in - {"dense", "variational-dropout", "l0"} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_first_masks_of_a_named_method_are_those_of_numpy(name):
    arguments, scores, choose = CASES[name]
    model = classifier(seed=2)
    weights = {n: p.detach().numpy().copy() for n, p in model.named_parameters() if n in NAMES}
    sparsifier = METHODS.get(name).build(sparsity=SPARSITY, **arguments)
    sparsifier.prepare(model)
    expected = choose(scores(weights))
    found = sparsifier.masks()
    assert tuple(found) == NAMES
    for layer in NAMES:
        np.testing.assert_array_equal(found[layer].numpy(), expected[layer], err_msg=layer)
    assert 0 < sparsifier.sparsity < 1


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
@pytest.mark.parametrize(("argument", "value"), [("rounds", 0), ("rounds", True), ("batches", 0), ("batches", 1.5)])
def test_numbers_of_batches_and_rounds_are_checked_before_anything_is_looked_at(name, argument, value):
    if argument in inspect.signature(METHODS.get(name).build).parameters:
        with pytest.raises(SparsebenchError, match=rf"^{argument}={value!r}: expected an integer of at least 1$"):
            METHODS.get(name).build(None, sparsity=0.5, **{argument: value})


def test_the_lot_falls_on_every_weight_alike():
    """Each weight, and each pair of neighbours, is kept as often as in draws without replacement."""
    trials, units, kept = 800, 20, 6
    masks = np.empty((trials, units), dtype=bool)
    for seed in range(trials):
        model = torch.nn.Linear(5, 4)
        sparsebench.random_pruning(sparsity=SPARSITY, **AT_ONCE, seed=seed).prepare(model)
        masks[seed] = (model.weight != 0).numpy().reshape(-1)
    assert (masks.sum(axis=1) == kept).all()
    for found, share in [
        (masks.sum(axis=0), kept / units),
        ((masks & np.roll(masks, 1, axis=1)).sum(axis=0), kept / units * (kept - 1) / (units - 1)),
    ]:
        assert np.abs(found - trials * share).max() < 4.5 * math.sqrt(trials * share * (1 - share))
        assert found.std() > 0.4 * math.sqrt(trials * share * (1 - share)), "a draw, not a rota"
