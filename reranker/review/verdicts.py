"""Whether a change of a paired figure is a gain, a loss or noise."""

import math
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
import pandas as pd

from reranker.evaluation.significance import Interval, bootstrap_interval, detectable_errors, randomisation_test


class Paired(NamedTuple):
    """A figure of the same queries before and after."""

    queries: int
    before: float
    after: float
    interval: Interval
    """Of the difference of the means."""
    p: float
    deviation: float
    """Sample standard deviation of the queries' differences; 0 for one query."""
    changed: int
    """Queries whose figure is another."""

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after - self.before


class Rules(NamedTuple):
    """What a difference must be to count, from params.yaml."""

    min_gain: float
    max_loss: float
    alpha: float
    test_looks: int


class Finding(Enum):
    """What became of the figure."""

    SAME = "no query changed"
    GAIN = "real, and min_gain at least"
    UNTOLD = "not to be told from none with so many queries"
    SMALL = "real, but a gain below min_gain or a loss of max_loss at most"
    SELECTED = "real for one look at test, but not for so many"
    LOSS = "real, and worse than max_loss"
    INCOMPARABLE = "the two figures are not of one test, or not of the commits"

    @property
    def word(self) -> str:
        """The verdict that a person and CI act on."""
        return WORDS[self]


WORDS = {
    Finding.SAME: "pass",
    Finding.GAIN: "pass",
    Finding.UNTOLD: "noise",
    Finding.SMALL: "noise",
    Finding.SELECTED: "noise",
    Finding.LOSS: "regression",
    Finding.INCOMPARABLE: "incomparable",
}
EXIT = {"pass": 0, "noise": 3, "regression": 4, "incomparable": 5}
"""Exit statuses; 1 is an error, 2 a wrong command line."""


def paired(before: pd.Series, after: pd.Series, *, seed: int) -> Paired:
    """Compare a figure on the queries that both sides have.

    The p-value is that of the paired randomisation test, the interval a bootstrap of the queries, see `significance`.

    Args:
        before: one value a query, whose id is the index.
        after: the same.
        seed: of the resampling.

    Raises:
        ValueError: there is no common query, or a value is not a number.
    """
    common = before.index.intersection(after.index).sort_values()
    ours, theirs = before.loc[common].to_numpy(float), after.loc[common].to_numpy(float)
    differences = theirs - ours
    p = randomisation_test(differences, seed=seed)
    return Paired(
        queries=len(common),
        before=float(ours.mean()),
        after=float(theirs.mean()),
        interval=bootstrap_interval(differences, seed=seed),
        p=p,
        deviation=float(differences.std(ddof=1)) if len(common) > 1 else 0.0,
        changed=int(np.count_nonzero(differences)),
    )


def corrected(p: float, looks: int) -> float:
    """The p-value of the best of so many looks at one test, by Bonferroni: the looks may depend on each other."""
    return min(1.0, p * max(1, looks))


def find(result: Paired, rules: Rules, *, looks: int, reasons: Sequence[str]) -> Finding:
    """What became of a figure.

    A loss is real at `alpha` however often test was looked at: nobody chooses a change because it lost. A gain must
    hold after correction where test was looked at more often than `test_looks`.

    Args:
        result: of the common queries.
        rules: see `Rules`.
        looks: how many figures of test were seen since the base, this one included.
        reasons: why the sides cannot be compared, if anything.
    """
    if reasons:
        return Finding.INCOMPARABLE
    if not result.changed:
        return Finding.SAME
    if result.p >= rules.alpha:
        return Finding.UNTOLD
    if result.difference < 0:
        return Finding.LOSS if result.difference < -rules.max_loss else Finding.SMALL
    if result.difference < rules.min_gain:
        return Finding.SMALL
    chosen = looks > rules.test_looks and corrected(result.p, looks) >= rules.alpha
    return Finding.SELECTED if chosen else Finding.GAIN


def queries_needed(result: Paired, alpha: float) -> int | None:
    """Test queries with which a difference as large as this one is found in four of five cases; None: of 0, none.

    The usual formula of a paired comparison, ((z(1 - alpha / 2) + z(power)) · deviation / difference)², by the normal
    distribution (Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, chapter 2). It assumes that
    further queries differ as these do.
    """
    if not result.difference or not result.deviation:
        return None
    return math.ceil((detectable_errors(alpha) * result.deviation / result.difference) ** 2)


def most_changed(before: pd.Series, after: pd.Series, number: int) -> tuple[list[str], list[str]]:
    """The ids of the common queries that gained and that lost most, the most changed first; ties by id."""
    common = before.index.intersection(after.index).sort_values()
    differences = (after.loc[common] - before.loc[common]).sort_values(kind="stable")
    lost = differences[differences < 0].index[:number]
    gained = differences[differences > 0].sort_values(ascending=False, kind="stable").index[:number]
    return [*map(str, gained)], [*map(str, lost)]
