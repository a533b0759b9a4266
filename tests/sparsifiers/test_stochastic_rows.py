"""Look-ups of noisy rows: only the rows that are asked for are sampled, and each of them once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from sparsebench import l0_regularization, variational_dropout
from sparsebench.sparsifiers.stochastic.sampled_weight import _numbered

TOKENS = torch.tensor([[5, 1, 5], [19, 1, 0]])


def noisy_weights(penalty, **options):
    return variational_dropout(penalty=penalty, noise="weight", **options)


def embedding(method, rows=20):
    layer = nn.Embedding(rows, 3).double()
    method(penalty=1.0, layers="*").prepare(layer)
    return layer


@given(st.lists(st.integers(0, 9), max_size=12))
def test_numbers_are_those_of_unique_up_to_order_and_below_the_count(indices):
    found = _numbered(torch.tensor(indices, dtype=torch.int64))
    expected = torch.unique(torch.tensor(indices, dtype=torch.int64), return_inverse=True)[1]
    assert torch.equal(found, expected)


def test_l0_rows_for_given_uniforms():
    layer = embedding(l0_regularization)
    torch.manual_seed(5)
    uniform = torch.rand(TOKENS.numel(), 3, dtype=torch.float64).numpy()
    torch.manual_seed(5)
    found = layer(TOKENS).detach()
    tokens = TOKENS.numpy()
    drawn = uniform[np.unique(tokens, return_inverse=True)[1].reshape(tokens.shape)]
    weight, log_alpha = layer.weight.detach().numpy()[tokens], layer.log_alpha.detach().numpy()[tokens]
    concrete = expit((np.log(drawn + 1e-8) - np.log(1 - drawn) + log_alpha) / (2 / 3))
    np.testing.assert_allclose(found, weight * np.clip(concrete * 1.2 - 0.1, 0.0, 1.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [l0_regularization, noisy_weights])
@pytest.mark.parametrize("rows", [20, 4])
def test_a_row_is_sampled_once_in_a_pass(method, rows):
    layer = embedding(method, rows)
    tokens = TOKENS % rows
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_().add_(float(parameter is layer.weight))
    first, second = layer(tokens).detach(), layer(tokens).detach()
    for row in tokens.unique():
        same = first[tokens == row]
        assert torch.equal(same, same[:1].expand_as(same))
    apart = torch.stack([first[tokens == row][0] for row in tokens.unique()])
    assert len(apart.unique(dim=0)) == len(apart)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("method", "auxiliary"),
    [(l0_regularization, "log_alpha"), (noisy_weights, "log_sigma2"), (variational_dropout, "log_sigma2")],
)
def test_gradients_reach_the_rows_that_were_asked_for_and_no_other(method, auxiliary):
    layer = embedding(method)
    tensors = tuple(tensor.detach().clone().requires_grad_() for tensor in (layer.weight, getattr(layer, auxiliary)))

    def forward(*tensors):
        torch.manual_seed(0)
        return functional_call(layer, dict(zip(("weight", auxiliary), tensors, strict=True)), (TOKENS,))

    assert gradcheck(forward, tensors, fast_mode=True)
    for gradient in torch.autograd.grad(forward(*tensors).sum(), tensors):
        reached = gradient.count_nonzero(dim=1).nonzero().flatten().tolist()
        assert set(reached) <= {0, 1, 5, 19}
        assert reached


@pytest.mark.parametrize("method", [l0_regularization, noisy_weights, variational_dropout])
def test_look_ups_compile_into_one_graph_with_the_same_numbers(method):
    layer = embedding(method)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    expected = layer(TOKENS)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(TOKENS), expected)
