"""Stochastic methods in a training loop: steps, the penalty, parameter groups, layers that do not run, and what is learned."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsebench import SparsebenchError, l0_regularization, variational_dropout

METHODS = {"log_sigma2": variational_dropout, "log_alpha": l0_regularization}
both = pytest.mark.parametrize(("auxiliary", "method"), METHODS.items())


class Branches(nn.Module):
    """Runs the branches that it is told to run."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)
        self.use = ("left", "right")

    def forward(self, values):
        return sum(getattr(self, name)(values) for name in self.use)


def prepared(method, model=None, lr=0.05, momentum=0.0, **arguments):
    model = Branches() if model is None else model
    sparsifier = method(**({"penalty": 1e-3} | arguments))
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(lr=lr), momentum=momentum)
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer


def backward(model, sparsifier, values=None):
    values = torch.ones(2, 3) if values is None else values
    (model(values).square().mean() + sparsifier.penalty()).backward()


@both
def test_a_layer_that_did_not_run_in_a_training_step_is_named(auxiliary, method):
    model, sparsifier, optimizer = prepared(method)
    backward(model, sparsifier)
    optimizer.step()
    model.use = ("left",)
    backward(model, sparsifier)
    with pytest.raises(SparsebenchError, match="'right' did not run in training step 2"):
        optimizer.step()


@both
def test_a_layer_in_evaluation_mode_did_not_run_in_training(auxiliary, method):
    model, sparsifier, optimizer = prepared(method)
    model.left.eval()
    backward(model, sparsifier)
    with pytest.raises(SparsebenchError, match="'left' did not run in training step 1"):
        optimizer.step()


@both
def test_evaluation_does_not_count_as_a_training_run(auxiliary, method):
    model, sparsifier, optimizer = prepared(method)
    model.use = ("left",)
    backward(model, sparsifier)
    model.use = ("left", "right")
    model.eval()
    model(torch.ones(2, 3))
    for point in sparsifier.points():
        with point:
            model.train()(torch.ones(2, 3))
    with pytest.raises(SparsebenchError, match="'right' did not run in training step 1"):
        optimizer.step()


@both
def test_evaluation_between_backward_and_step_changes_nothing(auxiliary, method):
    results = []
    for evaluate in (False, True):
        torch.manual_seed(0)
        model, sparsifier, optimizer = prepared(method, thresholds=(0.0, 3.0)) if auxiliary == "log_sigma2" else prepared(method)
        for _ in range(3):
            optimizer.zero_grad()
            backward(model, sparsifier)
            if evaluate:
                model.eval()
                for point in sparsifier.points():
                    with point:
                        model(torch.ones(2, 3))
                model.train()
            optimizer.step()
        assert sparsifier.step == 3
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@both
def test_several_forward_passes_make_one_step(auxiliary, method):
    model, sparsifier, optimizer = prepared(method, end=4)
    for step in range(3):
        for _ in range(4):
            backward(model, sparsifier)
        assert sparsifier.step == step
        optimizer.step()
        assert sparsifier.step == step + 1


@both
def test_accumulation_may_run_different_layers_in_each_pass(auxiliary, method):
    model, sparsifier, optimizer = prepared(method)
    for use in (("left",), ("right",)):
        model.use = use
        backward(model, sparsifier)
    optimizer.step()
    assert sparsifier.step == 1


@both
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_by_the_gradient_scaler_does_not_count(auxiliary, method, fused):
    model, sparsifier, _ = prepared(method)
    optimizer = torch.optim.Adam(sparsifier.parameter_groups(lr=0.01), fused=fused)
    sparsifier.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    for factor, steps in ((1.0, 1), (math.inf, 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 3)).sum() * factor + sparsifier.penalty()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert sparsifier.step == steps


