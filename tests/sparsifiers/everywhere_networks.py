"""Every method on one small network, and the loops that the tests of `test_everywhere_*` put it into."""

import torch
from torch import nn

import sparsebench

torch.set_num_threads(1)

_RAMP = {"sparsity": 0.8, "begin": 1, "end": 7, "frequency": 2}

MASKED = {
    "magnitude-returning": lambda: sparsebench.magnitude_pruning(**_RAMP),
    "magnitude-gone": lambda: sparsebench.magnitude_pruning(**_RAMP, policy="gone"),
    "magnitude-global": lambda: sparsebench.magnitude_pruning(**_RAMP, allocation="global"),
    "random": lambda: sparsebench.random_pruning(**_RAMP),
    "random-returning": lambda: sparsebench.random_pruning(**_RAMP, policy="returning", seed=3),
}
STOCHASTIC = {
    "variational-dropout": lambda: sparsebench.variational_dropout(penalty=0.003, begin=0, end=6),
    "variational-dropout-position": lambda: sparsebench.variational_dropout(penalty=0.003, begin=0, end=6, noise="position"),
    "l0": lambda: sparsebench.l0_regularization(penalty=0.003, begin=0, end=6),
}
_MOVES = {"sparsity": 0.8, "begin": 1, "end": 9, "frequency": 2, "allocation": "uniform", "seed": 3}
# Sparse from the first step on, or at once: masks hardly grow, but move.
AT_ONCE = {
    "one-shot": lambda: sparsebench.one_shot_pruning(sparsity=0.8, step=4, allocation="uniform"),
    "static": lambda: sparsebench.static_sparse_training(sparsity=0.8, allocation="uniform", seed=3),
    "set": lambda: sparsebench.set_training(**_MOVES),
    "rigl": lambda: sparsebench.rigl(**_MOVES),
    "snfs": lambda: sparsebench.snfs(**_MOVES),
    "snfs-own-momentum": lambda: sparsebench.snfs(**_MOVES, momentum=0.9),
}
METHODS = MASKED | AT_ONCE | STOCHASTIC


class Network(nn.Module):
    """A convolution, a normalization and linear layers, applied to [batch, 2, 6, 6] images; one of them at every position."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3)
        self.normalization = nn.GroupNorm(2, 4)
        self.mixing = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def features(self, images):
        """[batch, positions, channels]."""
        return self.normalization(self.convolution(images)).relu().flatten(2).transpose(1, 2)

    def forward(self, images):
        return self.head(self.mixing(self.features(images)).tanh().mean(1))


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network()


def start(method, make_optimizer=None, model=None):
    """A prepared network with its sparsifier and optimizer, attached."""
    model = network() if model is None else model
    sparsifier = METHODS[method]()
    sparsifier.prepare(model)
    optimizer = (make_optimizer or adam)(model.parameters())
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.02)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def batch(step, examples=8):
    generator = torch.Generator().manual_seed(500 + step)
    return torch.randn(examples, 2, 6, 6, generator=generator), torch.randint(3, (examples,), generator=generator)


def loss_of(model, images, targets, seed):
    """The loss; the noise of stochastic layers is a function of the seed."""
    torch.manual_seed(seed)
    return nn.functional.cross_entropy(model(images).float(), targets)


def train(model, sparsifier, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        (loss_of(model, *batch(step), seed=step) + sparsifier.penalty()).backward()
        optimizer.step()


def dropped_are_zero(model, sparsifier):
    parameters = dict(model.named_parameters())
    return all(bool((parameters[name].detach()[~mask] == 0).all()) for name, mask in sparsifier.masks().items())


def counts_are_exact(sparsifier, sparsity=0.8):
    """Dropped weights in every tensor, or in all together, after the last update."""
    masks = list(sparsifier.masks().values())
    dropped = [int((~mask).sum()) for mask in masks]
    description = sparsifier._description()
    if description["allocation"]["kind"] == "Global":
        return sum(dropped) == int(sparsity * sum(mask.numel() for mask in masks) + 0.5)
    each = [int(sparsity * mask.numel() + 0.5) for mask in masks]
    # By momentum weights move from layer to layer.
    return sum(dropped) == sum(each) if "momentum" in str(description.get("regrowth")) else dropped == each


def assert_same_weights(model, other, **tolerance):
    """Equal to the last bit, or within the tolerance given."""
    others = dict(other.named_parameters())
    assert [name for name, _ in model.named_parameters()] == list(others)
    for name, parameter in model.named_parameters():
        if tolerance:
            torch.testing.assert_close(parameter, others[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        else:
            assert torch.equal(parameter, others[name]), name
