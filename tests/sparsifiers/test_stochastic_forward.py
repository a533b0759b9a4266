"""The forward pass of layers with noisy weights: exact for known noise, and the noise itself."""

import random

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import kstest
from torch import nn

from sparsebench import l0_regularization, variational_dropout
from sparsebench.sparsifiers.stochastic import variational_dropout as module_under_test
from sparsebench.sparsifiers.stochastic.noise import normal_like

PADDING_MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


@pytest.fixture
def drawn(monkeypatch):
    """The noise that the layers draw, in order."""
    noises = []

    def recording(tensor):
        noises.append(normal_like(tensor))
        return noises[-1]

    monkeypatch.setattr(module_under_test, "normal_like", recording)
    return noises


def converted(layer, method=variational_dropout, **arguments):
    """The layer in float64 with random distribution parameters, converted."""
    layer = layer.double()
    method(penalty=1.0, layers="*", **arguments).prepare(layer)
    auxiliary = layer.log_sigma2 if method is variational_dropout else layer.log_alpha
    with torch.no_grad():
        auxiliary.copy_(torch.randn(auxiliary.shape, generator=torch.Generator().manual_seed(3)) * 2.0 - 1.0)
    return layer


def convolve(values, weight, stride, padding, dilation, groups, mode):
    """Convolution by its definition."""
    dimensions = weight.ndim - 2
    values = np.pad(values, [(0, 0), (0, 0), *((p, p) for p in padding)], mode=PADDING_MODES[mode])
    sizes = [(values.shape[2 + i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in range(dimensions)]
    result = np.zeros((values.shape[0], weight.shape[0], *sizes))
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    for unit in range(weight.shape[0]):
        first = unit // outputs * inputs
        for position in np.ndindex(*sizes):
            for tap in np.ndindex(*weight.shape[2:]):
                at = tuple(p * s + t * d for p, s, t, d in zip(position, stride, tap, dilation, strict=True))
                result[(slice(None), unit, *position)] += (
                    values[(slice(None), slice(first, first + inputs), *at)] @ weight[(unit, slice(None), *tap)]
                )
    return result


def arrays(layer):
    return layer.weight.detach().numpy(), np.exp(layer.log_sigma2.detach().numpy())


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 9)),
    (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular", bias=False), (3, 2, 5)),
    (nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=4), (2, 4, 6, 5)),
    (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 2, 4, 4)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (1, 2, 4, 4)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate", stride=2), (1, 2, 4, 4)),
    (nn.Conv2d(3, 2, 1, bias=False), (2, 3, 3, 3)),
    (nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=1, dilation=(1, 1, 2), groups=2), (2, 2, 3, 4, 4)),
    (nn.Conv3d(1, 2, (2, 1, 2), padding=(1, 0, 1), padding_mode="circular"), (1, 1, 3, 2, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda value: str(value))
def test_convolution_has_the_mean_and_deviation_of_the_local_reparameterization(layer, shape, drawn):
    layer = converted(layer)
    values = torch.randn(shape, dtype=torch.float64)
    found = layer(values)
    weight, variance = arrays(layer)
    options = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    mean = convolve(values.numpy(), weight, *options)
    if layer.bias is not None:
        mean += layer.bias.detach().numpy().reshape(1, -1, *[1] * (mean.ndim - 2))
    deviation = np.sqrt(convolve(values.numpy() ** 2, variance, *options) + 1e-8)
    (noise,) = drawn
    assert noise.shape == found.shape
    np.testing.assert_allclose(found.detach(), mean + deviation * noise.numpy(), rtol=0, atol=1e-11)
    layer.eval()
    np.testing.assert_allclose(layer(values).detach(), mean, rtol=0, atol=1e-11)


def test_convolution_with_padding_same_equals_the_one_with_numbers(drawn):
    same, numbers = nn.Conv2d(2, 3, 3, padding="same"), nn.Conv2d(2, 3, 3, padding=1)
    numbers.load_state_dict(same.state_dict())
    values = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    outputs = []
    for layer in (converted(same), converted(numbers)):
        torch.manual_seed(0)
        outputs.append(layer(values))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("noise", "shape", "noise_shape"),
    [
        ("example", (5,), (3,)),
        ("example", (4, 5), (4, 3)),
        ("example", (4, 6, 5), (4, 1, 3)),
        ("example", (2, 3, 4, 5), (2, 1, 1, 3)),
        ("position", (4, 5), (4, 3)),
        ("position", (4, 6, 5), (4, 6, 3)),
        ("position", (2, 3, 4, 5), (2, 3, 4, 3)),
    ],
)
def test_linear_has_the_mean_and_deviation_of_the_local_reparameterization(bias, noise, shape, noise_shape, drawn):
    layer = converted(nn.Linear(5, 3, bias=bias), noise=noise)
    values = torch.randn(shape, dtype=torch.float64)
    found = layer(values)
    weight, variance = arrays(layer)
    mean = values.numpy() @ weight.T + (layer.bias.detach().numpy() if bias else 0.0)
    deviation = np.sqrt(values.numpy() ** 2 @ variance.T + 1e-8)
    assert drawn[0].shape == noise_shape
    assert len(drawn) == 1
    np.testing.assert_allclose(found.detach(), mean + deviation * drawn[0].numpy(), rtol=0, atol=1e-12)
    layer.eval()
    np.testing.assert_allclose(layer(values).detach(), mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", ["example", "position"])
@pytest.mark.parametrize("padding_idx", [None, 0, -1])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 4)])
def test_embedding_draws_for_every_position(noise, padding_idx, shape, drawn):
    layer = converted(nn.Embedding(4, 3, padding_idx=padding_idx), noise=noise)
    indices = torch.randint(4, shape)
    found = layer(indices)
    weight, variance = arrays(layer)
    rows = indices.numpy()
    assert drawn[0].shape == (*shape, 3)
    expected = weight[rows] + np.sqrt(variance[rows] + 1e-8) * drawn[0].numpy()
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=1e-13)
    layer.eval()
    np.testing.assert_array_equal(layer(indices).detach(), weight[rows])


