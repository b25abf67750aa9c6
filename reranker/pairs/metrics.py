"""Measures of the pair tasks, with intervals, and with tests of the difference between two systems."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_recall_curve

from reranker.evaluation.significance import Interval
from reranker.pairs.params import Task

Values = NDArray[np.float64]
Measure = Callable[[Values, Values], float]
"""A function of labels and predictions, shape (pairs,) each."""
SAMPLES = 2_000
HEADLINE = {"score": "spearman", "duplicates": "average_precision", "class": "accuracy"}
MEASURES: dict[str, dict[str, Measure]] = {
    "score": {
        "spearman": lambda labels, predictions: float(spearmanr(labels, predictions).statistic),
        "pearson": lambda labels, predictions: float(pearsonr(labels, predictions).statistic),
    },
    "duplicates": {
        "average_precision": lambda labels, predictions: float(average_precision_score(labels, predictions))
    },
    "class": {
        "accuracy": lambda labels, predictions: float(accuracy_score(labels, predictions)),
        "f1_macro": lambda labels, predictions: float(f1_score(labels, predictions, average="macro")),
    },
}
"""The measures of scipy and scikit-learn by task; predictions are scores or classes."""


class Difference(NamedTuple):
    """A system's headline measure minus that of another system."""

    gain: float
    low: float
    high: float
    """The ends of the 95% interval."""
    p: float


def threshold(labels: Values, scores: Values) -> float:
    """The threshold with the highest F1, from which a pair counts as a duplicate; the lowest one of several.

    Args:
        labels: the labels 0 or 1 of pairs that are not used for evaluation.
        scores: the scores of these pairs, higher for duplicates.
    """
    precision, recall, cuts = precision_recall_curve(labels, scores)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    # the last point of the curve has no threshold; F1 is rounded, because equal values may differ in their last digits
    return float(cuts[np.argmax(f1[:-1].round(12))])


def at_threshold(labels: Values, scores: Values, cut: float) -> dict[str, float]:
    """F1 and accuracy if pairs with a score of at least `cut` count as duplicates."""
    positive = scores >= cut
    f1 = float(f1_score(labels, positive, zero_division=0.0))
    return {"f1": f1, "accuracy": float(accuracy_score(labels, positive))}


def interval(task: Task, labels: Values, predictions: Values, *, seed: int) -> Interval:
    """95% percentile bootstrap interval of the headline over the pairs (Efron and Tibshirani 1993, chapter 13)."""
    measure = MEASURES[task][HEADLINE[task]]
    return _percentiles([measure(labels[rows], predictions[rows]) for rows in _resamples(labels, seed)])


def compare(task: Task, labels: Values, ours: Values, theirs: Values, *, seed: int) -> Difference:
    """The difference of the headline, its paired bootstrap interval and a paired randomisation test.

    Null hypothesis: the two systems are the same, so that a coin toss decides which system made which of the two
    predictions for a pair (Noreen 1989). Scores are compared by their ranks within a system, because the scales of
    systems differ and the headline measures of score and duplicates do not depend on them.
    """
    measure = MEASURES[task][HEADLINE[task]]
    if task != "class":
        ours, theirs = rankdata(ours), rankdata(theirs)
    gain = measure(labels, ours) - measure(labels, theirs)
    differences = [
        measure(labels[rows], ours[rows]) - measure(labels[rows], theirs[rows]) for rows in _resamples(labels, seed)
    ]
    generator = np.random.default_rng(seed)
    as_extreme = 0
    for _ in range(SAMPLES):
        swap = generator.random(len(labels)) < 0.5
        swapped = measure(labels, np.where(swap, theirs, ours)) - measure(labels, np.where(swap, ours, theirs))
        as_extreme += abs(swapped) >= abs(gain) - 1e-12
    return Difference(gain, *_percentiles(differences), (as_extreme + 1) / (SAMPLES + 1))


def _resamples(labels: Values, seed: int) -> Iterator[NDArray[np.int64]]:
    """Rows drawn with replacement; a sample with only one label cannot be measured, so it is drawn again."""
    generator = np.random.default_rng(seed)
    drawn = 0
    while drawn < SAMPLES:
        rows = generator.integers(0, len(labels), len(labels))
        if np.ptp(labels[rows]):
            drawn += 1
            yield rows


def _percentiles(values: list[float]) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))
