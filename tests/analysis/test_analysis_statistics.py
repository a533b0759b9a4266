from __future__ import annotations

import math
import random

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.analysis.statistics import Estimate, estimate, mean

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


def test_two_values_have_the_closed_form_of_the_cauchy_distribution():
    # With one degree of freedom t is Cauchy: its 97.5 % quantile is tan(0.475 pi), and s / sqrt(2) = |a - b| / 2.
    result = estimate([90.0, 94.0])
    assert result.mean == 92.0
    assert result.half_width == pytest.approx(math.tan(0.475 * math.pi) * 2.0)
    assert result.n == 2


def test_three_values_have_the_closed_form_of_two_degrees_of_freedom():
    quantile = 0.95 * math.sqrt(2.0 / (1.0 - 0.95**2))  # t_2 quantile at p: (2p - 1) sqrt(2 / (4p(1 - p)))
    assert estimate([1.0, 2.0, 3.0]).half_width == pytest.approx(quantile * 1.0 / math.sqrt(3.0))


@given(numbers, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_is_scipys(values, level):
    result = estimate(values, level)
    scale = scipy.stats.tstd(values) / math.sqrt(len(values)) if len(set(values)) > 1 else 0.0
    if scale > 1e-9:
        low, high = scipy.stats.t.interval(level, len(values) - 1, loc=sum(values) / len(values), scale=scale)
        assert result.mean - result.half_width == pytest.approx(low, abs=1e-6)
        assert result.mean + result.half_width == pytest.approx(high, abs=1e-6)


@given(numbers, st.randoms())
def test_the_order_of_values_does_not_matter_to_the_last_bit(values, shuffler: random.Random):
    shuffled = list(values)
    shuffler.shuffle(shuffled)
    assert estimate(shuffled) == estimate(values)


def test_one_value_has_no_interval_and_equal_values_one_of_no_width():
    assert estimate([5.0]) == Estimate(5.0, None, 1)
    assert estimate([5.0, 5.0, 5.0]) == Estimate(5.0, 0.0, 3)


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="no values"):
        mean([])
    with pytest.raises(ValueError, match="level"):
        estimate([1.0, 2.0], level=1.0)
