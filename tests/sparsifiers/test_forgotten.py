"""What a training loop forgets, or gives that cannot be meant: it is told in one line."""

import copy
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from masked_toys import classifier, loss_of, magnitude, train
from torch import nn
from torch.nn.utils import parametrizations

import sparsebench
from sparsebench.errors import SparsebenchError

METHODS = {
    "magnitude": magnitude,
    "rigl": lambda: sparsebench.rigl(sparsity=0.8, begin=1, end=9, frequency=2),
    "fixed": lambda: sparsebench.fixed_masks({"head.weight": torch.ones(3, 12, dtype=torch.bool)}),
    "variational-dropout": lambda: sparsebench.variational_dropout(penalty=0.003, end=6),
    "l0": lambda: sparsebench.l0_regularization(penalty=0.003, end=6),
}


def prepared(method):
    model, sparsifier = classifier(), METHODS[method]()
    sparsifier.prepare(model)
    return model, sparsifier, torch.optim.SGD(model.parameters(), lr=0.1)


def steps(model, sparsifier, optimizer, numbers):
    for step in numbers:
        optimizer.zero_grad()
        (loss_of(model, step) + sparsifier.penalty()).backward()
        optimizer.step()


@pytest.mark.parametrize("method", ["magnitude", "variational-dropout", "l0"])
def test_peers_row_19_a_forgotten_attach_is_noticed_at_the_latest_when_the_network_is_finalized(method):
    model, sparsifier, optimizer = prepared(method)
    steps(model, sparsifier, optimizer, range(3))
    with pytest.warns(UserWarning, match=r"^finalize\(\) after step 0 of a schedule .*was attach\(optimizer\) forgotten"):
        sparsifier.finalize()


def test_a_copy_that_was_not_attached_is_noticed_too():
    model, sparsifier, optimizer = prepared("magnitude")
    sparsifier.attach(optimizer)
    model, sparsifier, optimizer = copy.deepcopy((model, sparsifier, optimizer))
    steps(model, sparsifier, optimizer, range(12))
    with pytest.warns(UserWarning, match=r"the sparsity is 0\.000"):
        sparsifier.finalize()


@pytest.mark.parametrize("method", METHODS)
def test_only_a_training_that_is_too_short_for_its_schedule_is_warned_of(method):
    for count, short in ((4, method not in ("rigl", "fixed")), (30, False)):
        model, sparsifier, optimizer = prepared(method)
        sparsifier.attach(optimizer)
        steps(model, sparsifier, optimizer, range(count))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sparsifier.finalize()
        assert [str(one.message).startswith(f"finalize() after step {count} of a schedule") for one in caught] == [True] * short
        assert all(one.filename == __file__ for one in caught)


@pytest.mark.parametrize("method", ["variational-dropout", "l0"])
def test_a_penalty_that_nobody_asks_for_is_missed_once(method):
    model, sparsifier, optimizer = prepared(method)
    sparsifier.attach(optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, range(4))
    # At the first step the ramp gives it no weight yet.
    assert [str(one.message) for one in caught] == [
        "step 2 was taken without a call of penalty(): add it to the loss, nothing becomes sparse without it"
    ]


@pytest.mark.parametrize("method", METHODS)
def test_the_gradients_of_any_method_can_be_masked(method):
    model, sparsifier, optimizer = prepared(method)
    sparsifier.attach(optimizer)
    (loss_of(model, 0) + sparsifier.penalty()).backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    sparsifier.mask_gradients()
    masks = sparsifier.masks() if method in ("magnitude", "rigl", "fixed") else {}
    for name, parameter in model.named_parameters():
        kept = masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter.grad, before[name].masked_fill(~kept, 0.0))


@pytest.mark.parametrize("method", ["variational-dropout", "l0"])
def test_a_copy_of_another_model_is_not_finalized(method):
    model, sparsifier, _ = prepared(method)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for other in (classifier(), averaged):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(SparsebenchError, match=r"^finalize_copy: the other model has no layer 'convolution' .*copy.deepcopy"):
            sparsifier.finalize_copy(other)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_masks_do_not_fit_a_wrapper_and_the_message_says_what_does():
    model, sparsifier, _ = prepared("magnitude")
    with pytest.raises(SparsebenchError, match=r"no parameter 'convolution\.weight'.*give the model inside the wrapper"):
        sparsifier.apply_masks(torch.optim.swa_utils.AveragedModel(model))