def test_padding_row_of_an_embedding_gets_no_gradient_from_the_output():
    layer = converted(nn.Embedding(4, 3, padding_idx=1))
    layer(torch.tensor([[0, 1, 1, 2]])).square().sum().backward()
    for parameter in (layer.weight, layer.log_sigma2):
        assert parameter.grad[1].count_nonzero() == 0
        assert parameter.grad[0].count_nonzero() == 3


def test_scale_grad_by_freq_stays():
    plain = nn.Embedding(4, 3, scale_grad_by_freq=True).double()
    indices = torch.tensor([0, 0, 0, 1])
    plain(indices).sum().backward()
    layer = converted(nn.Embedding(4, 3, scale_grad_by_freq=True))
    layer(indices).sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def standardized(layer, values):
    """The noise behind an output, recovered from outside."""
    with torch.no_grad():
        output = layer.train()(values)
        mean = layer.eval()(values)
        bias, weight = getattr(layer, "bias", None), layer.weight.detach().clone()
        layer.weight.copy_(layer.log_sigma2.exp())
        if bias is not None:
            kept_bias = bias.detach().clone()
            bias.zero_()
        variance = layer(values if values.dtype == torch.int64 else values.square())
        layer.weight.copy_(weight)
        if bias is not None:
            bias.copy_(kept_bias)
        return (output - mean) / (variance + 1e-8).sqrt()


def assert_standard_normal(noise):
    noise = noise.flatten().numpy()
    assert abs(noise.mean()) < 4.5 / np.sqrt(noise.size)
    assert abs(noise.var() - 1.0) < 4.5 * np.sqrt(2.0 / noise.size)
    assert kstest(noise, "norm").pvalue > 1e-4


def assert_uncorrelated(first, second):
    assert abs(float((first * second).mean())) < 4.5 / np.sqrt(first.numel())