@both
def test_attaching_twice_counts_once_and_a_new_optimizer_takes_over(auxiliary, method):
    model, sparsifier, optimizer = prepared(method)
    sparsifier.attach(optimizer)
    backward(model, sparsifier)
    optimizer.step()
    assert sparsifier.step == 1
    other = torch.optim.Adam(sparsifier.parameter_groups(lr=0.1))
    sparsifier.attach(other)
    backward(model, sparsifier)
    other.step()
    assert sparsifier.step == 2
    backward(model, sparsifier)
    optimizer.step()
    assert sparsifier.step == 2


@both
def test_a_step_inside_an_evaluation_point_is_refused(auxiliary, method):
    model, sparsifier, optimizer = prepared(method)
    backward(model, sparsifier)
    for point in sparsifier.points():
        with point, pytest.raises(SparsebenchError, match=r"optimizer\.step\(\) inside an active evaluation point"):
            optimizer.step()


@both
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["weight", "auxiliary"])
def test_a_nan_stops_the_run_with_its_name(auxiliary, method, value, which):
    model, sparsifier, optimizer = prepared(method)
    name = "right.weight" if which == "weight" else f"right.{auxiliary}"
    backward(model, sparsifier)
    model.get_parameter(name).grad[0, 1] = value
    with pytest.raises(SparsebenchError, match=rf"'{name}' holds a NaN or an infinity after step 1"):
        optimizer.step()
    for call in (sparsifier.state_dict, sparsifier.finalize, lambda: list(sparsifier.points())):
        with pytest.raises(SparsebenchError, match=f"'{name}' holds a NaN"):
            call()


@both
def test_large_finite_weights_are_no_infinity(auxiliary, method):
    model, sparsifier, _ = prepared(method)
    nn.init.constant_(model.left.weight, 3e38)
    sparsifier.state_dict()


def expected_progress(step, begin, end, shape):
    if step >= end:
        return 1.0
    if step <= begin:
        return 0.0
    part = (step - begin) / (end - begin)
    return part if shape == "linear" else 1.0 - (1.0 - part) ** 3


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(METHODS)),
    st.sampled_from(["linear", "cubic"]),
    st.integers(0, 500_000),
    st.integers(0, 500_000),
    st.integers(0, 1_200_000),
    st.floats(1e-8, 1e3),
)
def test_penalty_follows_its_ramp(auxiliary, shape, begin, length, step, factor):
    arguments = {"begin": begin, "end": begin + length, "shape": shape}
    full, ramped = METHODS[auxiliary](penalty=1.0), METHODS[auxiliary](penalty=factor, **arguments)
    penalties = []
    torch.manual_seed(0)
    layer = nn.Linear(2, 2).double()
    for sparsifier in (full, ramped):
        copied = nn.Linear(2, 2).double()
        copied.load_state_dict(layer.state_dict())
        sparsifier.prepare(copied)
        sparsifier.load_state_dict(sparsifier.state_dict() | {"step": step})
        penalties.append(sparsifier.penalty().detach())
    expected = factor * expected_progress(step, begin, begin + length, shape) * float(penalties[0])
    assert float(penalties[1]) == pytest.approx(expected, rel=1e-9, abs=1e-15 * factor)
    if step <= begin and length > 0:
        assert float(penalties[1]) == 0.0


@both
@pytest.mark.parametrize("shape", ["linear", "cubic"])
def test_penalty_follows_its_ramp_in_training(auxiliary, method, shape):
    model, sparsifier, optimizer = prepared(method, lr=0.0, penalty=0.5, begin=2, end=6, shape=shape)
    reference = method(penalty=0.5)
    twin = Branches()
    reference.prepare(twin)
    twin.load_state_dict(model.state_dict())
    full = float(reference.penalty().detach())
    found = []
    for _ in range(9):
        optimizer.zero_grad()
        found.append(float(sparsifier.penalty().detach()))
        backward(model, sparsifier)
        optimizer.step()
    assert found == pytest.approx([full * expected_progress(step, 2, 6, shape) for step in range(9)], rel=1e-6)
    assert found[:3] == [0.0, 0.0, 0.0]


