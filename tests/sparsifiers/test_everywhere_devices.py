"""Models that move to their device after `prepare`, as Lightning moves them."""

import pytest
import torch
from everywhere_networks import METHODS, momentum, network


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
