"""The penalty's gradient in the optimizer's pre-step hook equals that of a penalty in the loss."""

import copy

import pytest
import torch
from torch import nn

import sparsebench
from sparsebench import SparsebenchError
from sparsebench.integrations.connection import Connection
from sparsebench.integrations.penalty_gradient import PenaltyGradient
from sparsebench.sparsifiers.masked import allocation, schedules, scores

METHODS = {
    "variational-dropout": lambda: sparsebench.variational_dropout(penalty=0.01, begin=0, end=4),
    "l0": lambda: sparsebench.l0_regularization(penalty=0.01, begin=0, end=4),
    "magnitude": lambda: sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=4, frequency=1),
}
every_method = pytest.mark.parametrize("method", METHODS)


def parts(method, make_optimizer):
    """A small network, its sparsifier and optimizer; the same numbers at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    sparsifier = METHODS[method]()
    sparsifier.prepare(model)
    return model, sparsifier, make_optimizer(model.parameters())


def losses(model, step, batches):
    """The losses of one step's batches; the noise inside the layers is a function of the step."""
    torch.manual_seed(step)
    inputs = torch.randn(batches, 4, 5)
    return [model(batch).square().mean() for batch in inputs]


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.0)


def assert_same(model, expected):
    for (name, parameter), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


@every_method
@pytest.mark.parametrize("batches", [1, 3])
def test_it_equals_a_penalty_in_the_loss_once_for_each_step(method, batches):
    expected, sparsifier, optimizer = parts(method, adam)
    sparsifier.attach(optimizer)
    for step in range(6):
        optimizer.zero_grad()
        (torch.stack(losses(expected, step, batches)).mean() + sparsifier.penalty()).backward()
        optimizer.step()
    model, other, optimizer = parts(method, adam)
    Connection(other).attach([optimizer])
    for step in range(6):
        optimizer.zero_grad()
        for loss in losses(model, step, batches):
            (loss / batches).backward()
        optimizer.step()
    assert other.step == sparsifier.step == 6
    assert_same(model, expected)


@every_method
@pytest.mark.parametrize("fused", [False, True], ids=["ordinary", "fused"])
@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled"])
def test_under_a_gradient_scaler_it_has_the_gradients_scale(method, fused, unscale):
    """Fused optimizers see scaled gradients unless the loop unscaled them; a skipped step adds nothing."""

    def make(parameters):
        return torch.optim.AdamW(parameters, lr=0.02, fused=fused, weight_decay=0.0)

    runs = []
    for hook in (False, True):
        model, sparsifier, optimizer = parts(method, make)
        if hook:
            Connection(sparsifier).attach([optimizer])
        else:
            sparsifier.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        for step in range(6):
            optimizer.zero_grad()
            (loss,) = losses(model, step, 1)
            scaler.scale(loss if hook else loss + sparsifier.penalty()).backward()
            if step == 2:
                next(model.parameters()).grad[0, 0] = torch.inf
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert sparsifier.step == 5
        runs.append(model)
    assert_same(*runs)


@every_method
@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_closure_gets_it_after_each_evaluation(method, keyword, kind):
    runs = []
    for hook in (False, True):
        model, sparsifier, optimizer = parts(method, lambda parameters: kind(parameters, lr=0.05))
        if hook:
            Connection(sparsifier).attach([optimizer])
        else:
            sparsifier.attach(optimizer)
        for step in range(4):

            def closure(model=model, sparsifier=sparsifier, optimizer=optimizer, step=step, hook=hook):
                optimizer.zero_grad()
                (loss,) = losses(model, step, 1)
                (loss if hook else loss + sparsifier.penalty()).backward()
                return loss.detach()

            optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        runs.append(model)
    assert_same(*runs)


