"""Models that move to their device after `prepare`, as Lightning moves them."""

import pytest
import torch
from everywhere_networks import METHODS, momentum, network

import sparsebench


# The device "meta" stands for any other than the CPU: tensors there have a place and a shape, which is all that is asked here.
@pytest.mark.parametrize("method", METHODS)
def test_masks_are_where_the_weights_are(method):
    model, sparsifier = network(), METHODS[method]()
    sparsifier.prepare(model)
    model.to("meta")
    sparsifier.attach(momentum(model.parameters()))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {mask.device.type for mask in sparsifier.masks().values()} == {"meta"}
    assert sparsifier.penalty().device == torch.device("meta")


@pytest.mark.parametrize("method", ["set_training", "rigl", "snfs"])
@pytest.mark.parametrize("when", ["before attach", "before the second step"])
def test_a_step_can_be_made_there(method, when):
    model = torch.nn.Linear(10, 10)
    sparsifier = getattr(sparsebench, method)(sparsity=0.5, begin=8, end=16, frequency=8)
    sparsifier.prepare(model)
    if when == "before attach":
        model.to("meta")
    optimizer = momentum(model.parameters())
    sparsifier.attach(optimizer)
    for _ in range(2):
        model(torch.zeros(2, 10, device=model.weight.device)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.state.clear()  # of the optimizer's own numbers torch takes no care
        model.to("meta")
    assert sparsifier.step == 2
    assert sparsifier.masks()["weight"].is_meta
