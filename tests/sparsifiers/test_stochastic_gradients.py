"""Gradients through layers with noisy weights."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from sparsebench import l0_regularization, variational_dropout
from sparsebench.sparsifiers.stochastic.l0 import HardConcrete
from sparsebench.sparsifiers.stochastic.summed_divergence import summed_divergence
from sparsebench.sparsifiers.stochastic.variational_dropout import VariationalDropout

METHODS = {"log_sigma2": variational_dropout, "log_alpha": l0_regularization}
LAYERS = [
    (lambda: nn.Linear(3, 2), (2, 3)),
    (lambda: nn.Linear(3, 2), (2, 4, 3)),
    (lambda: nn.Conv1d(2, 2, 2, stride=2, padding=1), (1, 2, 4)),
    (lambda: nn.Conv2d(2, 4, 2, groups=2, padding=1, padding_mode="circular"), (1, 2, 3, 3)),
    (lambda: nn.Conv3d(1, 2, 2, dilation=(1, 2, 1)), (1, 1, 2, 3, 2)),
]


def check(layer, auxiliary_name, values, weight_scale=1.0):
    generator = torch.Generator().manual_seed(0)
    layer = layer.double()
    METHODS[auxiliary_name](penalty=1.0, layers="*").prepare(layer)
    names = ["weight", auxiliary_name, *(["bias"] if getattr(layer, "bias", None) is not None else [])]
    tensors = [
        (weight_scale * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)).requires_grad_(),
        torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64).requires_grad_(),
    ]
    if len(names) == 3:
        tensors.append(torch.randn(layer.bias.shape, generator=generator, dtype=torch.float64).requires_grad_())

    def forward(values, *tensors):
        torch.manual_seed(0)
        return functional_call(layer, dict(zip(names, tensors, strict=True)), (values,))

    assert gradcheck(forward, (values, *tensors), fast_mode=True)
    output = forward(values, *tensors)
    gradients = torch.autograd.grad(output.sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)
    return dict(zip(names, gradients, strict=True))


@pytest.mark.parametrize("auxiliary", METHODS)
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_gradients_with_respect_to_input_weight_auxiliary_and_bias(auxiliary, make, shape):
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gradients = check(make(), auxiliary, values)
    assert gradients["weight"].count_nonzero() > 0
    assert gradients[auxiliary].count_nonzero() > 0


@pytest.mark.parametrize("auxiliary", METHODS)
@pytest.mark.parametrize(("make", "shape"), LAYERS[1:3])
def test_gradients_at_zero_inputs_and_zero_weights(auxiliary, make, shape):
    check(make(), auxiliary, torch.zeros(shape, dtype=torch.float64, requires_grad=True))
    check(make(), auxiliary, torch.ones(shape, dtype=torch.float64, requires_grad=True), weight_scale=0.0)
    check(make(), auxiliary, torch.zeros(shape, dtype=torch.float64, requires_grad=True), weight_scale=0.0)


@pytest.mark.parametrize("auxiliary", METHODS)
def test_gradients_of_embeddings(auxiliary):
    gradients = check(nn.Embedding(4, 3), auxiliary, torch.tensor([[0, 1, 1], [2, 0, 2]]))
    assert gradients["weight"][3].count_nonzero() == 0
    assert gradients[auxiliary][3].count_nonzero() == 0


@pytest.mark.parametrize("distribution", [VariationalDropout(), HardConcrete()])
def test_gradients_of_the_divergence(distribution):
    weight = torch.tensor([0.3, -1.0, 2.0, 0.01], dtype=torch.float64, requires_grad=True)
    auxiliary = torch.tensor([-1.0, 0.5, -3.0, -9.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *tensors: summed_divergence(distribution, tensors[:1], tensors[1:]), (weight, auxiliary))


@pytest.mark.parametrize("method", METHODS.values())
def test_penalty_has_finite_gradients_at_zero_weights(method):
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(layer)
    (layer(torch.zeros(2, 3)).sum() + sparsifier.penalty()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS.values())
def test_zero_inputs_and_zero_weights_have_finite_gradients_in_half_precision(method, dtype):
    """1e-8 is 0 in float16."""
    layer = nn.Linear(3, 2).to(dtype)
    nn.init.zeros_(layer.weight)
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(layer)
    (layer(torch.zeros(2, 3, dtype=dtype)).sum() + sparsifier.penalty()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gates_learn_exactly_where_they_are_neither_0_nor_1(dtype):
    torch.manual_seed(0)
    weight = torch.ones(20_000, dtype=dtype)
    log_alpha = (4.0 * torch.randn(20_000)).to(dtype).requires_grad_()
    gated = HardConcrete().sample_weight(weight, log_alpha, torch.rand(20_000).to(dtype).clamp(max=0.99))
    (gradient,) = torch.autograd.grad(gated.sum(), log_alpha)
    assert (gated == 0).any()
    assert (gated == 1).any()
    assert not gradient[(gated == 0) | (gated == 1)].any()
    assert (gradient[(gated > 0) & (gated < 1)] > 0).all()
    large = torch.autograd.grad(HardConcrete().sample_weight(weight, log_alpha, torch.full_like(weight, 0.5)).sum(), log_alpha)[0]
    scaled = torch.autograd.grad(
        HardConcrete().sample_weight(weight, log_alpha, torch.full_like(weight, 0.5)), log_alpha, torch.full_like(weight, 6e4)
    )[0]
    assert scaled.isfinite().all()
    assert torch.allclose(scaled.float(), 6e4 * large.float(), rtol=0.02, atol=60.0)


@pytest.mark.parametrize("method", METHODS.values())
def test_penalty_of_a_large_layer_is_finite_in_half_precision(method):
    half, single = nn.Linear(400, 400).half(), nn.Linear(400, 400)
    with torch.no_grad():
        single.weight.copy_(half.weight)
    penalties = []
    for layer in (half, single):
        sparsifier = method(penalty=1.0)
        sparsifier.prepare(layer)
        penalties.append(float(sparsifier.penalty().detach()))
    assert penalties[0] > 65504
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-3)


@pytest.mark.parametrize("method", METHODS.values())
def test_activation_checkpointing_gives_the_same_gradients(method):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    method(penalty=1.0).prepare(model)
    values = torch.randn(5, 4)
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        torch.manual_seed(3)
        run(values).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("method", METHODS.values())
def test_peers_row_16_compiles_without_graph_breaks(method):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    sparsifier = method(penalty=1e-3)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(lr=0.1))
    sparsifier.attach(optimizer)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        (compiled(torch.ones(5, 4)).square().sum() + sparsifier.penalty()).backward()
        optimizer.step()
    assert sparsifier.step == 2
    assert not torch.equal(compiled(torch.ones(5, 4)), compiled(torch.ones(5, 4)))
    for point in sparsifier.points():
        with point:
            inside = compiled(torch.ones(5, 4))
            assert torch.equal(inside, model(torch.ones(5, 4)))
    torch._dynamo.reset()
