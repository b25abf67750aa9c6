"""The comparison of systems on the same candidates: both modes, summary with intervals, paired tests. No torch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from reranker.common.errors import UserError
from reranker.common.progress import track
from reranker.evaluation import metrics, significance

MEASURES = {"ndcg@10": "nDCG@10", "mrr@10": "RR@10", "map": "AP", "recall@10": "R@10", "recall@30": "R@30"}
"""Our names of the measures and those of ir-measures."""
MODES = ("retrieved", "all_positives")


class Comparison(NamedTuple):
    """How much better the shipped system is than another one, in NDCG@10 of the retrieved candidates."""

    gain: float
    low: float
    high: float
    p: float


Values = dict[tuple[str, str], pd.DataFrame]
"""By system and mode: one row a query, one column a measure."""


def align(pairs: pd.DataFrame, scored: pd.DataFrame, system: str) -> pd.Series:
    """A system's scores in the order of the pairs.

    Raises:
        UserError: it did not score all of them.
    """
    merged = pairs[["query_id", "passage_id"]].merge(scored, on=["query_id", "passage_id"], how="left")
    if merged["score"].isna().any():
        raise UserError(
            f"data/scored/{system}.parquet: {int(merged['score'].isna().sum())} of {len(pairs)} candidates "
            f"have no score; run `dvc repro score@{system}`"
        )
    return merged["score"]


def both_modes(
    pairs: pd.DataFrame, retrieved: pd.Series, judgments: pd.DataFrame, scores: Mapping[str, pd.Series]
) -> Values:
    """Every query's measures for every system, from one set of scores.

    In the mode `retrieved` a system orders what the retriever found; a right passage that it missed counts
    against every system alike. In `all_positives` the missed ones are added to the candidates.

    Args:
        pairs: columns query_id, passage_id: the candidates and the missed right passages.
        retrieved: which rows of `pairs` the retriever found.
        judgments: of the same queries.
        scores: by system, in the order of `pairs`.
    """
    values: Values = {}
    for system, column in track(scores.items(), "evaluate", "systems", len(scores)):
        run = pairs[["query_id", "passage_id"]].assign(score=column.to_numpy(float))
        for mode, part in zip(MODES, (run[retrieved], run), strict=True):
            table = metrics.per_query(judgments, part, list(MEASURES.values()))
            values[system, mode] = table.set_axis(list(MEASURES), axis=1)
    return values


def summarise(values: Values, *, seed: int) -> pd.DataFrame:
    """Means over the queries, with the 95% bootstrap interval of NDCG@10.

    Returns:
        Columns system, mode, ndcg@10, ndcg@10_low, ndcg@10_high and the other measures.
    """
    rows = []
    for (system, mode), table in values.items():
        low, high = significance.bootstrap_interval(table["ndcg@10"].to_numpy(), seed=seed)
        rows.append({"system": system, "mode": mode, **table.mean(), "ndcg@10_low": low, "ndcg@10_high": high})
    order = ["system", "mode", "ndcg@10", "ndcg@10_low", "ndcg@10_high", *list(MEASURES)[1:]]
    return pd.DataFrame(rows)[order]


def compare(values: Values, shipped: str, others: Sequence[str], *, seed: int) -> dict[str, Comparison]:
    """The shipped system against each other one: mean difference, its interval and a paired randomisation test."""
    ours = values[shipped, "retrieved"]["ndcg@10"]
    compared = {}
    for other in others:
        differences = (ours - values[other, "retrieved"]["ndcg@10"]).to_numpy()
        low, high = significance.bootstrap_interval(differences, seed=seed)
        compared[other] = Comparison(
            float(differences.mean()), low, high, significance.randomisation_test(differences, seed=seed)
        )
    return compared


def flatten(
    systems: pd.DataFrame, compared: Mapping[str, Comparison], shipped: str, *, queries: int
) -> dict[str, float | int]:
    """The figures that `dvc exp show` lists: flat, the shipped system's own without a suffix."""
    table = systems.set_index(["system", "mode"]).to_dict("index")
    ours = table[shipped, "retrieved"]
    figures: dict[str, float | int] = {"queries": queries}
    figures |= {name: float(ours[name]) for name in MEASURES}
    figures |= {f"ndcg@10_{end}": float(ours[f"ndcg@10_{end}"]) for end in ("low", "high")}
    figures["ndcg@10_all_positives"] = float(table[shipped, "all_positives"]["ndcg@10"])
    for system in dict.fromkeys(systems["system"]):
        if system != shipped:
            figures[f"ndcg@10_{system}"] = float(table[system, "retrieved"]["ndcg@10"])
    for other, (gain, low, high, p) in compared.items():
        figures[f"gain_vs_{other}"] = gain
        figures |= {f"gain_vs_{other}_low": low, f"gain_vs_{other}_high": high, f"p_vs_{other}": p}
    return figures


def by_source(values: Values, sources: pd.Series, shipped: str, others: Sequence[str]) -> dict[str, float | int]:
    """Each source's queries and the systems' NDCG@10 on them, retrieved mode, flat; nothing for a single source.

    Args:
        values: of both modes.
        sources: name of the source by query_id; of other queries too.
        shipped: the system whose figures have no name of a system.
        others: systems beside it.
    """
    figures: dict[str, float | int] = {}
    for system in (shipped, *others):
        table = values[system, "retrieved"]
        parts = table.groupby(sources.reindex(table.index).to_numpy())["ndcg@10"]
        if parts.ngroups > 1:
            name = "ndcg@10" if system == shipped else f"ndcg@10_{system}"
            figures |= {f"queries_of_{source}": int(number) for source, number in parts.size().items()}
            figures |= {f"{name}_of_{source}": float(mean) for source, mean in parts.mean().items()}
    return figures


def by_query(values: Values, measure: str) -> pd.DataFrame:
    """One row a query, one column a system: the measure over the retrieved candidates."""
    columns = {system: table[measure] for (system, mode), table in values.items() if mode == "retrieved"}
    return pd.DataFrame(columns).reset_index()
