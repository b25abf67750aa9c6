"""All compared systems with their tests against the baseline and the best one, for people: rounded here."""

import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import pandas as pd

from reranker.tables import SHIPPED, label, p_value, score, signed

OTHERS = ("baseline", "best")
"""The systems that all are tested against."""
COMPARISON_COLUMNS = (
    "system", "mode", "ndcg@10", "ndcg@10_low", "ndcg@10_high",
    *(f"gain_vs_{other}{end}" for other in OTHERS for end in ("", "_low", "_high")),
    *(f"p_vs_{other}_holm" for other in OTHERS), "detectable",
)  # fmt: skip


class Against(NamedTuple):
    """A system's NDCG@10 less that of another one, rounded; empty of the other one itself."""

    gain: str
    interval: str
    p: str
    """Corrected for as many systems as are compared with the same one."""


class ComparedRow(NamedTuple):
    """A system beside the baseline and the best one, rounded."""

    label: str
    shipped: bool
    ndcg: str
    interval: str
    baseline: Against
    best: Against
    detectable: str
    """The smallest difference to the baseline that so many queries can detect."""


def compared_rows(comparison: pd.DataFrame) -> list[ComparedRow]:
    """The systems in the mode `retrieved`, in their order.

    Args:
        comparison: columns `COMPARISON_COLUMNS`, as `compare` writes them.
    """
    return [
        ComparedRow(
            label=label(row["system"]),
            shipped=row["system"] == SHIPPED,
            ndcg=score(row["ndcg@10"]),
            interval=f"[{score(row['ndcg@10_low'])}, {score(row['ndcg@10_high'])}]",
            baseline=_against(row, "baseline"),
            best=_against(row, "best"),
            detectable=score(row["detectable"]),
        )
        for row in comparison[comparison["mode"] == "retrieved"].to_dict("records")
    ]


def _against(row: Mapping[Hashable, float], other: str) -> Against:
    if math.isnan(row[f"gain_vs_{other}"]):
        return Against("–", "", "–")
    gain, low, high = (signed(row[f"gain_vs_{other}{end}"]) for end in ("", "_low", "_high"))
    return Against(gain, f"[{low}, {high}]", p_value(row[f"p_vs_{other}_holm"]))
