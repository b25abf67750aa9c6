"""Size, speed and price of the systems beside their quality, for people: rounded here, measured elsewhere."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from reranker.tables import SHIPPED, count, escaped, label, score

COST_COLUMNS = (
    "system", "parameters", "megabytes", "pairs_per_second", "p50_ms_30", "p95_ms_30", "p50_ms_100", "p95_ms_100",
    "usd_per_1000_queries",
)  # fmt: skip
"""Times are of one query with 30 or 100 passages, in milliseconds; megabytes are of 1,000,000 bytes."""


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
        comparison: columns system, mode and ndcg@10; figures of the mode `retrieved` are taken.
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
            usd=_or_dash(row["usd_per_1000_queries"], _price),
        )
        for row in both.to_dict("records")
    ]


def markdown_costs(comparison: pd.DataFrame, costs: pd.DataFrame) -> str:
    """The same as a Markdown table, the shipped reranker in bold."""
    lines = [
        "| System | NDCG@10 | Parameters | MB | Pairs/s | ms, top 30, p50 / p95 | ms, top 100 | USD / 1,000 queries |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in cost_rows(comparison, costs):
        name, shipped, *figures = row
        cells = [escaped(name), *figures]
        lines.append(f"| {' | '.join(f'**{cell}**' if shipped else cell for cell in cells)} |")
    return "\n".join(lines)


def magnitude(value: float) -> str:
    """A number of three digits with K, M or B for thousands, millions and billions; a dash where there is none."""
    if math.isnan(value):
        return "–"
    power = min(max(int(math.log10(float(f"{value:.3g}"))) // 3, 0), 3) if value > 0 else 0
    return f"{float(f'{value / 1000**power:.3g}'):g}{('', 'K', 'M', 'B')[power]}"


def _price(usd: float) -> str:
    return "< 0.0001" if 0 < usd < 0.00005 else f"{usd:.4f}"


def _or_dash(value: float, shown: Callable[[float], str]) -> str:
    return "–" if math.isnan(value) else shown(value)
