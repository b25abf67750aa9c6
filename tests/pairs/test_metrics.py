"""Tests of the measures of the pair tasks, and of intervals and tests of differences."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from reranker.pairs import metrics
from reranker.pairs.params import Task

RNG = np.random.default_rng(3)
LABELS = RNG.random(200)
GOOD = LABELS + RNG.normal(0, 0.1, 200)
POOR = LABELS + RNG.normal(0, 1.0, 200)


@pytest.mark.parametrize("task", metrics.HEADLINE)
def test_perfect_predictions_measure_one(task: Task):
    labels = np.array([0.0, 1.0, 1.0, 0.0])
    assert [of(labels, labels) for of in metrics.MEASURES[task].values()] == pytest.approx(
        [1.0] * len(metrics.MEASURES[task])
    )
    assert metrics.HEADLINE[task] in metrics.MEASURES[task]


def test_spearman_depends_on_the_order_alone_and_pearson_does_not():
    spearman, pearson = (metrics.MEASURES["score"][name] for name in ("spearman", "pearson"))
    assert spearman(LABELS, np.exp(9 * LABELS)) == pytest.approx(1)
    assert pearson(LABELS, np.exp(9 * LABELS)) < 0.9


def test_threshold_is_the_score_with_the_highest_f1():
    labels, scores = np.array([0, 0, 1, 1, 1.0]), np.array([0.1, 0.4, 0.3, 0.6, 0.9])
    cut = metrics.threshold(labels, scores)
    assert cut == 0.3
    assert metrics.at_threshold(labels, scores, cut) == pytest.approx({"f1": 6 / 7, "accuracy": 0.8})


@pytest.mark.parametrize("seed", range(40))
def test_threshold_is_that_of_a_search_over_all_scores(seed: int):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.append([0.0, 1.0], generator.integers(0, 2, 58)))
    scores = generator.integers(0, 3 + seed, 60) / 7 - 1  # with ties, of one score alone at the least
    cuts = np.unique(scores)
    tried = [f1_score(labels, scores >= cut, zero_division=0.0) for cut in cuts]
    assert metrics.threshold(labels, scores) == cuts[np.argmax(tried)]


def test_interval_is_that_of_resampled_pairs_and_repeats_with_its_seed():
    generator = np.random.default_rng(5)
    rows = [generator.integers(0, 200, 200) for _ in range(metrics.SAMPLES)]
    spearman = metrics.MEASURES["score"]["spearman"]
    ends = np.percentile([spearman(LABELS[row], POOR[row]) for row in rows], [2.5, 97.5])
    assert metrics.interval("score", LABELS, POOR, seed=5) == pytest.approx(tuple(ends))


def test_clear_difference_is_significant_and_has_its_sign():
    difference = metrics.compare("score", LABELS, GOOD, POOR, seed=1)
    spearman = metrics.MEASURES["score"]["spearman"]
    assert difference.gain == pytest.approx(spearman(LABELS, GOOD) - spearman(LABELS, POOR))
    assert difference.low < difference.gain < difference.high
    assert difference.low > 0
    assert difference.p == pytest.approx(1 / (metrics.SAMPLES + 1))
    back = metrics.compare("score", LABELS, POOR, GOOD, seed=1)
    assert (back.gain, back.p) == pytest.approx((-difference.gain, difference.p))


def test_equal_systems_do_not_differ():
    difference = metrics.compare("score", LABELS, GOOD, 7 * GOOD + 1, seed=1)
    assert difference == (0, 0, 0, 1)


def test_interval_contains_the_figure_and_is_narrower_with_more_pairs():
    wide = metrics.interval("score", LABELS[:30], POOR[:30], seed=1)
    narrow = metrics.interval("score", LABELS, POOR, seed=1)
    assert narrow.low < metrics.MEASURES["score"]["spearman"](LABELS, POOR) < narrow.high
    assert narrow.high - narrow.low < wide.high - wide.low


def test_interval_of_few_duplicates_is_a_number():
    labels = np.array([1.0] + [0.0] * 9)
    low, high = metrics.interval("duplicates", labels, np.arange(10.0), seed=1)
    assert 0 < low <= high <= 1