@pytest.mark.parametrize("layers", [nn.Linear, [nn.Linear], [], 0, 1.5, ["head", None]])
@pytest.mark.parametrize("method", ["magnitude", "variational-dropout", "freeze", "initialize"])
def test_a_choice_of_layers_that_is_none_is_refused(method, layers):
    calls = {
        "magnitude": lambda: magnitude(layers=layers).prepare(classifier()),
        "variational-dropout": lambda: sparsebench.variational_dropout(penalty=1.0, layers=layers).prepare(classifier()),
        "freeze": lambda: sparsebench.freeze_masks(classifier(), layers),
        "initialize": lambda: sparsebench.initialize_masks(classifier(), len, [0], sparsity=0.5, score="random", layers=layers),
    }
    with pytest.raises(SparsebenchError, match=r"^layers=.*: expected None, a pattern over names") as caught:
        calls[method]()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [None, "model", {"weight": torch.zeros(2, 2)}, np.zeros(3)])
def test_what_is_no_module_is_refused(model):
    calls = [
        lambda: magnitude().prepare(model),
        lambda: sparsebench.l0_regularization(penalty=1.0).prepare(model),
        lambda: sparsebench.freeze_masks(model),
        lambda: sparsebench.initialize_masks(model, len, [0], sparsity=0.5, score="random"),
    ]
    for call in calls:
        with pytest.raises(SparsebenchError, match=r"^expected a torch\.nn\.Module to make sparse, got "):
            call()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_numbers_that_masks_do_not_multiply_are_refused_by_name(dtype):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model[1].weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(SparsebenchError, match=rf"^'1\.weight' has the dtype {dtype}: expected one of torch\.float64"):
        magnitude().prepare(model)
    magnitude(layers="!1").prepare(model)


class MyLinear(nn.Linear):
    pass


@pytest.mark.parametrize("layers", [None, "*", "!2", ["0", "[01]"], lambda name, layer: isinstance(layer, nn.Linear)])
@pytest.mark.parametrize("method", ["magnitude", "variational-dropout"])
def test_a_chosen_layer_of_a_subclass_stays_dense_and_is_warned_of(method, layers):
    model = nn.Sequential(nn.Linear(3, 3), MyLinear(3, 3), nn.Linear(3, 3), nn.Bilinear(2, 2, 2))
    make = {
        "magnitude": lambda: magnitude(layers=layers),
        "variational-dropout": lambda: sparsebench.variational_dropout(penalty=1.0, layers=layers),
    }
    with pytest.warns(UserWarning, match=r"stay dense.*: 1 \(MyLinear\)"):
        make[method]().prepare(model)


def test_a_weight_that_was_taken_away_after_prepare_is_named():
    for attached in (False, True):
        model, sparsifier, optimizer = prepared("magnitude")
        if attached:
            sparsifier.attach(optimizer)
            steps(model, sparsifier, optimizer, range(1))
        parametrizations.weight_norm(model.head)
        call = optimizer.step if attached else partial(sparsifier.attach, optimizer)
        with pytest.raises(SparsebenchError, match=r"^'head\.weight' is no longer a parameter of its layer"):
            call()


def test_a_network_without_memory_gets_full_masks_once_it_has_weights():
    with torch.device("meta"):
        model = classifier()
    sparsifier = magnitude()
    sparsifier.prepare(model)
    model.to_empty(device="cpu")
    model.load_state_dict(classifier().state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(12))
    other, beside, plain = prepared("magnitude")
    beside.attach(plain)
    train(other, plain, range(12))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_masks_cannot_be_chosen_of_weights_without_memory():
    with torch.device("meta"):
        model = classifier()
    with pytest.raises(SparsebenchError, match=r"^'convolution\.weight' is on the meta device, and this method chooses masks in"):
        sparsebench.one_shot_pruning(sparsity=0.5).prepare(model)


def test_weights_that_are_not_finite_before_the_training_are_no_divergence():
    model = classifier()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(SparsebenchError, match=r"^'head\.weight' holds a NaN or an infinity before the first step$"):
        sparsebench.one_shot_pruning(sparsity=0.5).prepare(model)


def test_parts_are_there_under_their_names_without_an_import_of_their_own():
    code = "import sparsebench as sb; print(sb.inference.compile_sparse, sb.storage.save_compressed, sb.accounting.report)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    with pytest.raises(AttributeError, match="module 'sparsebench' has no attribute 'nonsense'"):
        sparsebench.nonsense  # noqa: B018