@both
def test_penalty_without_a_ramp_is_whole_from_the_first_step(auxiliary, method):
    model, sparsifier, _ = prepared(method, penalty=2.0)
    twin, half, _ = prepared(method, penalty=1.0)
    twin.load_state_dict(model.state_dict())
    assert float(sparsifier.penalty().detach()) == pytest.approx(2 * float(half.penalty().detach()), rel=1e-6)
    assert float(half.penalty().detach()) > 0


@both
def test_penalty_is_a_plain_scalar_tensor_with_gradients(auxiliary, method):
    model, sparsifier, _ = prepared(method, penalty=1.0, end=0)
    value = sparsifier.penalty()
    assert type(value) is torch.Tensor
    assert value.shape == ()
    value.backward()
    for layer in (model.left, model.right):
        assert getattr(layer, auxiliary).grad.count_nonzero() > 0
        assert layer.bias.grad is None
        if auxiliary == "log_sigma2":
            assert layer.weight.grad.count_nonzero() > 0
    before_ramp = method(penalty=1.0, begin=5, end=9)
    before_ramp.prepare(Branches())
    zero = before_ramp.penalty()
    assert type(zero) is torch.Tensor
    assert zero.shape == ()
    assert float(zero) == 0.0


@both
def test_a_penalty_of_zero_is_allowed(auxiliary, method):
    _, sparsifier, _ = prepared(method, penalty=0)
    assert float(sparsifier.penalty()) == 0.0


@both
def test_parameter_groups_hold_every_trainable_parameter_once(auxiliary, method):
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3))
    model[4].bias.requires_grad_(False)
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(model)
    own, extra = sparsifier.parameter_groups(lr=0.2, auxiliary_lr_scale=5.0)
    assert own["lr"] == 0.2
    assert extra["lr"] == pytest.approx(1.0)
    assert extra["weight_decay"] == 0.0
    assert "weight_decay" not in own
    assert {id(p) for p in extra["params"]} == {id(getattr(model[i], auxiliary)) for i in (0, 3)}
    identities = [id(p) for p in [*own["params"], *extra["params"]]]
    assert len(identities) == len(set(identities))
    assert set(identities) == {id(p) for p in model.parameters() if p.requires_grad}
    assert [group["lr"] for group in sparsifier.parameter_groups(lr=0.3)] == [0.3, 0.3]


@both
def test_parameter_groups_learn_at_their_own_rates(auxiliary, method):
    model, sparsifier, _ = prepared(method)
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(lr=0.1, auxiliary_lr_scale=3.0), weight_decay=0.5)
    sparsifier.attach(optimizer)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    backward(model, sparsifier)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decayed = name.endswith(auxiliary)
        expected = before[name] - (0.3 * parameter.grad if decayed else 0.1 * (parameter.grad + 0.5 * before[name]))
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-7)


@both
def test_attach_warns_of_weight_decay_on_auxiliary_parameters(auxiliary, method):
    model, sparsifier, _ = prepared(method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with pytest.warns(UserWarning, match=f"weight decay pulls {auxiliary} towards 0.*parameter_groups"):
        sparsifier.attach(optimizer)
    backward(model, sparsifier)
    optimizer.step()
    assert sparsifier.step == 1
    # Neither of these warns, and a warning is an error here.
    sparsifier.attach(torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0))
    sparsifier.attach(torch.optim.AdamW(sparsifier.parameter_groups(lr=0.01), weight_decay=0.1))


@both
def test_attach_refuses_an_optimizer_without_the_auxiliary_parameters(auxiliary, method):
    model = Branches()
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(model)
    with pytest.raises(SparsebenchError, match=rf"does not hold 'left\.{auxiliary}' and 1 more"):
        sparsifier.attach(early)
    only = torch.optim.SGD([getattr(model.left, auxiliary), getattr(model.right, auxiliary)], lr=0.1)
    with pytest.raises(SparsebenchError, match=r"does not hold 'left\.weight' and 1 more"):
        sparsifier.attach(only)
    with pytest.raises(SparsebenchError, match=r"expects a torch\.optim\.Optimizer, got none"):
        sparsifier.attach([])
    # A refused optimizer has no hooks.
    assert len(early._optimizer_step_post_hooks) == 0


