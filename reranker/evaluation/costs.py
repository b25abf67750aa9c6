"""What it costs to rerank with a system: its size, and the time of one query at a time, as a server has them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

COST_COLUMNS = (
    "system", "parameters", "megabytes", "pairs_per_second", "p50_ms_30", "p95_ms_30", "p50_ms_100", "p95_ms_100",
    "usd_per_1000_queries",
)  # fmt: skip
"""Times are of one query with 30 or 100 passages, in milliseconds; megabytes are of 1,000,000 bytes."""
WIDTHS = (30, 100)
"""Passages of a query."""
QUERIES = 30
"""That are timed, at most."""
AT_LEAST = 10
"""That are timed, however long they take."""
SECONDS = 4.0
"""After which a slow system is timed on no more queries of a width."""
Seconds = NDArray[np.float64]


class Cost(NamedTuple):
    """Size and times of a system."""

    parameters: int
    megabytes: float
    seconds: dict[int, Seconds]
    """See `measure`."""


def asked(
    pairs: pd.DataFrame, passages: pd.DataFrame, width: int, *, queries: int = QUERIES, seed: int
) -> list[pd.DataFrame]:
    """Some queries with so many passages each: the retriever's best, then others of the corpus at random.

    Args:
        pairs: columns query_id, query, passage_id, passage and rank.
        passages: columns passage_id and text: the corpus.
        width: passages a query; all if the corpus has fewer.
        queries: how many, at most.
        seed: of the choice of queries and of further passages.

    Returns:
        A table a query: columns query_id, query, passage and retrieved.
    """
    generator = np.random.default_rng(seed)
    names = sorted(pairs["query_id"].unique())
    chosen = sorted(generator.choice(names, min(queries, len(names)), replace=False))
    tables = []
    for name in chosen:
        best = pairs[pairs["query_id"] == name].sort_values("rank")[:width]
        others = passages.loc[~passages["passage_id"].isin(best["passage_id"]), "text"].to_numpy()
        further = generator.choice(others, min(width - len(best), len(others)), replace=False)
        texts = [*best["passage"], *further]
        tables.append(
            pd.DataFrame({"query_id": name, "query": best["query"].iloc[0], "passage": texts, "retrieved": True})
        )
    return tables


def measure(
    scores: Callable[[pd.DataFrame], NDArray[np.float64]], queries: Mapping[int, Sequence[pd.DataFrame]]
) -> dict[int, Seconds]:
    """Time a system on each query by itself, after one that is not counted.

    Args:
        scores: of the system; it takes the table of a query.
        queries: see `asked`, by width.

    Returns:
        Seconds of the queries in their order, by width; fewer than there are where the system is slow.
    """
    seconds = {}
    for width, tables in queries.items():
        scores(tables[0])
        times: list[float] = []
        for table in tables:
            if len(times) >= AT_LEAST and sum(times) > SECONDS:
                break
            started = time.perf_counter()
            scores(table)
            times.append(time.perf_counter() - started)
        seconds[width] = np.array(times)
    return seconds


def added(parts: Sequence[Cost]) -> Cost:
    """The cost of systems that score one after the other, query by query; at least one."""
    seconds = {}
    for width in parts[0].seconds:
        shortest = min(len(part.seconds[width]) for part in parts)
        seconds[width] = np.sum([part.seconds[width][:shortest] for part in parts], axis=0)
    return Cost(sum(part.parameters for part in parts), sum(part.megabytes for part in parts), seconds)


def table(costs: Mapping[str, Cost], sizes: Mapping[int, Sequence[int]], *, usd_per_hour: float) -> pd.DataFrame:
    """The costs of all systems.

    Args:
        costs: by system.
        sizes: by width, how many passages each query has.
        usd_per_hour: of the machine.

    Returns:
        Columns `COST_COLUMNS`, one row a system; milliseconds of a query.
    """
    rows = []
    few, many = WIDTHS
    for system, (parameters, megabytes, seconds) in costs.items():
        times = seconds[few]
        row: dict[str, str | float] = {"system": system, "parameters": parameters, "megabytes": megabytes}
        row["pairs_per_second"] = sum(sizes[few][: len(times)]) / float(times.sum())
        for width in (few, many):
            middle, late = np.percentile(1000 * seconds[width], [50, 95])
            row |= {f"p50_ms_{width}": float(middle), f"p95_ms_{width}": float(late)}
        row["usd_per_1000_queries"] = 1000 * float(times.mean()) / 3600 * usd_per_hour
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COST_COLUMNS))
