"""A report leaves the model and torch as they were."""

import gc

import pytest
import torch
from torch import nn

from sparsebench.accounting import report


class Restless(nn.Module):
    """Draws random numbers and writes to its buffers even in eval mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", None)
        self.register_buffer("replaced", torch.zeros(1))
        self.fail = False

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.replaced = self.replaced + 1
        x = self.dropout(self.norm(self.linear(x + torch.rand(3))))
        if self.fail:
            raise RuntimeError("the model's own error")
        return x


def hooks(model):
    return [
        len(registry)
        for module in model.modules()
        for registry in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._forward_hooks_with_kwargs,
            module._forward_hooks_always_called,
        )
    ]


@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_put_back(fail):
    model = Restless()
    model.fail = fail
    model.linear.register_forward_hook(lambda module, args, output: output)
    model.norm.eval()  # flags that differ between modules stay so
    model.replaced.requires_grad_(False)
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    hooks_before, random_state = hooks(model), torch.get_rng_state()
    cache = torch.is_autocast_cache_enabled()
    if fail:
        with pytest.raises(RuntimeError, match="the model's own error"):
            report(model, torch.ones(4, 3))
    else:
        assert report(model, torch.ones(4, 3)).multiply_adds == 36
    assert [module.training for module in model.modules()] == flags
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers
    assert model.last is None
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert hooks(model) == hooks_before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_autocast_cache_enabled() == cache
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()


def test_the_model_runs_in_eval_mode_and_without_gradients():
    seen = []

    class Witness(nn.Linear):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    report(nn.Sequential(Witness(2, 2)), torch.ones(1, 2))
    assert seen == [(False, False)]


def test_gradients_computed_before_a_report_still_flow_after_it():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    loss = model(torch.randn(4, 3)).square().sum()
    report(model, torch.ones(2, 3))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_report_inside_autocast_does_not_cut_off_gradients():
    model = nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        report(model, torch.ones(2, 3))
        model(torch.ones(2, 3)).float().sum().backward()
    assert model.weight.grad is not None


def test_a_layer_that_raises_inside_a_model_that_carries_on():
    class Patient(nn.Module):
        def __init__(self):
            super().__init__()
            self.broken = nn.Linear(5, 5)
            self.sound = nn.Linear(3, 3)

        def forward(self, x):
            try:
                return self.broken(x)
            except RuntimeError:
                return self.sound(x)

    held = report(Patient(), torch.ones(1, 3))
    assert {row.name: row.multiply_adds for row in held.layers} == {"broken.weight": 0, "sound.weight": 9}


def test_hooks_of_the_user_run_and_do_not_mislead():
    model = nn.Sequential(nn.Conv1d(2, 3, 2))
    model[0].register_forward_hook(lambda module, args, output: output.sum())
    assert report(model, torch.ones(1, 2, 5)).multiply_adds == 12 * 4


def test_wrong_input_is_the_models_own_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        report(nn.Linear(3, 3), torch.ones(1, 4))


def test_a_report_does_not_keep_the_model_alive():
    model = nn.Linear(3, 3)
    held = report(model, torch.ones(1, 3))
    address = id(model)
    del model
    gc.collect()
    assert not any(id(thing) == address and isinstance(thing, nn.Linear) for thing in gc.get_objects())
    assert held.weights == 9
