"""Masks of one byte for each weight: nothing but the memory differs."""

import pickle
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_toys import classifier, train
from torch import nn

import sparsebench
from sparsebench.sparsifiers.masked import masking

METHODS = {
    "gone": lambda: sparsebench.magnitude_pruning(sparsity=0.8, begin=2, end=8, frequency=3, policy="gone"),
    "returning": lambda: sparsebench.magnitude_pruning(sparsity=0.8, begin=2, end=8, frequency=3, policy="returning"),
    "blocks": lambda: sparsebench.magnitude_pruning(sparsity=0.5, begin=2, end=8, frequency=3, structure="block:2x1"),
    "rigl": lambda: sparsebench.rigl(sparsity=0.8, begin=2, end=8, frequency=3),
    "set": lambda: sparsebench.set_training(sparsity=0.8, begin=2, end=8, frequency=3),
}
OPTIMIZERS = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1),
    "ASGD, which has gradients masked": lambda parameters: torch.optim.ASGD(parameters, lr=0.01),
    "Rprop, whose state begins elsewhere": lambda parameters: torch.optim.Rprop(parameters, lr=0.01),
}


def trained(build, optimizer_of, when, memory_format=torch.contiguous_format, dtype=torch.float32):
    model = classifier().to(dtype=dtype, memory_format=memory_format)
    sparsifier = build()
    if when == "before":
        assert sparsifier.keep_byte_masks() is sparsifier
    sparsifier.prepare(model)
    if when == "after":
        sparsifier.keep_byte_masks()
    optimizer = optimizer_of(model.parameters())
    sparsifier.attach(optimizer)
    train(model, optimizer, range(10))
    return model, sparsifier


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_training_is_the_same_bit_by_bit(method, optimizer, when):
    model, sparsifier = trained(METHODS[method], OPTIMIZERS[optimizer], "never")
    other, in_bytes = trained(METHODS[method], OPTIMIZERS[optimizer], when)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    masks, same = sparsifier.masks(), in_bytes.masks()
    assert all(same[name].dtype == torch.bool and torch.equal(mask, same[name]) for name, mask in masks.items())
    assert sparsifier.sparsity == in_bytes.sparsity > 0.4
    assert sparsifier.training_work() == in_bytes.training_work()


def test_channels_last():
    model, _ = trained(METHODS["returning"], OPTIMIZERS["Adam"], "never", torch.channels_last)
    other, _ = trained(METHODS["returning"], OPTIMIZERS["Adam"], "before", torch.channels_last)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize("load_in_bytes", [False, True])
@pytest.mark.parametrize("method", ["gone", "returning", "rigl"])
def test_saved_states_are_the_same_and_serve_both(method, load_in_bytes):
    model, sparsifier = trained(METHODS[method], OPTIMIZERS["Adam"], "before")
    state = sparsifier.state_dict()
    fresh = METHODS[method]()
    fresh.prepare(other := classifier())
    if load_in_bytes:
        fresh.keep_byte_masks()
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(pickle.loads(pickle.dumps(state)))
    again = fresh.state_dict()
    for part in ("masks", "aside"):
        assert all(torch.equal(value, again[part][name]) for name, value in state[part].items())


def bytes_of_masks(sparsifier):
    return sum(mask.numel() * mask.element_size() for mask in sparsifier._weights.masks)


def test_a_byte_is_what_a_mask_takes():
    model = nn.Linear(100, 50)
    sparsifier = METHODS["gone"]()
    sparsifier.prepare(model)
    assert bytes_of_masks(sparsifier) == 4 * 5000
    sparsifier.keep_byte_masks()
    assert bytes_of_masks(sparsifier) == 5000
    sparsifier.load_state_dict(sparsifier.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    for _ in range(3):
        optimizer.step()
    assert bytes_of_masks(sparsifier) == 5000
    sparsifier.prepare(nn.Linear(10, 10))
    assert bytes_of_masks(sparsifier) == 100


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.sampled_from([None, torch.uint8]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_products_and_what_is_set_aside_are_those_of_a_plain_product(sizes, dtype, mask_dtype, transposed, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(3, size, generator=generator).to(dtype) for size in sizes]
    masks = [(torch.rand(3, size, generator=generator) < 0.5).to(mask_dtype or dtype) for size in sizes]
    if transposed:
        weights, masks = ([tensor.T for tensor in tensors] for tensors in (weights, masks))
    asides, products = [torch.empty_like(weight) for weight in weights], [weight.clone() for weight in weights]
    before = [weight.clone() for weight in weights]
    with mock.patch.object(masking, "CHUNK", 7):
        masking.multiply(products, masks)
        masking.set_aside(weights, masks, asides)
    for weight, mask, aside, product, old in zip(weights, masks, asides, products, before, strict=True):
        assert torch.equal(product, old * mask.to(dtype))
        assert torch.equal(weight, old * mask.to(dtype))
        assert torch.equal(aside, old * (1 - mask.to(dtype)))
