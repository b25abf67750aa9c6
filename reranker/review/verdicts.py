"""Decide whether the change of a figure on the same queries is a gain, a loss or noise."""

import math
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
import pandas as pd

from reranker.evaluation.significance import Interval, bootstrap_interval, detectable_errors, randomisation_test


class PairedFigure(NamedTuple):
    """A figure on the same queries before and after a change."""

    queries: int
    before: float
    after: float
    interval: Interval
    """The interval of the difference of the means."""
    p: float
    deviation: float
    """The sample standard deviation of the queries' differences; 0 for one query."""
    changed: int
    """The number of queries whose figure changed."""

    @property
    def difference(self) -> float:
        """The figure after the change minus the figure before it."""
        return self.after - self.before


class Rules(NamedTuple):
    """The thresholds of params.yaml by which a difference is judged."""

    min_gain: float
    max_loss: float
    alpha: float
    test_looks: int


class Finding(Enum):
    """The possible outcomes of a comparison."""

    SAME = "no query changed"
    GAIN = "a significant gain of at least min_gain"
    UNDETECTED = "no significant difference with this number of queries"
    SMALL = "a significant gain below min_gain, or a significant loss of at most max_loss"
    LUCKY = "a gain that is significant for one look at test, but not for this number of looks"
    LOSS = "a significant loss beyond max_loss"
    INCOMPARABLE = "the two figures do not belong to one test, or not to the commits"

    @property
    def word(self) -> str:
        """The verdict that a person and CI act on."""
        return WORDS[self]


WORDS = {
    Finding.SAME: "pass",
    Finding.GAIN: "pass",
    Finding.UNDETECTED: "noise",
    Finding.SMALL: "noise",
    Finding.LUCKY: "noise",
    Finding.LOSS: "regression",
    Finding.INCOMPARABLE: "incomparable",
}
EXIT = {"pass": 0, "noise": 3, "regression": 4, "incomparable": 5}
"""Exit statuses; 1 is an error, 2 a wrong command line."""


def compare_paired(before: pd.Series, after: pd.Series, *, seed: int) -> PairedFigure:
    """Compare a figure on the queries that both sides have.

    The p-value is that of the paired randomisation test, and the interval bootstraps the queries, see `significance`.

    Args:
        before: one value per query; the index has the ids of the queries.
        after: the values after the change.
        seed: seed of the resampling.

    Raises:
        ValueError: there is no common query, or a value is not a number.
    """
    common = before.index.intersection(after.index).sort_values()
    ours, theirs = before.loc[common].to_numpy(float), after.loc[common].to_numpy(float)
    differences = theirs - ours
    p = randomisation_test(differences, seed=seed)
    return PairedFigure(
        queries=len(common),
        before=float(ours.mean()),
        after=float(theirs.mean()),
        interval=bootstrap_interval(differences, seed=seed),
        p=p,
        deviation=float(differences.std(ddof=1)) if len(common) > 1 else 0.0,
        changed=int(np.count_nonzero(differences)),
    )


def bonferroni(p: float, looks: int) -> float:
    """The p-value, corrected by Bonferroni for the number of looks at one test; the looks may depend on each other."""
    return min(1.0, p * max(1, looks))


def decide(result: PairedFigure, rules: Rules, *, looks: int, reasons: Sequence[str]) -> Finding:
    """Decide on the outcome of a comparison.

    A loss is tested at `alpha` however often test was looked at, because nobody chooses a change for its loss. If test
    was looked at more than `test_looks` times, a gain must be significant after correction.

    Args:
        result: the comparison on the common queries.
        rules: see `Rules`.
        looks: the number of figures of test that were seen since the base, including this one.
        reasons: reasons why the sides cannot be compared, if any.
    """
    if reasons:
        return Finding.INCOMPARABLE
    if not result.changed:
        return Finding.SAME
    if result.p >= rules.alpha:
        return Finding.UNDETECTED
    if result.difference < 0:
        return Finding.LOSS if result.difference < -rules.max_loss else Finding.SMALL
    if result.difference < rules.min_gain:
        return Finding.SMALL
    lucky = looks > rules.test_looks and bonferroni(result.p, looks) >= rules.alpha
    return Finding.LUCKY if lucky else Finding.GAIN


def queries_needed(result: PairedFigure, alpha: float) -> int | None:
    """The number of test queries with which four of five tests detect a difference of this size; None if it is 0.

    This is the usual formula of a paired comparison, ((z(1 - alpha / 2) + z(power)) · deviation / difference)², by the
    normal distribution (Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, chapter 2). It assumes that
    further queries differ like these.
    """
    if not result.difference or not result.deviation:
        return None
    return math.ceil((detectable_errors(alpha) * result.deviation / result.difference) ** 2)


def most_changed(before: pd.Series, after: pd.Series, number: int) -> tuple[list[str], list[str]]:
    """The ids of the common queries with the largest gains, and of those with the largest losses; ties by id."""
    common = before.index.intersection(after.index).sort_values()
    differences = (after.loc[common] - before.loc[common]).sort_values(kind="stable")
    lost = differences[differences < 0].index[:number]
    gained = differences[differences > 0].sort_values(ascending=False, kind="stable").index[:number]
    return [*map(str, gained)], [*map(str, lost)]
