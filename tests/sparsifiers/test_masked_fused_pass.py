"""What masks cost in a step between two updates: operations that take all tensors at once, and no hooks but the optimizer's."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparsebench


class Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function._overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


class Mixing(torch.optim.SGD):
    """An optimizer that the package does not know: it might let the gradient of one weight reach another."""


def chain(layers):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(5, 5) for _ in range(layers)))


def operations_of_a_step(layers, optimizer_type, policy, sparse=True):
    model = chain(layers)
    optimizer = optimizer_type(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
    if sparse:
        sparsifier = sparsebench.magnitude_pruning(sparsity=0.6, begin=0, end=100, frequency=100, policy=policy)
        sparsifier.prepare(model)
        sparsifier.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        model(torch.ones(2, 5)).sum().backward()
        with Operations() as operations:
            optimizer.step()
    return operations.counts


@pytest.mark.parametrize("policy", ["gone", "returning"])
@pytest.mark.parametrize(("optimizer_type", "gradients"), [(torch.optim.SGD, {}), (Mixing, {"_foreach_mul_": 1})])
def test_peers_row_9_one_pass_masks_all_tensors_of_a_step(optimizer_type, gradients, policy):
    """One product for each weight after the step; before it all gradients at once too where the optimizer may mix them."""
    for layers in (2, 40):
        own = operations_of_a_step(layers, optimizer_type, policy)
        own.subtract(operations_of_a_step(layers, optimizer_type, policy, sparse=False))
        assert {name: count for name, count in own.items() if count} == {"mul_": layers} | gradients


def test_peers_row_9_weights_in_parts_are_masked_at_once():
    """As those on a device are, where each operation by itself is a launch."""
    torch.manual_seed(0)
    model = nn.ModuleList(nn.MultiheadAttention(4, 1) for _ in range(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=0, frequency=1)
    sparsifier.prepare(model)
    sparsifier.attach(optimizer)
    with Operations() as operations:
        optimizer.step()
    assert operations.counts["_foreach_mul_"] == 1
    assert operations.counts["mul_"] == 0


@pytest.mark.parametrize("build", [sparsebench.magnitude_pruning, sparsebench.random_pruning])
def test_peers_row_9_no_tensor_or_module_has_a_hook(build):
    model = chain(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = build(sparsity=0.6, begin=0, end=100, frequency=100)
    sparsifier.prepare(model)
    sparsifier.attach(optimizer)
    for module in model.modules():
        hooks = {name: held for name, held in vars(module).items() if "hooks" in name and held}
        assert hooks == {}
    for parameter in model.parameters():
        assert not parameter._backward_hooks
        assert not getattr(parameter, "_post_accumulate_grad_hooks", None)
    assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == (1, 1)
