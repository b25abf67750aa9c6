import math

import numpy as np
import pytest

from reranker.evaluation.significance import bootstrap_interval, holm, interval_over_runs


def test_holm_on_an_example_worked_by_hand():
    # 4 × 0.005, 3 × 0.01, 2 × 0.03, 1 × 0.04 which may not fall below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_leaves_a_single_test_alone():
    assert holm([0.4, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert holm([0.3]) == [0.3]
    assert holm([]) == []


def test_holm_gives_equal_tests_equal_values_in_any_order():
    assert holm([0.01, 0.2, 0.01]) == pytest.approx([0.03, 0.2, 0.03])
    assert holm([0.2, 0.01, 0.01]) == pytest.approx([0.2, 0.03, 0.03])


def runs(number: int, *, shift: float, noise: float, seed: int) -> np.ndarray:
    """So many runs over the same 150 queries: each query has its height, each run an offset of its own."""
    heights = np.random.default_rng(0).normal(0.5, 0.2, size=150)
    return heights + shift + noise * np.random.default_rng(seed).normal(size=(number, 1))


def test_single_runs_have_the_interval_of_their_differences():
    generator = np.random.default_rng(1)
    ours, theirs = generator.normal(size=(2, 1, 200))
    expected = bootstrap_interval((ours - theirs)[0], seed=3)
    assert interval_over_runs(ours, theirs, seed=3) == pytest.approx(expected, abs=0.01)


def test_queries_are_resampled_for_both_systems_together():
    """Queries differ much from each other, but a difference that is the same on all of them is certain."""
    interval = interval_over_runs(
        runs(1, shift=0.1, noise=0, seed=1), runs(1, shift=0, noise=0, seed=1), seed=1, samples=500
    )
    assert interval == pytest.approx((0.1, 0.1))


def test_noise_of_runs_widens_the_interval_as_far_as_they_differ():
    """30 runs a side: the standard error of the difference of their means is all that there is."""
    ours, theirs = runs(30, shift=0, noise=0.05, seed=1), runs(30, shift=0, noise=0.05, seed=2)
    low, high = interval_over_runs(ours, theirs, seed=1)
    error = math.sqrt((ours.mean(axis=1).var() + theirs.mean(axis=1).var()) / 30)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_more_runs_make_it_narrower():
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