def test_real_noise_of_linear_layers_is_shared_over_positions_of_an_example_only():
    torch.manual_seed(11)
    layer = converted(nn.Linear(5, 64))
    noise = standardized(layer, torch.randn(64, 6, 5, dtype=torch.float64))
    for position in range(1, 6):
        torch.testing.assert_close(noise[:, position], noise[:, 0], rtol=0, atol=1e-9)
    assert_standard_normal(noise[:, 0])
    assert_uncorrelated(noise[1:, 0], noise[:-1, 0])
    assert_uncorrelated(noise[:, 0, 1:], noise[:, 0, :-1])
    assert noise[:, 0].unique().numel() > 0.99 * noise[:, 0].numel()


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: converted(nn.Linear(5, 16), noise="position"), (16, 20, 5)),
        (lambda: converted(nn.Linear(5, 64)), (128, 5)),
        (lambda: converted(nn.Conv1d(2, 16, 3)), (16, 2, 22)),
        (lambda: converted(nn.Conv2d(2, 8, 3), noise="example"), (8, 2, 10, 10)),
        (lambda: converted(nn.Conv3d(1, 4, 2), noise="example"), (8, 1, 6, 6, 6)),
    ],
)
def test_real_noise_is_independent_for_every_output_element(make, shape):
    torch.manual_seed(12)
    noise = standardized(make(), torch.randn(shape, dtype=torch.float64))
    assert_standard_normal(noise)
    for axis in range(noise.dim()):
        size = noise.shape[axis]
        assert_uncorrelated(noise.narrow(axis, 0, size - 1), noise.narrow(axis, 1, size - 1))


def test_real_noise_of_embeddings_differs_between_positions_of_the_same_token():
    torch.manual_seed(13)
    noise = standardized(converted(nn.Embedding(3, 16)), torch.full((8, 32), 2))
    assert_standard_normal(noise)
    assert_uncorrelated(noise[:, 1:], noise[:, :-1])
    assert_uncorrelated(noise[1:], noise[:-1])


def test_l0_output_for_given_uniforms():
    layer = converted(nn.Conv2d(2, 3, 3, padding=1, groups=1), l0_regularization)
    values = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    torch.manual_seed(5)
    uniform = torch.rand(layer.weight.shape, dtype=torch.float64).numpy()
    torch.manual_seed(5)
    found = layer(values).detach()
    weight, log_alpha = layer.weight.detach().numpy(), layer.log_alpha.detach().numpy()
    concrete = expit((np.log(uniform + 1e-8) - np.log(1 - uniform) + log_alpha) / (2 / 3))
    gated = weight * np.clip(concrete * 1.2 - 0.1, 0.0, 1.0)
    mean = convolve(values.numpy(), gated, (1, 1), (1, 1), (1, 1), 1, "zeros")
    np.testing.assert_allclose(found, mean + layer.bias.detach().numpy().reshape(1, -1, 1, 1), rtol=0, atol=1e-12)
    layer.eval()
    gated = weight * np.clip(expit(log_alpha) * 1.2 - 0.1, 0.0, 1.0)
    mean = convolve(values.numpy(), gated, (1, 1), (1, 1), (1, 1), 1, "zeros")
    np.testing.assert_allclose(
        layer(values).detach(), mean + layer.bias.detach().numpy().reshape(1, -1, 1, 1), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("layer", "values"),
    [(nn.Linear(5, 3), torch.ones(4, 5)), (nn.Conv1d(2, 3, 2), torch.ones(4, 2, 5)), (nn.Embedding(4, 3), torch.ones(4).long())],
)
def test_l0_samples_once_for_the_whole_batch_and_anew_in_each_pass(layer, values):
    layer = converted(layer, l0_regularization)
    values = values if values.dtype == torch.int64 else values.double()
    torch.manual_seed(1)
    first, second = layer(values), layer(values)
    for example in first[1:]:
        torch.testing.assert_close(example, first[0], rtol=0, atol=1e-14)
    assert not torch.equal(first, second)


LAYERS = [
    (lambda: nn.Linear(5, 16), lambda: torch.ones(4, 3, 5)),
    (lambda: nn.Conv2d(4, 8, 3), lambda: torch.ones(2, 4, 5, 5).to(memory_format=torch.channels_last)),
    (lambda: nn.Conv3d(4, 8, 2), lambda: torch.ones(2, 4, 3, 3, 3).to(memory_format=torch.channels_last_3d)),
    (lambda: nn.Embedding(4, 16), lambda: torch.ones(3, 2).long()),
]


