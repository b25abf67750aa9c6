"""The costs of reranking with a system: its size, and its time for one query at a time, as on a server."""

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
"""Times are those of one query with 30 or 100 passages, in milliseconds; a megabyte has 1,000,000 bytes."""
WIDTHS = (30, 100)
"""The numbers of passages per query."""
QUERIES = 30
"""The largest number of queries that are timed."""
AT_LEAST = 10
"""The number of queries that are timed however long they take."""
SECONDS = 4.0
"""The time after which no further query of a width is timed, once `AT_LEAST` queries are."""
Seconds = NDArray[np.float64]


class Cost(NamedTuple):
    """Size and times of a system."""

    parameters: int
    megabytes: float
    seconds: dict[int, Seconds]
    """See `measure`."""


def sample_queries(
    pairs: pd.DataFrame, passages: pd.DataFrame, width: int, *, queries: int = QUERIES, seed: int
) -> list[pd.DataFrame]:
    """Draw queries and give each the same number of passages: the retriever's best, then random ones of the corpus.

    Args:
        pairs: columns query_id, query, passage_id, passage and rank.
        passages: the corpus; columns passage_id and text.
        width: passages per query; the whole corpus if it is smaller.
        queries: the largest number of queries.
        seed: seed of the choice of queries and of further passages.

    Returns:
        One table per query: columns query_id, query, passage and retrieved.
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
    """Time a system on each query separately, after a first query that is not counted.

    Args:
        scores: the system's function, which takes the table of a query.
        queries: see `sample_queries`, by width.

    Returns:
        By width, the seconds of the queries in their order; a slow system is timed on fewer queries.
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


def sum_costs(parts: Sequence[Cost]) -> Cost:
    """The cost of one or more systems that score each query one after the other."""
    seconds = {}
    for width in parts[0].seconds:
        shortest = min(len(part.seconds[width]) for part in parts)
        seconds[width] = np.sum([part.seconds[width][:shortest] for part in parts], axis=0)
    return Cost(sum(part.parameters for part in parts), sum(part.megabytes for part in parts), seconds)


def table(costs: Mapping[str, Cost], sizes: Mapping[int, Sequence[int]], *, usd_per_hour: float) -> pd.DataFrame:
    """Put the costs of all systems into a table.

    Args:
        costs: the cost of each system.
        sizes: by width, the number of passages of each query.
        usd_per_hour: the price of the machine.

    Returns:
        Columns `COST_COLUMNS`, one row per system.
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