@both
def test_attach_unwraps(auxiliary, method):
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    class WrappedOptimizer(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self, closure=None):
            return self.optimizer.step(closure)

    model, sparsifier, optimizer = prepared(method)
    sparsifier.attach(WrappedOptimizer(optimizer))
    backward(model, sparsifier)
    optimizer.step()
    assert sparsifier.step == 1


@both
@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.penalty(),
        lambda s: s.attach(torch.optim.SGD([torch.zeros(1)], lr=0.1)),
        lambda s: s.parameter_groups(lr=0.1),
        lambda s: s.masks(),
        lambda s: s.sparsity,
        lambda s: s.apply_masks(Branches()),
        lambda s: list(s.points()),
        lambda s: s.finalize(),
        lambda s: s.state_dict(),
        lambda s: s.load_state_dict({}),
    ],
)
@pytest.mark.parametrize("when", ["before prepare", "after finalize"])
def test_calls_out_of_order_are_refused(auxiliary, method, call, when):
    sparsifier = method(penalty=1.0)
    if when == "after finalize":
        _, sparsifier, _ = prepared(method)
        sparsifier.finalize()
    with pytest.raises(SparsebenchError, match=r"call prepare\(model\) first"):
        call(sparsifier)


def relevant_and_noise(inputs=12, relevant=3, examples=256):
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(examples, inputs, generator=generator)
    slopes = torch.zeros(inputs)
    slopes[:relevant] = torch.tensor([2.0, -1.5, 1.0])
    return values, values @ slopes + 0.1 * torch.randn(examples, generator=generator)


@both
def test_peers_row_22_irrelevant_inputs_are_pruned_and_relevant_ones_kept(auxiliary, method):
    values, targets = relevant_and_noise()
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 1))
    sparsifier = method(penalty=30 / len(values), begin=50, end=200)
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(sparsifier.parameter_groups(lr=0.02, auxiliary_lr_scale=5.0))
    sparsifier.attach(optimizer)
    for _ in range(800):
        optimizer.zero_grad()
        # Gaussian log likelihood with the true deviation of 0.1.
        error = (model(values)[:, 0] - targets).square().mean() / (2 * 0.1**2)
        (error + sparsifier.penalty()).backward()
        optimizer.step()
    kept = sparsifier.masks()["0.weight"][0]
    assert kept[:3].all()
    assert int(kept[3:].sum()) <= 2
    (point,) = sparsifier.points()
    assert point.sparsity == sparsifier.sparsity >= 7 / 12
    with point:
        inside = float((model(values)[:, 0] - targets).detach().square().mean())
    assert inside < 0.02
    model = sparsifier.finalize()
    assert int((model[0].weight == 0).sum()) >= 7
    assert float((model(values)[:, 0] - targets).detach().square().mean()) == inside


def steps_to_close(momentum, penalty, rate):
    """Steps until half of the gates of a layer that sees zeros alone, so that the loss holds none open, are 0."""
    model = nn.Linear(10, 10, bias=False)
    model, sparsifier, optimizer = prepared(l0_regularization, model, lr=rate, momentum=momentum, penalty=penalty)
    steps = 0
    while sparsifier.sparsity < 0.5:
        optimizer.zero_grad()
        backward(model, sparsifier, torch.zeros(1, 10))
        optimizer.step()
        steps += 1
    return steps


@pytest.mark.parametrize(("momentum", "penalty", "rate"), [(0.0, 0.1, 2.0), (0.9, 1e-3, 4.0)])
def test_the_penalty_alone_closes_a_gate_in_the_documented_number_of_steps(momentum, penalty, rate):
    assert steps_to_close(momentum, penalty, rate) == pytest.approx(55 * (1 - momentum) / (penalty * rate), rel=0.05)