@pytest.mark.parametrize("method", [variational_dropout, l0_regularization])
@pytest.mark.parametrize(("make", "values"), LAYERS)
def test_noise_comes_from_the_default_generator_and_no_other(method, make, values):
    layer = make()
    if isinstance(layer, nn.Conv2d):
        layer = layer.to(memory_format=torch.channels_last)
    method(penalty=1.0, layers="*").prepare(layer)
    other = torch.Generator().manual_seed(4)
    others = [other.get_state(), random.getstate(), np.random.get_state()[1].copy()]  # noqa: NPY002
    torch.manual_seed(21)
    first, second = layer(values()), layer(values())
    torch.manual_seed(21)
    again = layer(values())
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    torch.manual_seed(22)
    assert not torch.equal(layer(values()), first)
    assert torch.equal(other.get_state(), others[0])
    assert random.getstate() == others[1]
    assert (np.random.get_state()[1] == others[2]).all()  # noqa: NPY002


@pytest.mark.parametrize("method", [variational_dropout, l0_regularization])
def test_evaluation_draws_nothing(method):
    layer = nn.Linear(5, 3)
    sparsifier = method(penalty=1.0)
    sparsifier.prepare(layer)
    layer.eval()
    before = torch.get_rng_state()
    layer(torch.ones(2, 5))
    for point in sparsifier.points():
        with point:
            layer(torch.ones(2, 5))
    sparsifier.penalty()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(6, 50),
        torch.zeros(50, 6).t(),
        torch.zeros(4, 8, 5, 6).to(memory_format=torch.channels_last),
        torch.zeros(2, 4, 3, 5, 6).to(memory_format=torch.channels_last_3d),
        torch.zeros(4, 8, 10).permute(2, 0, 1),
        torch.zeros(4, 1, 100),
        torch.zeros(20, 20, dtype=torch.float64),
        torch.zeros(20, 20, dtype=torch.bfloat16),
        torch.zeros(3, 0),
        torch.zeros(()),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.stride()}-{tensor.dtype}",
)
def test_normal_like_keeps_shape_dtype_and_memory_format(tensor):
    torch.manual_seed(7)
    noise = normal_like(tensor)
    assert noise.shape == tensor.shape
    assert noise.dtype == tensor.dtype
    assert noise.stride() == tensor.stride()
    torch.manual_seed(7)
    assert torch.equal(normal_like(tensor), noise)
    if tensor.numel() >= 300:
        noise = noise.double()
        assert abs(float(noise.mean())) < 4.5 / np.sqrt(noise.numel())
        assert abs(float(noise.var()) - 1.0) < 4.5 * np.sqrt(2.0 / noise.numel())
        # Every element is written, each by a draw of its own.
        assert tensor.dtype == torch.bfloat16 or noise.unique().numel() == noise.numel()
        for axis, size in enumerate(noise.shape):
            if size > 1:
                assert_uncorrelated(noise.narrow(axis, 0, size - 1), noise.narrow(axis, 1, size - 1))


def test_channels_last_noise_is_standard_normal():
    torch.manual_seed(14)
    noise = normal_like(torch.zeros(8, 16, 12, 12, dtype=torch.float64).to(memory_format=torch.channels_last))
    assert_standard_normal(noise)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [nn.Linear, nn.Embedding])
@pytest.mark.parametrize("method", [variational_dropout, l0_regularization])
def test_half_precision_stays(method, dtype, make):
    layer = make(5, 3).to(dtype)
    sparsifier = method(penalty=1.0, layers="*")
    sparsifier.prepare(layer)
    values = torch.ones(2, 5, dtype=dtype) if make is nn.Linear else torch.ones(2, dtype=torch.int64)
    for parameter in layer.parameters():
        assert parameter.dtype == dtype
    assert layer(values).dtype == dtype
    assert layer.eval()(values).dtype == dtype
    for point in sparsifier.points():
        with point:
            assert layer(values).dtype == dtype
    assert all(mask.dtype == torch.bool for mask in sparsifier.masks().values())
    assert sparsifier.finalize().weight.dtype == dtype


@pytest.mark.parametrize("method", [variational_dropout, l0_regularization])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_peers_row_18_autocast_gives_the_dtype_of_the_plain_layer(method, dtype):
    for layer, values in ((nn.Linear(5, 3), torch.randn(2, 4, 5)), (nn.Conv2d(2, 3, 2), torch.randn(2, 2, 4, 4))):
        method(penalty=1.0).prepare(layer)
        with torch.autocast("cpu", dtype=dtype):
            output = layer(values)
        assert output.dtype == dtype
        output.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())
