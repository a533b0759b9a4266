"""The formulas of variational dropout and L0 regularization against NumPy and SciPy in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from torch import nn

from sparsebench import l0_regularization, variational_dropout
from sparsebench.sparsifiers.stochastic.l0 import HardConcrete, evaluation_gate, sample_gate
from sparsebench.sparsifiers.stochastic.summed_divergence import CHUNK, summed_divergence
from sparsebench.sparsifiers.stochastic.variational_dropout import VariationalDropout, log_alpha

K1, K2, K3 = 0.63576, 1.87320, 1.48695
BETA, GAMMA, ZETA = 2.0 / 3.0, -0.1, 1.1

THETA = st.one_of(
    st.just(0.0), st.floats(-50.0, 50.0), st.floats(-1e-3, 1e-3), st.floats(-1e-9, 1e-9), st.sampled_from([1e-4, -1e-4])
)
LOG_SIGMA2 = st.floats(-60.0, 40.0)
PAIRS = st.lists(st.tuples(THETA, LOG_SIGMA2), min_size=1, max_size=20)


def expected_log_alpha(theta, log_sigma2):
    return log_sigma2 - np.log(theta**2 + 1e-8)


def expected_kl(theta, log_sigma2):
    clipped = np.clip(expected_log_alpha(theta, log_sigma2), -8.0, 8.0)
    negative = K1 * expit(K2 + K3 * clipped) - 0.5 * np.log1p(1.0 / np.exp(clipped)) - K1
    return -negative


def expected_kl_gradient(theta, log_sigma2):
    """With respect to theta and to log sigma^2."""
    ratio = expected_log_alpha(theta, log_sigma2)
    gate = expit(K2 + K3 * ratio)
    slope = np.where(np.abs(ratio) < 8.0, -K1 * K3 * gate * (1.0 - gate) - 0.5 * expit(-ratio), 0.0)
    return slope * -2.0 * theta / (theta**2 + 1e-8), slope


def expected_sample(log_alpha, uniform):
    concrete = expit((np.log(uniform + 1e-8) - np.log(1.0 - uniform) + log_alpha) / BETA)
    return np.clip(concrete * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def expected_gate(log_alpha):
    return np.clip(expit(log_alpha) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def expected_open(log_alpha):
    return expit(log_alpha - BETA * np.log(-GAMMA / ZETA))


def divergence(distribution, weight, auxiliary):
    return summed_divergence(distribution, [weight], [auxiliary])


def doubles(values, requires_grad=False):
    return torch.tensor(np.asarray(values), dtype=torch.float64, requires_grad=requires_grad)


@settings(max_examples=60)
@given(PAIRS)
@example([(0.0, 0.0)])
@example([(1e-4, -10.0)])
def test_log_alpha_is_the_formula_and_is_not_clipped(pairs):
    theta, log_sigma2 = np.array(pairs).T
    np.testing.assert_allclose(
        log_alpha(doubles(theta), doubles(log_sigma2)), expected_log_alpha(theta, log_sigma2), rtol=1e-13, atol=1e-12
    )


@settings(max_examples=60)
@given(PAIRS)
@example([(0.0, -10.0), (1.0, -9.0), (1.0, 9.0), (1.0, 0.0)])
def test_divergence_of_variational_dropout_is_the_sum_of_the_formula(pairs):
    theta, log_sigma2 = np.array(pairs).T
    found = divergence(VariationalDropout(), doubles(theta), doubles(log_sigma2))
    assert found.shape == ()
    np.testing.assert_allclose(found, expected_kl(theta, log_sigma2).sum(), rtol=1e-12, atol=1e-11)


@settings(max_examples=60)
@given(PAIRS)
def test_gradient_of_the_divergence_is_the_derivative_of_the_formula(pairs):
    theta, log_sigma2 = np.array(pairs).T
    distance = np.abs(np.abs(expected_log_alpha(theta, log_sigma2)) - 8.0)
    theta, log_sigma2 = theta[distance > 1e-9], log_sigma2[distance > 1e-9]
    weight, auxiliary = doubles(theta, True), doubles(log_sigma2, True)
    divergence(VariationalDropout(), weight, auxiliary).backward()
    by_theta, by_log_sigma2 = expected_kl_gradient(theta, log_sigma2)
    np.testing.assert_allclose(weight.grad, by_theta, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(auxiliary.grad, by_log_sigma2, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("theta", [0.0, 3e-5, -1e-4, 0.02, -0.7, 4.0])
@pytest.mark.parametrize("log_sigma2", [-16.0, -10.0, -6.1, -1.0, 1.5])
def test_gradient_of_the_divergence_by_finite_differences(theta, log_sigma2):
    weight, auxiliary = doubles(theta, True), doubles(log_sigma2, True)
    divergence(VariationalDropout(), weight, auxiliary).backward()
    step = 1e-9 if abs(theta) < 1e-2 else 1e-6
    by_theta = (expected_kl(theta + step, log_sigma2) - expected_kl(theta - step, log_sigma2)) / (2 * step)
    by_log_sigma2 = (expected_kl(theta, log_sigma2 + 1e-6) - expected_kl(theta, log_sigma2 - 1e-6)) / 2e-6
    assert float(weight.grad) == pytest.approx(by_theta, rel=1e-5, abs=1e-5)
    assert float(auxiliary.grad) == pytest.approx(by_log_sigma2, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("beyond", [-30.0, -8.01, 8.01, 30.0])
def test_clipping_is_in_the_divergence_only(beyond):
    weight, auxiliary = doubles([1.0], True), doubles([beyond], True)
    divergence(VariationalDropout(), weight, auxiliary).backward()
    at_bound = divergence(VariationalDropout(), doubles([1.0]), doubles([np.sign(beyond) * 8.0]))
    assert float(divergence(VariationalDropout(), weight, auxiliary).detach()) == pytest.approx(float(at_bound), rel=1e-6)
    assert float(weight.grad) == 0.0
    assert float(auxiliary.grad) == 0.0
    # Between two thresholds beyond the bounds of the clipping, which would make them alike.
    kept = [bool(VariationalDropout().kept(weight, auxiliary, beyond + shift)) for shift in (-0.5, 0.5)]
    assert kept == [False, True]


def test_divergence_approximates_the_integral_that_it_stands_for():
    """KL from the log-uniform prior, by integration, up to the constant that makes it 0 for infinite noise."""
    for value in np.linspace(-7.5, 7.5, 11):
        deviation = np.exp(0.5 * value)

        def integrand(noise, deviation=deviation):
            return norm.pdf(noise, 1.0, deviation) * np.log(np.abs(noise))

        low, high = 1.0 - 12 * deviation, 1.0 + 12 * deviation
        middle = [point for point in (0.0, 1.0) if low < point < high]
        mean_log = sum(quad(integrand, a, b, limit=400)[0] for a, b in zip([low, *middle], [*middle, high], strict=True) if b > a)
        mean_log_of_standard = -0.5 * (np.euler_gamma + np.log(2.0))
        exact = mean_log - 0.5 * value - mean_log_of_standard
        found = float(divergence(VariationalDropout(), doubles([1.0]), doubles([value])))
        assert found == pytest.approx(exact, abs=0.02)


def test_divergence_falls_as_noise_rises():
    values = doubles(np.linspace(-8.0, 8.0, 200))
    found = [float(divergence(VariationalDropout(), doubles(1.0), value)) for value in values]
    assert all(a > b for a, b in itertools.pairwise(found))
    assert found[-1] > 0.0


@settings(max_examples=60)
@given(PAIRS, st.floats(-5.0, 10.0))
def test_kept_are_those_below_the_threshold(pairs, threshold):
    theta, log_sigma2 = np.array(pairs).T
    found = VariationalDropout().kept(doubles(theta), doubles(log_sigma2), threshold)
    ratio = expected_log_alpha(theta, log_sigma2)
    clear = np.abs(ratio - threshold) > 1e-9
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found.numpy()[clear], (ratio < threshold)[clear])


def test_a_weight_exactly_at_the_threshold_is_dropped():
    weight, auxiliary = doubles([0.3]), doubles([-2.0])
    at = float(log_alpha(weight, auxiliary))
    assert VariationalDropout().kept(weight, auxiliary, at).tolist() == [False]
    assert VariationalDropout().kept(weight, auxiliary, np.nextafter(at, 9.0)).tolist() == [True]


@settings(max_examples=60)
@given(
    hnp.arrays(np.float64, 8, elements=st.floats(-40.0, 40.0)),
    hnp.arrays(np.float64, 8, elements=st.floats(0.0, 1.0, exclude_max=True)),
)
@example(np.array([0.0, 0.0, 2.197, -40.0, 40.0, 9.0, -9.0, 0.0]), np.array([0.0, 0.5, 1e-9, 0.5, 0.5, 0.0, 0.999, 1e-300]))
def test_sample_of_the_hard_concrete(log_alphas, uniform):
    found = sample_gate(doubles(log_alphas), doubles(uniform))
    np.testing.assert_allclose(found, expected_sample(log_alphas, uniform), rtol=0, atol=1e-12)


@settings(max_examples=60)
@given(hnp.arrays(np.float64, 8, elements=st.floats(-60.0, 60.0)))
def test_evaluation_gate_and_penalty(log_alphas):
    np.testing.assert_allclose(evaluation_gate(doubles(log_alphas)), expected_gate(log_alphas), rtol=0, atol=1e-13)
    found = divergence(HardConcrete(), doubles(np.zeros(8)), doubles(log_alphas))
    assert found.shape == ()
    np.testing.assert_allclose(found, expected_open(log_alphas).sum(), rtol=1e-12)


@settings(max_examples=60)
@given(hnp.arrays(np.float64, 8, elements=st.floats(-20.0, 20.0)))
def test_gradient_of_the_l0_penalty(log_alphas):
    weight, auxiliary = doubles(np.ones(8), True), doubles(log_alphas, True)
    divergence(HardConcrete(), weight, auxiliary).backward()
    gate = expected_open(log_alphas)
    np.testing.assert_allclose(auxiliary.grad, gate * (1.0 - gate), rtol=1e-9, atol=1e-14)
    assert weight.grad is None


def test_l0_penalty_is_the_probability_of_an_open_gate():
    uniform = doubles((np.arange(200_000) + 0.5) / 200_000)
    for value in (-4.0, -1.0, 0.0, 2.197):
        share = float((sample_gate(doubles(value), uniform) > 0).double().mean())
        assert float(divergence(HardConcrete(), doubles(1.0), doubles(value))) == pytest.approx(share, abs=1e-4)


def test_l0_drops_exactly_where_the_evaluation_gate_is_zero():
    closing = np.log((-GAMMA) / (ZETA - GAMMA)) - np.log(1.0 - (-GAMMA) / (ZETA - GAMMA))
    auxiliary = doubles([closing - 1e-6, closing + 1e-6, -50.0, 50.0])
    assert HardConcrete().kept(doubles(np.ones(4)), auxiliary, None).tolist() == [False, True, False, True]
    # The gate is where a weight is dropped, not the weight: a kept weight may be zero.
    assert HardConcrete().kept(doubles(np.zeros(4)), auxiliary, None).tolist() == [False, True, False, True]


@settings(max_examples=20)
@given(
    hnp.arrays(np.float64, (3, 4), elements=THETA),
    hnp.arrays(np.float64, (3, 4), elements=st.floats(-30.0, 20.0)),
    st.floats(1e-9, 10.0),
)
def test_penalty_of_a_network_is_weight_times_the_sum_over_layers(theta, values, factor):
    for method, name, expected in (
        (variational_dropout, "log_sigma2", expected_kl(theta, values).sum()),
        (l0_regularization, "log_alpha", expected_open(values).sum()),
    ):
        model = nn.Sequential(nn.Linear(4, 3, dtype=torch.float64), nn.Linear(4, 3, dtype=torch.float64))
        sparsifier = method(penalty=factor)
        sparsifier.prepare(model)
        with torch.no_grad():
            for layer in model:
                layer.weight.copy_(doubles(theta))
                getattr(layer, name).copy_(doubles(values))
        np.testing.assert_allclose(sparsifier.penalty().detach(), factor * 2.0 * expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("distribution", [VariationalDropout(), HardConcrete()])
def test_sum_over_layers_of_all_sizes_types_and_memory_formats_is_the_sum_of_the_single_ones(distribution):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (2, 3, 2, 2), (CHUNK + 1,), (1,), (7, 5), (0, 4), (2, 2, 3, 3), (CHUNK - 5, 1), (6,), (2, 2)]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    weights[1] = weights[1].to(memory_format=torch.channels_last)
    weights[4] = weights[4].t()
    weights[6] = weights[6].to(torch.float64, memory_format=torch.channels_last)
    weights[8] = weights[8].half()
    auxiliaries = [torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=generator) - 3.0) for weight in weights]
    for tensor in (*weights, *auxiliaries):
        tensor.requires_grad_()
    summed_divergence(distribution, weights, auxiliaries).mul(0.5).backward()
    total = 0.0
    for weight, auxiliary in zip(weights, auxiliaries, strict=True):
        doubled = weight.detach().double(), auxiliary.detach().double()
        value, (by_weight, by_auxiliary) = distribution.divergence(*doubled), distribution.divergence_derivatives(*doubled)
        total += 0.5 * float(value)
        for tensor, derivative in ((weight, by_weight), (auxiliary, by_auxiliary)):
            if derivative is None:
                assert tensor.grad is None
                continue
            assert tensor.grad.dtype == tensor.dtype
            assert tensor.grad.stride() == tensor.stride() or tensor.numel() < 2
            tolerance = {torch.float16: 2e-3, torch.float32: 3e-5, torch.float64: 1e-12}[tensor.dtype]
            torch.testing.assert_close(tensor.grad.double(), 0.5 * derivative, rtol=tolerance, atol=tolerance)
    found = summed_divergence(distribution, weights, auxiliaries)
    assert float(found.detach()) * 0.5 == pytest.approx(total, rel=1e-5)


def test_frozen_auxiliary_parameters_get_no_gradient_of_the_divergence():
    weight, auxiliary = torch.ones(3, requires_grad=True), torch.zeros(3)
    divergence(VariationalDropout(), weight, auxiliary).backward()
    assert weight.grad is not None
    assert auxiliary.grad is None
