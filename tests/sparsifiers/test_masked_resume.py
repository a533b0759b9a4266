"""Saved states: a run that is stopped and resumed equals one that was not, and a state that does not fit is refused."""

import copy
import io
import math

import pytest
import torch
from masked_toys import classifier, dropped_weights_are_zero, loss_of, magnitude, train
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.dense import DenseBaseline
from sparsebench.sparsifiers.masked import allocation, schedules, scores
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier

STEPS = 22
SPLITS = torch.randperm(STEPS - 1, generator=torch.Generator().manual_seed(7))[:4].add(1).sort().values.tolist()
METHODS = {
    "magnitude-returning": lambda: magnitude(end=18),
    "magnitude-gone-global": lambda: magnitude(end=18, policy="gone", allocation="global"),
    "random-gone-from-0": lambda: sparsebench.random_pruning(
        sparsity=0.7, begin=0, end=18, frequency=2, initial_sparsity=0.2, seed=3
    ),
    "random-returning-erk": lambda: sparsebench.random_pruning(
        sparsity=0.7, begin=3, end=18, frequency=2, allocation="erdos-renyi-kernel", policy="returning"
    ),
}
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, amsgrad=True),
    "Rprop": lambda parameters: torch.optim.Rprop(parameters, lr=0.02),
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=2),
}


def run(model, optimizer, steps):
    if not isinstance(optimizer, torch.optim.LBFGS):
        return train(model, optimizer, steps)
    for step in steps:

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        optimizer.step(closure)
    return None


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def everything(model, optimizer, sparsifier):
    return copy.deepcopy(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "sparsifier": sparsifier.state_dict()}
    )


def assert_identical(first, second, path=""):
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert list(first) == list(second), path
        for key in first:
            assert_identical(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for position, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_identical(one, other, f"{path}[{position}]")
    else:
        assert first == second, path


def new_run(method, optimizer_name, memory_format=torch.contiguous_format):
    model = classifier(memory_format=memory_format)
    sparsifier = METHODS[method]()
    sparsifier.prepare(model)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    sparsifier.attach(optimizer)
    return model, optimizer, sparsifier


def resumed(saved, method, optimizer_name, order):
    """A run rebuilt from nothing but code and a file, its parts taken up in the given order."""
    model = classifier(seed=99)
    sparsifier = METHODS[method]()
    sparsifier.prepare(model)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    steps = {
        "attach": lambda: sparsifier.attach(optimizer),
        "model": lambda: model.load_state_dict(saved["model"]),
        "optimizer": lambda: optimizer.load_state_dict(saved["optimizer"]),
        "sparsifier": lambda: sparsifier.load_state_dict(saved["sparsifier"]),
    }
    for part in order:
        steps[part]()
    return model, optimizer, sparsifier


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_peers_row_7_a_resumed_run_is_bit_identical(method, optimizer_name):
    uninterrupted = new_run(method, optimizer_name)
    saved = {}
    for step in range(STEPS):
        if step in SPLITS:
            saved[step] = through_a_file(everything(*uninterrupted))
        run(uninterrupted[0], uninterrupted[1], [step])
    expected = everything(*uninterrupted)
    for split in SPLITS:
        again = resumed(saved[split], method, optimizer_name, ["attach", "model", "optimizer", "sparsifier"])
        assert again[2].step == split
        assert_identical(everything(*again), saved[split])
        run(again[0], again[1], range(split, STEPS))
        assert_identical(everything(*again), expected)
        assert again[2].sparsity == uninterrupted[2].sparsity


@pytest.mark.parametrize(
    "order",
    [
        ["sparsifier", "model", "optimizer", "attach"],
        ["model", "optimizer", "attach", "sparsifier"],
        ["optimizer", "sparsifier", "attach", "model"],
    ],
    ids="-".join,
)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_the_order_of_loading_does_not_matter(order, optimizer_name):
    # The masks that prepare() makes at step 0 are others than the saved ones: they must leave no trace.
    method = "random-gone-from-0"
    uninterrupted = new_run(method, optimizer_name)
    run(uninterrupted[0], uninterrupted[1], range(9))
    saved = through_a_file(everything(*uninterrupted))
    run(uninterrupted[0], uninterrupted[1], range(9, STEPS))
    again = resumed(saved, method, optimizer_name, order)
    run(again[0], again[1], range(9, STEPS))
    assert_identical(everything(*again), everything(*uninterrupted))


def test_peers_row_4_masks_schedule_and_counter_are_one_state():
    model, optimizer, sparsifier = new_run("magnitude-returning", "SGD")
    run(model, optimizer, range(13))
    sparsity, masks = sparsifier.sparsity, sparsifier.masks()
    assert 0.5 < sparsity < 0.8
    again = resumed(
        through_a_file(everything(model, optimizer, sparsifier)),
        "magnitude-returning",
        "SGD",
        ["attach", "model", "optimizer", "sparsifier"],
    )
    assert again[2].sparsity == sparsity
    assert again[2].step == 13
    assert all(torch.equal(mask, masks[name]) for name, mask in again[2].masks().items())
    run(again[0], again[1], range(13, STEPS))
    assert again[2].sparsity == pytest.approx(0.8, abs=0.01)


def test_a_state_saved_from_channels_last_fits_a_contiguous_model():
    model, optimizer, sparsifier = new_run("magnitude-returning", "SGD", memory_format=torch.channels_last)
    run(model, optimizer, range(9))
    again = resumed(
        through_a_file(everything(model, optimizer, sparsifier)),
        "magnitude-returning",
        "SGD",
        ["attach", "model", "optimizer", "sparsifier"],
    )
    assert_identical(everything(*again), everything(model, optimizer, sparsifier))


def test_masks_take_one_bit_for_each_weight():
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(511, 3))
    sparsifier = magnitude(begin=0, end=0, policy="gone")
    sparsifier.prepare(model)
    state = sparsifier.state_dict()
    assert {name: bits.numel() * bits.element_size() for name, bits in state["masks"].items()} == {
        "0.weight": 512 * 512 // 8,
        "1.weight": math.ceil(511 * 3 / 8),
    }
    file = io.BytesIO()
    torch.save(state, file)
    assert len(file.getvalue()) < 1.2 * (512 * 512 + 511 * 3) / 8


