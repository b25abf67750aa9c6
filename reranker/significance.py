"""How sure one can be of a mean over queries, and of a difference between two systems."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """Ends of a 95% interval."""

    low: float
    high: float


def bootstrap_interval(values: NDArray[np.float64], *, seed: int, samples: int = 10_000) -> Interval:
    """95% percentile bootstrap interval of the mean over queries (Efron and Tibshirani 1993, chapter 13).

    Assumes that the queries are a random sample of the ones that will be asked.

    Args:
        values: one value per query, or the difference of two systems per query.
        seed: of the resampling.
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
        seed: of the coin.
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
