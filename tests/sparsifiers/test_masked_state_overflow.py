"""What an optimizer remembers of dropped weights may overflow: cleaned, it is zero all the same."""

import math

import pytest
import torch
from masked_toys import case_name, dropped_weights_are_zero, matrices, optimizer_cases, train
from torch import nn

from sparsebench.sparsifiers.masked import allocation, schedules
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier
from sparsebench.sparsifiers.masked.optimizer_state import EACH_ALONE, clean_optimizer_state

ALONE = [case for case in optimizer_cases() if case[0] in EACH_ALONE]


def beginning(kind, options, entry):
    """What an optimizer's memory of a weight is before its first step, from torch's documentation."""
    nonzero = {"step_size": options["lr"], "sum": options.get("initial_accumulator_value", 0.0)}
    return nonzero[entry] if kind in (torch.optim.Rprop, torch.optim.Adagrad) and entry in nonzero else 0.0


@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("case", ALONE, ids=case_name)
def test_memory_that_is_not_finite_is_cleaned_and_the_rest_untouched(case, bad, mask_dtype):
    kind, options = case
    weight = nn.Parameter(torch.linspace(-1, 1, 20).reshape(4, 5))
    optimizer = kind([weight], **options)
    for _ in range(2):
        weight.grad = torch.linspace(1, 2, 20).reshape(4, 5)
        optimizer.step()
    kept = torch.arange(20).reshape(4, 5) % 3 > 0
    entries = {
        name: value for name, value in optimizer.state[weight].items() if torch.is_tensor(value) and value.shape == weight.shape
    }
    expected = {}
    for name, value in entries.items():
        value[0, 0] = bad  # dropped
        value[0, 1] = bad  # kept: the owner of a diverged training is not deceived
        expected[name] = torch.where(kept, value, beginning(kind, options, name))
    clean_optimizer_state(optimizer, [weight], [kept.to(mask_dtype)])
    for name, value in entries.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True, msg=name)


OVERFLOWING = {
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adadelta,
}


@pytest.mark.parametrize("policy", ["gone", "returning"])
@pytest.mark.parametrize("case", [case for case in ALONE if case[0] in OVERFLOWING], ids=case_name)
def test_peers_row_8_a_squared_gradient_that_overflowed_does_not_stay_with_a_weight_that_returns(case, policy):
    """The square of a dropped weight's gradient of 1e25 is infinite in float32, and so is the average of such squares."""
    kind, options = case
    model = matrices()
    turn = {"odd": 0}

    def alternating(layer):
        return ((torch.arange(layer.weight.numel()).reshape(layer.weight.shape) + turn["odd"]) % 2).float()

    sparsifier = MaskedSparsifier(alternating, allocation.Uniform(0.5), schedules.constant(0, 6, 3), policy)
    sparsifier.prepare(model)
    optimizer = kind(model.parameters(), **options)
    infinite = []

    def burst(*_):
        if sparsifier.step == 1:
            for name, parameter in model.named_parameters():
                parameter.grad[~sparsifier.masks()[name]] = 1e25

    def look(*_):
        for parameter in model.parameters():
            infinite.extend(not bool(v.isfinite().all()) for v in optimizer.state[parameter].values() if v.dim())

    optimizer.register_step_pre_hook(burst)
    optimizer.register_step_post_hook(look)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(2), (8, 8))
    assert any(infinite), "the test must exercise what it is about"
    dropped = {name: ~mask for name, mask in sparsifier.masks().items()}
    turn["odd"] = 1
    train(model, optimizer, range(2, 3), (8, 8))
    for name, parameter in model.named_parameters():
        assert policy == "gone" or torch.equal(sparsifier.masks()[name], dropped[name])
        for entry, value in optimizer.state[parameter].items():
            assert value.dim() == 0 or bool((value[dropped[name]] == 0).all()), f"{entry} of {name}"
    train(model, optimizer, range(3, 8), (8, 8))
    assert dropped_weights_are_zero(model, sparsifier)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
