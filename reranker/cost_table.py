"""Size, speed and price of the systems beside their quality, for people: rounded here, measured elsewhere."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from reranker.tables import SHIPPED, count, label, score

COST_COLUMNS = (
    "system", "parameters", "megabytes", "pairs_per_second", "p50_ms_30", "p95_ms_30", "p50_ms_100", "p95_ms_100",
    "usd_per_1000_queries",
)  # fmt: skip
COMPARISON_COLUMNS = ("system", "mode", "ndcg@10")


class CostRow(NamedTuple):
    """What a system's quality costs, rounded."""

    label: str
    shipped: bool
    ndcg: str
    parameters: str
    megabytes: str
    pairs_per_second: str
    ms_30: str
    """Of the top 30 of one query: the median and the 95th percentile."""
    ms_100: str
    """The same of the top 100."""
    usd: str
    """Of 1,000 queries."""


def cost_rows(comparison: pd.DataFrame, costs: pd.DataFrame) -> list[CostRow]:
    """The systems whose costs are known, in the order of the comparison.

    Args:
        comparison: columns `COMPARISON_COLUMNS`; figures of the mode `retrieved` are taken.
        costs: columns `COST_COLUMNS`.
    """
    both = comparison[comparison["mode"] == "retrieved"].merge(costs, on="system")
    return [
        CostRow(
            label=label(row["system"]),
            shipped=row["system"] == SHIPPED,
            ndcg=score(row["ndcg@10"]),
            parameters=magnitude(row["parameters"]),
            megabytes=magnitude(row["megabytes"]),
            pairs_per_second=_or_dash(row["pairs_per_second"], count),
            ms_30=f"{magnitude(row['p50_ms_30'])} / {magnitude(row['p95_ms_30'])}",
            ms_100=f"{magnitude(row['p50_ms_100'])} / {magnitude(row['p95_ms_100'])}",
            usd=_or_dash(row["usd_per_1000_queries"], "{:.4f}".format),
        )
        for row in both.to_dict("records")
    ]


def magnitude(value: float) -> str:
    """A number of three digits with K, M or B for thousands, millions and billions; a dash where there is none."""
    if math.isnan(value):
        return "–"
    power = min(max(int(math.log10(float(f"{value:.3g}"))) // 3, 0), 3) if value > 0 else 0
    return f"{float(f'{value / 1000**power:.3g}'):g}{('', 'K', 'M', 'B')[power]}"


def _or_dash(value: float, shown: Callable[[float], str]) -> str:
    return "–" if math.isnan(value) else shown(value)