def test_a_state_does_not_change_with_the_training_that_follows():
    model, optimizer, sparsifier = new_run("magnitude-returning", "SGD")
    run(model, optimizer, range(9))
    state = sparsifier.state_dict()
    before = copy.deepcopy(state)
    run(model, optimizer, range(9, STEPS))
    assert_identical(state, before)


def saved_state(**changes):
    model = classifier()
    sparsifier = magnitude(begin=0, **changes)
    sparsifier.prepare(model)
    return through_a_file(sparsifier.state_dict())


def prepared(model=None, **changes):
    sparsifier = magnitude(begin=0, **changes)
    sparsifier.prepare(classifier() if model is None else model)
    return sparsifier


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"sparsity": 0.7}, "allocation.sparsity is 0.8 there and 0.7 here"),
        ({"allocation": "global"}, "allocation.kind is 'Uniform' there and 'Global' here"),
        ({"allocation": {"head": 0.3}}, "allocation.kind is 'Uniform' there and 'LayerMap' here"),
        ({"end": 11}, "schedule.ramp.end is 10 there and 11 here"),
        ({"frequency": 4}, "schedule.frequency is 3 there and 4 here"),
        ({"initial_sparsity": 0.1}, "schedule.initial is 0.0 there and 0.1 here"),
        ({"policy": "gone"}, "policy is 'returning' there and 'gone' here"),
        ({"layers": "!head"}, "shapes.head.weight is in the saved state and not here"),
        ({"model": nn.Linear(2, 2)}, "shapes.convolution.weight is in the saved state and not here"),
    ],
)
def test_a_state_of_something_else_is_refused_and_the_difference_named(changes, difference):
    with pytest.raises(SparsebenchError, match="belongs to another model, method or schedule") as caught:
        prepared(**changes).load_state_dict(saved_state())
    assert str(caught.value).endswith(difference)
    assert "\n" not in str(caught.value)