@every_method
def test_a_closure_that_adds_to_accumulated_gradients_gets_it_once(method):
    """As Lightning's: the closure of the last batch keeps the gradients of those before."""
    runs = []
    for hook in (False, True):
        model, sparsifier, optimizer = parts(method, lambda parameters: torch.optim.SGD(parameters, lr=0.2))
        if hook:
            Connection(sparsifier).attach([optimizer])
        else:
            sparsifier.attach(optimizer)
        for step in range(5):
            first = losses(model, step, 2)[0] / 2
            optimizer.zero_grad()
            (first if hook else first + sparsifier.penalty()).backward()
            optimizer.step(lambda model=model, step=step: (losses(model, step, 2)[1] / 2).backward())
        runs.append(model)
    assert_same(*runs)


def test_parameters_the_loss_does_not_reach_get_the_penalty_alone():
    model = nn.Linear(4, 3)
    sparsifier = sparsebench.l0_regularization(penalty=0.5)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    PenaltyGradient(sparsifier, optimizer)
    before = model.log_alpha.detach().clone()
    optimizer.step()
    # The derivative of 0.5 sigmoid(x) is 0.5 sigmoid(x) sigmoid(-x); eq. 12 shifts x by beta log(-gamma/zeta).
    shifted = before - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1))
    torch.testing.assert_close(model.log_alpha.detach(), before - 0.5 * shifted.sigmoid() * (-shifted).sigmoid())
    assert model.bias.grad is None


class Shrinking(sparsebench.MaskedSparsifier):
    """A method with masks and a penalty both."""

    def penalty(self):
        return sum(weight.square().sum() for weight in self._weights.weights())


def test_what_is_dropped_stays_dropped_whatever_the_penalty_says():
    model = nn.Linear(6, 5)
    sparsifier = Shrinking(scores.magnitude, allocation.Uniform(0.5), schedules.one_shot(1))
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Connection(sparsifier).attach([optimizer])
    optimizer.step()
    # A weight that something else made nonzero has a penalty.
    with torch.no_grad():
        model.weight += 1.0
    optimizer.zero_grad()
    optimizer.step()
    mask = sparsifier.masks()["weight"]
    assert int(mask.sum()) == 15
    assert bool((model.weight[~mask] == 0).all())
    assert bool((model.weight.grad != 0).all())


def test_attaching_anew_and_detaching_leave_no_hook_behind():
    _, sparsifier, optimizer = parts("l0", adam)
    connection = Connection(sparsifier)
    connection.attach([optimizer])
    connection.attach([optimizer])
    assert len(optimizer._optimizer_step_pre_hooks) == 2
    other = adam(torch.nn.ParameterList([group for g in optimizer.param_groups for group in g["params"]]))
    connection.attach([other])
    assert len(optimizer._optimizer_step_pre_hooks) == 0
    assert len(other._optimizer_step_pre_hooks) == 2


def test_of_several_optimizers_the_one_with_the_weights_is_followed():
    model, sparsifier, optimizer = parts("magnitude", adam)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    connection = Connection(sparsifier)
    connection.attach([other, optimizer])
    assert not other._optimizer_step_pre_hooks
    (loss,) = losses(model, 0, 1)
    loss.backward()
    optimizer.step()
    assert sparsifier.step == 1
    with pytest.raises(SparsebenchError, match=r"the optimizer does not hold '0.weight' and 1 more"):
        connection.attach([other, copy.deepcopy(other)])
    assert not other._optimizer_step_pre_hooks
    with pytest.raises(SparsebenchError, match="there is no optimizer"):
        connection.attach([])
    optimizer.step()
    assert sparsifier.step == 2, "a refusal leaves the attachment as it was"


@every_method
def test_a_sparsifier_is_prepared_once(method):
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2))
    sparsifier = METHODS[method]()
    sparsifier.prepare(model)
    connection = Connection(sparsifier)
    names = [name for name, _ in model.named_parameters()]
    connection.prepare(model)
    assert [name for name, _ in model.named_parameters()] == names
    with pytest.warns(UserWarning, match=r"^finalize\(\) after step 0 of a schedule"):
        sparsifier.finalize()
    connection.prepare(model)
    assert {type(layer) for layer in model} == {nn.Linear}, "a finalized network is not made sparse anew"


def test_something_else_than_a_sparsifier_is_refused():
    with pytest.raises(SparsebenchError, match="SparsebenchCallback expects a sparsifier, got float"):
        Connection(0.9)
