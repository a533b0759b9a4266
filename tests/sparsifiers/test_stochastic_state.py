"""Saved states: a run stopped anywhere and resumed is bit-identical, and a state fits its own method only."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsebench import SparsebenchError, l0_regularization, magnitude_pruning, variational_dropout

METHODS = {"log_sigma2": variational_dropout, "log_alpha": l0_regularization}
both = pytest.mark.parametrize(("auxiliary", "method"), METHODS.items())


class Run:
    """A training that can be saved and resumed."""

    def __init__(self, method, seed):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Conv1d(1, 3, 2), nn.Flatten(), nn.Linear(12, 4), nn.Dropout(0.2), nn.Linear(4, 2))
        self.sparsifier = method(penalty=1e-2, begin=2, end=7, shape="cubic")
        self.sparsifier.prepare(self.model)
        self.optimizer = torch.optim.Adam(self.sparsifier.parameter_groups(lr=0.03, auxiliary_lr_scale=3.0))
        self.sparsifier.attach(self.optimizer)
        self.losses = []

    def train(self, steps):
        for _ in range(steps):
            values = torch.randn(4, 1, 5)
            self.optimizer.zero_grad()
            loss = self.model(values).square().mean() + self.sparsifier.penalty()
            loss.backward()
            self.optimizer.step()
            self.losses.append(float(loss.detach()))

    def save(self):
        stream = io.BytesIO()
        parts = (self.model, self.optimizer, self.sparsifier)
        torch.save([*(part.state_dict() for part in parts), torch.get_rng_state()], stream)
        return stream

    def resume(self, stream):
        stream.seek(0)
        model, optimizer, sparsifier, generator = torch.load(stream, weights_only=True)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.sparsifier.load_state_dict(sparsifier)
        torch.set_rng_state(generator)


@both
@settings(max_examples=6)
@given(st.integers(0, 8), st.integers(0, 2**20))
def test_peers_row_7_resumed_training_is_bit_identical(auxiliary, method, split, seed):
    whole = Run(method, seed)
    whole.train(split)
    stream = whole.save()
    whole.train(8 - split)
    resumed = Run(method, seed + 1)
    resumed.train(split % 3)
    resumed.resume(stream)
    assert resumed.sparsifier.step == split
    resumed.losses.clear()
    resumed.train(8 - split)
    assert resumed.losses == whole.losses[split:]
    assert resumed.sparsifier.step == 8
    for name, values in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], values)
    assert [p.sparsity for p in resumed.sparsifier.points()] == [p.sparsity for p in whole.sparsifier.points()]


def prepared(sparsifier, model=None):
    sparsifier.prepare(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) if model is None else model)
    return sparsifier


VD = {"penalty": 0.5, "begin": 1, "end": 5, "thresholds": (3.0,)}
L0 = {"penalty": 0.5, "begin": 1, "end": 5}


@pytest.mark.parametrize(
    ("saved", "here", "model", "named"),
    [
        (variational_dropout(**VD), l0_regularization(**L0), None, "VariationalDropout"),
        (l0_regularization(**L0), variational_dropout(**VD), None, "HardConcrete"),
        (variational_dropout(**VD), variational_dropout(**VD | {"penalty": 0.25}), None, r"penalty is 0\.5 there and 0\.25 here"),
        (l0_regularization(**L0), l0_regularization(**L0 | {"penalty": 0.25}), None, r"penalty is 0\.5 there and 0\.25 here"),
        (variational_dropout(**VD), variational_dropout(**VD | {"thresholds": (3.0, 1.0)}), None, "thresholds"),
        (variational_dropout(**VD), variational_dropout(**VD | {"begin": 0}), None, r"ramp\.begin is 1 there and 0 here"),
        (variational_dropout(**VD), variational_dropout(**VD | {"end": 9}), None, r"ramp\.end"),
        (variational_dropout(**VD), variational_dropout(**VD | {"shape": "cubic"}), None, r"ramp\.power"),
        (variational_dropout(**VD), variational_dropout(**VD, noise="position"), None, "noise"),
        (variational_dropout(**VD), variational_dropout(**VD, initial_log_sigma2=-9.0), None, "initial_log_sigma2"),
        (l0_regularization(**L0), l0_regularization(**L0, initial_log_alpha=1.0), None, "initial_log_alpha"),
        (l0_regularization(**L0), l0_regularization(**L0, seed=1), None, "seed is 0 there and 1 here"),
        (variational_dropout(**VD), variational_dropout(**VD, layers="0"), None, r"1\.weight is in the saved state and not here"),
        (variational_dropout(**VD, layers="0"), variational_dropout(**VD), None, r"1\.weight is here and not in the saved state"),
        (variational_dropout(**VD), variational_dropout(**VD), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)), r"1\.weight"),
        (
            magnitude_pruning(sparsity=0.5, begin=0, end=1, frequency=1),
            variational_dropout(**VD),
            None,
            "another model, method or schedule",
        ),
    ],
)
def test_a_state_of_something_else_is_refused(saved, here, model, named):
    state = prepared(saved).state_dict()
    prepared(here, model)
    with pytest.raises(SparsebenchError, match=named) as caught:
        here.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert here.step == 0


@both
@pytest.mark.parametrize("state", [{}, None, [], {"step": 3}, {"description": {}}, {"description": 1, "step": 1}])
def test_what_is_no_state_is_refused(auxiliary, method, state):
    with pytest.raises(SparsebenchError, match=r"not the state_dict\(\) of a sparsifier"):
        prepared(method(penalty=1.0)).load_state_dict(state)


@both
def test_a_state_is_plain_values(auxiliary, method):
    np_like = {"thresholds": torch.linspace(0, 5, 11).double().numpy()} if auxiliary == "log_sigma2" else {}
    sparsifier = prepared(method(penalty=1.0, **np_like))
    stream = io.BytesIO()
    torch.save(sparsifier.state_dict(), stream)
    stream.seek(0)
    sparsifier.load_state_dict(torch.load(stream, weights_only=True))
