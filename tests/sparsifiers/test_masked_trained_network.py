"""PEERS 24: random masks on a network that was trained before."""

import warnings

import pytest
import torch
from torch import nn

import sparsebench

RANDOM = {
    "static": lambda: sparsebench.static_sparse_training(sparsity=0.8),
    "set": lambda: sparsebench.set_training(sparsity=0.8, begin=0, end=8, frequency=4),
    "rigl": lambda: sparsebench.rigl(sparsity=0.8, begin=0, end=8, frequency=4),
    "random, at once": lambda: sparsebench.random_pruning(sparsity=0.8, begin=0, end=0, frequency=1),
}
OTHERS = {
    "magnitude, at once": lambda: sparsebench.magnitude_pruning(sparsity=0.8, begin=0, end=0, frequency=1),
    "random, later": lambda: sparsebench.random_pruning(sparsity=0.8, begin=4, end=8, frequency=4),
}
NORMALIZATIONS = [lambda: nn.BatchNorm1d(10), lambda: nn.LayerNorm(10), lambda: nn.GroupNorm(2, 10)]


def network(normalization, trained):
    model = nn.Sequential(nn.Linear(10, 10), normalization(), nn.Linear(10, 2))
    if trained:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(8, 10, generator=torch.Generator().manual_seed(0))).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("method", RANDOM)
def test_peers_row_24_random_masks_on_a_trained_network_are_warned_of(method, normalization):
    with pytest.warns(UserWarning, match=r"random masks drop 80\.0 % .* trained before \(the gains of '1' are not equal\)"):
        RANDOM[method]().prepare(network(normalization, trained=True))


@pytest.mark.parametrize("method", RANDOM)
def test_a_new_network_is_not_warned_of(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for normalization in NORMALIZATIONS:
            model = network(normalization, trained=False)
            RANDOM[method]().prepare(model)
            # As at the end of residual branches.
            nn.init.zeros_(model[1].weight)
            RANDOM[method]().prepare(model)


@pytest.mark.parametrize("method", OTHERS)
def test_masks_that_are_not_random_or_come_later_are_not_warned_of(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OTHERS[method]().prepare(network(NORMALIZATIONS[0], trained=True))
