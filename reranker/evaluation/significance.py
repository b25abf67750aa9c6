"""Confidence intervals and tests for a mean over queries and for differences between systems."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 1_000
"""Resamples held in memory at once."""
POWER = 0.8
"""The probability of detecting a difference that exists."""


class Interval(NamedTuple):
    """The ends of a 95% interval."""

    low: float
    high: float


def bootstrap_interval(values: NDArray[np.float64], *, seed: int, samples: int = 10_000) -> Interval:
    """95% percentile bootstrap interval of the mean over queries (Efron and Tibshirani 1993, chapter 13).

    The interval assumes that the queries are a random sample of the queries that users will ask.

    Args:
        values: one value per query, or the difference of two systems per query.
        seed: seed of the resampling.
        samples: number of resamples.

    Raises:
        ValueError: there are no values, or one is not a number.
    """
    if len(values) == 0:
        raise ValueError("no queries to compute an interval from")
    if np.isnan(values).any():
        raise ValueError("a query's value is not a number")
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=samples)
    low, high = np.percentile(counts @ values / len(values), [2.5, 97.5])
    return Interval(float(low), float(high))


def randomisation_test(differences: NDArray[np.float64], *, seed: int, samples: int = 20_000) -> float:
    """Two-sided paired randomisation test (Fisher; Smucker, Allan and Carterette, CIKM 2007).

    Null hypothesis: the two systems are the same, so that the sign of each query's difference is a coin
    toss. The p-value counts the observed assignment as one of the samples and is therefore never 0.

    Args:
        differences: one system's value minus the other's, per query.
        seed: seed of the coin tosses.
        samples: number of random sign assignments.

    Raises:
        ValueError: there are no differences, or one is not a number.
    """
    if len(differences) == 0:
        raise ValueError("no queries to test")
    if np.isnan(differences).any():
        raise ValueError("a query's difference is not a number")
    generator = np.random.default_rng(seed)
    observed = abs(differences.sum())
    as_extreme = 0
    for size in np.diff(np.linspace(0, samples, num=samples // 1000 + 2, dtype=int)):
        signs = generator.integers(0, 2, size=(size, len(differences)), dtype=np.int8) * 2.0 - 1.0
        as_extreme += int((np.abs(signs @ differences) >= observed - 1e-12).sum())
    return (as_extreme + 1) / (samples + 1)


def detectable_errors(alpha: float) -> float:
    """The smallest mean difference, in standard errors, that four of five two-sided tests at `alpha` detect.

    It is z(1 - alpha / 2) + z(power), the normal approximation of a paired t-test's power (Cohen 1988, Statistical
    Power Analysis for the Behavioral Sciences, chapter 2). At 5% it is 2.8.
    """
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm's step-down procedure (Holm 1979, Scandinavian Journal of Statistics 6:65–70).

    If every hypothesis with an adjusted value below 0.05 is rejected, the probability of even one false rejection is at
    most 0.05, however the tests depend on each other.

    Args:
        p_values: p-values of all tests that were looked at, significant or not.

    Returns:
        The adjusted values in the order of `p_values`, at most 1.
    """
    number = len(p_values)
    adjusted = [0.0] * number
    highest = 0.0
    for rank, place in enumerate(sorted(range(number), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (number - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def interval_over_runs(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], *, seed: int, samples: int = 10_000
) -> Interval:
    """95% percentile bootstrap interval of a difference of means over queries and runs.

    Queries are resampled for both systems together, and runs for each system separately: the two-way bootstrap of
    crossed factors (Owen 2007, Annals of Applied Statistics 1:386–411). It assumes that queries and seeds are random
    samples. With a single run, the interval does not cover what another seed would change. With n runs it is somewhat
    too narrow, because resampled runs have only (n - 1) / n of the variance of runs.

    Args:
        ours: one row per run, one column per query.
        theirs: the values of the other system; its columns are the same queries.
        seed: seed of the resampling.
        samples: number of resamples.

    Raises:
        ValueError: there are no queries or runs, the queries differ in number, or a value is not a number.
    """
    queries = ours.shape[1]
    if not ours.size or not theirs.size:
        raise ValueError("no queries to compute an interval from")
    if theirs.shape[1] != queries:
        raise ValueError("the two systems must have the same queries")
    if np.isnan(ours).any() or np.isnan(theirs).any():
        raise ValueError("a query's value is not a number")
    generator = np.random.default_rng(seed)
    differences = []
    for start in range(0, samples, BLOCK):
        size = min(BLOCK, samples - start)
        counts = generator.multinomial(queries, np.full(queries, 1 / queries), size=size)
        means = [_resampled_mean(values, counts, generator) for values in (ours, theirs)]
        differences.append(means[0] - means[1])
    low, high = np.percentile(np.concatenate(differences), [2.5, 97.5])
    return Interval(float(low), float(high))


def _resampled_mean(
    values: NDArray[np.float64], counts: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """The mean of each resample; `counts` (samples, queries) has the resampled queries, and the runs are drawn here."""
    runs, queries = values.shape
    by_run = counts @ values.T / queries
    weights = generator.multinomial(runs, np.full(runs, 1 / runs), size=len(counts)) / runs
    resampled: NDArray[np.float64] = (by_run * weights).sum(axis=1)
    return resampled
