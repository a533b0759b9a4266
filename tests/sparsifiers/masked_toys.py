"""Small models and training loops for the tests of the masked engine."""

import copy
import inspect

import torch
from torch import nn

import sparsebench

# The models are so small that sharing their arithmetic among threads makes it many times slower.
torch.set_num_threads(1)


class Classifier(nn.Module):
    """A convolution, a normalization and two linear layers on 2 x 6 x 6 images."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3)
        self.normalization = nn.GroupNorm(2, 4)
        self.hidden = nn.Linear(4 * 16, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, images):
        features = self.normalization(self.convolution(images)).relu()
        return self.head(self.hidden(features.flatten(1)).relu())


class LanguageModel(nn.Module):
    """An embedding, a hidden layer and a softmax layer, tied to the embedding or not."""

    def __init__(self, tied, sparse=False):
        super().__init__()
        self.embedding = nn.Embedding(11, 6, sparse=sparse)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, words):
        return self.head(self.hidden(self.embedding(words)).relu())


def classifier(seed=0, memory_format=torch.contiguous_format):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classifier().to(memory_format=memory_format)


def matrices(seed=0):
    """Linear layers without biases: every parameter is a matrix."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 10, bias=False), nn.Tanh(), nn.Linear(10, 3, bias=False))


def batch(step, shape=(8, 2, 6, 6), classes=3):
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(shape, generator=generator), torch.randint(classes, shape[:1], generator=generator)


def loss_of(model, step, shape=(8, 2, 6, 6)):
    inputs, targets = batch(step, shape)
    return nn.functional.cross_entropy(model(inputs), targets)


def train(model, optimizer, steps, shape=(8, 2, 6, 6), after=None):
    """An ordinary training loop over the steps of `steps`."""
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step, shape).backward()
        optimizer.step()
        if after is not None:
            after(step)


def magnitude(**changes):
    """Magnitude pruning with small numbers, some of them changed."""
    return sparsebench.magnitude_pruning(**{"sparsity": 0.8, "begin": 2, "end": 10, "frequency": 3} | changes)


def pruned(steps=12, model=None, **changes):
    model = classifier() if model is None else model
    sparsifier = magnitude(**changes)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(steps))
    return model, optimizer, sparsifier


def everything(*parts):
    """Copies of the states of a model, an optimizer, a sparsifier."""
    return copy.deepcopy([part.state_dict() for part in parts])


def same(first, second):
    """Whether two states are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def dropped_weights_are_zero(model, sparsifier):
    parameters = dict(model.named_parameters())
    return all(bool((parameters[name].detach()[~mask] == 0).all()) for name, mask in sparsifier.masks().items())


def optimizer_cases():
    """Every optimizer class of torch.optim, in every variant that runs on this machine: (class, options)."""
    options = {
        "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"maximize": True}],
        "Adam": [{}, {"amsgrad": True, "weight_decay": 0.1}],
        "AdamW": [{"weight_decay": 0.1}, {"weight_decay": 0.1, "amsgrad": True}],
        "Adagrad": [{}, {"initial_accumulator_value": 0.3, "weight_decay": 0.1}],
        "NAdam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
        "RAdam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
        "RMSprop": [{}, {"centered": True, "momentum": 0.9, "weight_decay": 0.1}],
        "ASGD": [{"weight_decay": 0.1}, {"t0": 2}],
        "LBFGS": [{"max_iter": 4}, {"max_iter": 4, "line_search_fn": "strong_wolfe"}],
    }
    cases = []
    for name, kind in sorted(vars(torch.optim).items()):
        if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
            continue
        for variant in options.get(name, [{}]):
            for implementation in ({}, {"foreach": True}, {"fused": True}):
                case = {"lr": 0.02} | variant | implementation
                if accepted(kind, case):
                    cases.append((kind, case))
    return cases


def accepted(kind, options):
    """Whether this class takes these options for parameters on the CPU."""
    if not set(options) <= set(inspect.signature(kind).parameters):
        return False
    try:
        kind([nn.Parameter(torch.ones(2, 2))], **options)
    except (RuntimeError, ValueError):
        return False
    return True


def case_name(case):
    kind, options = case
    return "-".join([kind.__name__, *(f"{name}={value}" for name, value in options.items() if name != "lr")])
