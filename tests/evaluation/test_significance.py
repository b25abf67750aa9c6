import itertools
import math

import numpy as np
import pytest

from reranker.evaluation.significance import bootstrap_interval, holm, interval_over_runs, randomisation_test


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


def test_holm_on_an_example_worked_by_hand():
    # 4 × 0.005, 3 × 0.01, 2 × 0.03, and 1 × 0.04, which must not fall below the value before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_leaves_a_single_test_alone():
    assert holm([0.4, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert holm([0.3]) == [0.3]
    assert holm([]) == []


def test_holm_gives_equal_tests_equal_values_in_any_order():
    assert holm([0.01, 0.2, 0.01]) == pytest.approx([0.03, 0.2, 0.03])
    assert holm([0.2, 0.01, 0.01]) == pytest.approx([0.2, 0.03, 0.03])


def runs(number: int, *, shift: float, noise: float, seed: int) -> np.ndarray:
    """The values of some runs over the same 150 queries: each query has its own level, and each run its own offset."""
    heights = np.random.default_rng(0).normal(0.5, 0.2, size=150)
    return heights + shift + noise * np.random.default_rng(seed).normal(size=(number, 1))


def test_single_runs_have_the_interval_of_their_differences():
    generator = np.random.default_rng(1)
    ours, theirs = generator.normal(size=(2, 1, 200))
    expected = bootstrap_interval((ours - theirs)[0], seed=3)
    assert interval_over_runs(ours, theirs, seed=3) == pytest.approx(expected, abs=0.01)


def test_queries_are_resampled_for_both_systems_together():
    """Queries differ a lot from each other, but a difference that is the same on all of them is certain."""
    interval = interval_over_runs(
        runs(1, shift=0.1, noise=0, seed=1), runs(1, shift=0, noise=0, seed=1), seed=1, samples=500
    )
    assert interval == pytest.approx((0.1, 0.1))


def test_noise_of_runs_widens_the_interval_as_far_as_they_differ():
    """With 30 runs per system, the interval is that of the standard error of the difference of their means."""
    ours, theirs = runs(30, shift=0, noise=0.05, seed=1), runs(30, shift=0, noise=0.05, seed=2)
    low, high = interval_over_runs(ours, theirs, seed=1)
    error = math.sqrt((ours.mean(axis=1).var() + theirs.mean(axis=1).var()) / 30)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_more_runs_make_the_interval_narrower():
    ours, theirs = (runs(3, shift=0, noise=0.05, seed=seed) for seed in (1, 2))
    few = interval_over_runs(ours, theirs, seed=1)
    many = interval_over_runs(np.tile(ours, (10, 1)), np.tile(theirs, (10, 1)), seed=1)
    assert many.high - many.low == pytest.approx((few.high - few.low) / math.sqrt(10), rel=0.1)


@pytest.mark.parametrize("samples", [1, 999, 1001])
def test_interval_repeats_with_its_seed(samples: int):
    ours, theirs = runs(3, shift=0, noise=0.1, seed=1), runs(2, shift=0, noise=0.1, seed=2)
    first = interval_over_runs(ours, theirs, seed=1, samples=samples)
    assert first == interval_over_runs(ours, theirs, seed=1, samples=samples)
    assert first != interval_over_runs(ours, theirs, seed=2, samples=samples)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (np.zeros((0, 3)), np.zeros((1, 3)), "no queries"),
        (np.zeros((1, 0)), np.zeros((1, 0)), "no queries"),
        (np.zeros((1, 3)), np.zeros((1, 4)), "same queries"),
        (np.zeros((1, 2)), np.array([[0.1, math.nan]]), "not a number"),
    ],
)
def test_values_that_cannot_be_compared_are_refused(ours: np.ndarray, theirs: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        interval_over_runs(ours, theirs, seed=1)
