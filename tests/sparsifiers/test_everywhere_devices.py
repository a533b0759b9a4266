"""Models that move to their device after `prepare`, as Lightning moves them."""

import pytest
import torch
from everywhere_networks import MASKED, METHODS, STOCHASTIC, momentum, network

after_masks_follow = pytest.mark.xfail(
    strict=True, reason="MaskedSparsifier keeps its masks where the weights were at prepare(): attach() must move them along"
)


# The device "meta" stands for any other than the CPU: tensors there have a place and a shape, which is all that is asked here.
@pytest.mark.parametrize("method", [*(pytest.param(method, marks=after_masks_follow) for method in MASKED), *STOCHASTIC])
def test_masks_are_where_the_weights_are(method):
    model, sparsifier = network(), METHODS[method]()
    sparsifier.prepare(model)
    model.to("meta")
    sparsifier.attach(momentum(model.parameters()))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {mask.device.type for mask in sparsifier.masks().values()} == {"meta"}
    assert sparsifier.penalty().device == torch.device("meta")
