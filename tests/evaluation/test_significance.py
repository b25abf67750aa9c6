import itertools
import math

import numpy as np
import pytest

from reranker.evaluation.significance import bootstrap_interval, randomisation_test


def test_interval_contains_the_mean_and_repeats_with_its_seed():
    values = np.random.default_rng(1).normal(0.3, 0.2, size=60)
    interval = bootstrap_interval(values, seed=5, samples=1000)
    assert interval.low < values.mean() < interval.high
    assert interval == bootstrap_interval(values, seed=5, samples=1000)
    assert interval != bootstrap_interval(values, seed=6, samples=1000)


def test_interval_has_the_width_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(0.3, 0.2, size=200)
    low, high = bootstrap_interval(values, seed=5, samples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(200), rel=0.1)


def test_interval_is_narrower_with_more_queries():
    values = np.random.default_rng(1).normal(size=400)
    few, many = (bootstrap_interval(part, seed=5, samples=1000) for part in (values[:40], values))
    assert many.high - many.low < few.high - few.low


def test_interval_of_equal_values_is_that_value():
    assert bootstrap_interval(np.full(7, 0.25), seed=0, samples=50) == pytest.approx((0.25, 0.25))


def test_no_difference_is_no_evidence():
    assert randomisation_test(np.zeros(30), seed=1, samples=2000) == 1


@pytest.mark.parametrize("samples", [1, 999, 1000, 2500])
def test_consistent_effect_is_significant_but_its_p_value_never_zero(samples):
    assert randomisation_test(np.full(40, 0.1), seed=1, samples=samples) == 1 / (samples + 1)


def test_p_value_does_not_depend_on_the_direction():
    differences = np.random.default_rng(2).normal(0.2, 1, size=25)
    p_value = randomisation_test(differences, seed=3, samples=2000)
    assert p_value == randomisation_test(-differences, seed=3, samples=2000)
    assert 0 < p_value < 1


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.6])
def test_p_value_agrees_with_all_sign_flips(shift):
    differences = np.random.default_rng(4).normal(shift, 0.5, size=10)
    flips = np.array(list(itertools.product([-1, 1], repeat=10))) @ differences
    exact = (np.abs(flips) >= abs(differences.sum()) - 1e-12).mean()
    assert randomisation_test(differences, seed=1, samples=8000) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("statistic", [bootstrap_interval, randomisation_test])
@pytest.mark.parametrize("values", [[], [0.1, math.nan]])
def test_statistics_refuse_missing_values(statistic, values):
    with pytest.raises(ValueError, match=r"no queries|not a number"):
        statistic(np.array(values), seed=1)