def test_a_state_of_another_method_shape_or_seed_is_refused():
    for other, difference in [
        (sparsebench.random_pruning(sparsity=0.8, begin=0, end=10, frequency=3, policy="returning"), "score is"),
        (DenseBaseline(), "method is 'masked' there and 'dense' here"),
    ]:
        other.prepare(classifier())
        with pytest.raises(SparsebenchError, match=difference):
            other.load_state_dict(saved_state())
    wider = classifier()
    wider.head = nn.Linear(12, 4)
    with pytest.raises(SparsebenchError, match=r"shapes.head.weight is \[3, 12\] there and \[4, 12\] here"):
        prepared(wider).load_state_dict(saved_state())
    seeds = [sparsebench.random_pruning(sparsity=0.8, begin=0, end=10, frequency=3, seed=seed) for seed in (1, 2)]
    for sparsifier in seeds:
        sparsifier.prepare(classifier())
    with pytest.raises(SparsebenchError, match="seed is 1 there and 2 here"):
        seeds[1].load_state_dict(seeds[0].state_dict())


def without(part, name):
    return lambda state: state | {part: {key: value for key, value in state[part].items() if key != name}}


def replaced(part, name, value):
    return lambda state: state | {part: state[part] | {name: value(state[part][name])}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: None,
        lambda state: [1, 2],
        lambda state: {},
        lambda state: {"description": state["description"]},
        lambda state: state | {"step": "7"},
        lambda state: {key: value for key, value in state.items() if key != "masks"},
        lambda state: {key: value for key, value in state.items() if key != "aside"},
        lambda state: state | {"masks": None},
        lambda state: state | {"aside": {}},
        without("masks", "hidden.weight"),
        without("aside", "hidden.weight"),
        replaced("masks", "hidden.weight", lambda bits: bits[:-1]),
        replaced("masks", "hidden.weight", lambda bits: bits.float()),
        replaced("masks", "hidden.weight", lambda bits: bits.tolist()),
        replaced("masks", "hidden.weight", lambda bits: bits.reshape(2, -1)),
        replaced("masks", "hidden.weight", torch.bitwise_not),
        replaced("aside", "hidden.weight", lambda values: values[1:]),
        replaced("aside", "hidden.weight", lambda values: values.tolist()),
    ],
)
def test_a_damaged_state_is_refused_in_one_line_and_changes_nothing(damage):
    model = classifier()
    # Something is dropped, so that there are values aside.
    source, optimizer, trained = new_run("magnitude-returning", "SGD")
    run(source, optimizer, range(9))
    state = through_a_file(trained.state_dict())
    sparsifier = METHODS["magnitude-returning"]()
    sparsifier.prepare(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SparsebenchError, match=r"^(this is not the state_dict\(\)|the saved state is damaged)") as caught:
        sparsifier.load_state_dict(damage(state))
    assert "\n" not in str(caught.value)
    assert sparsifier.step == 0
    assert sparsifier.sparsity == 0.0
    assert_identical(dict(model.state_dict()), before)


def test_loading_zeroes_what_the_state_says_is_dropped():
    model, optimizer, sparsifier = new_run("magnitude-returning", "SGD")
    run(model, optimizer, range(9))
    other = classifier(seed=4)
    again = METHODS["magnitude-returning"]()
    again.prepare(other)
    again.load_state_dict(through_a_file(sparsifier.state_dict()))
    assert dropped_weights_are_zero(other, again)
    assert again.sparsity == sparsifier.sparsity > 0


def test_a_score_may_be_any_callable_and_its_state_is_saved_too():
    class Power:
        def __call__(self, layer):
            return layer.weight.abs() ** 2

    sparsifiers = [
        MaskedSparsifier(score, allocation.Uniform(0.5), schedules.one_shot(), "gone") for score in (Power(), scores.magnitude)
    ]
    for sparsifier in sparsifiers:
        sparsifier.prepare(classifier())
    state = through_a_file(sparsifiers[0].state_dict())
    sparsifiers[0].load_state_dict(state)
    with pytest.raises(SparsebenchError, match=r"score is '.*Power' there and '.*magnitude' here"):
        sparsifiers[1].load_state_dict(state)
