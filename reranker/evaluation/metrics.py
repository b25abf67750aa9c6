"""Ranking metrics of a run, query by query.

Metrics follow trec_eval's definitions through ir-measures: the ideal ranking of NDCG, and the
denominators of MAP and recall, count every judged passage, retrieved or not, and a query without results
scores 0. Ties are broken as trec_eval does, by passage id from the last to the first: never by the order
of the input, which would leak the retriever's rank.

This module needs no model weights and no torch.
"""

from collections.abc import Sequence

import ir_measures
import numpy as np
import pandas as pd
from numpy.typing import NDArray


def per_query(judgments: pd.DataFrame, run: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Each query's value of each measure.

    Args:
        judgments: columns query_id, passage_id, relevance.
        run: columns query_id, passage_id, score.
        measures: names as ir-measures spells them, e.g. `nDCG@10`, `RR@10`, `AP`, `R@30`.

    Returns:
        One row per judged query (index query_id, sorted) and one column per measure; the values are 0 for a query
        that is not in the run.

    Raises:
        ValueError: a score is not a number, or a pair of query and passage is in the run twice.
    """
    if run["score"].isna().any():
        raise ValueError("the run has scores that are not numbers")
    if run.duplicated(["query_id", "passage_id"]).any():
        raise ValueError("the run has a passage twice for one query")
    parsed = [ir_measures.parse_measure(name) for name in measures]
    # the implementations behind ir-measures break ties differently (RR@10 by ascending id), so they get scores without
    # ties in trec_eval's order; trec_eval compares scores in single precision
    ordered = rank(run.assign(score=run["score"].astype("float32")))
    ordered["score"] = -ordered["rank"].astype(float)
    values = pd.DataFrame(
        ir_measures.iter_calc(
            parsed, judgments.rename(columns={"passage_id": "doc_id"}), ordered.rename(columns={"passage_id": "doc_id"})
        )
    )
    if values.empty:
        values = pd.DataFrame(columns=["query_id", "measure", "value"])
    values["measure"] = values["measure"].map(str)
    table = values.pivot(index="query_id", columns="measure", values="value")
    queries = pd.Index(sorted(judgments["query_id"].unique()), name="query_id")
    table = table.reindex(index=queries, columns=[str(measure) for measure in parsed]).fillna(0.0).astype(float)
    table.columns = pd.Index(measures)
    return table


def mean_ndcg(judgments: pd.DataFrame, pairs: pd.DataFrame, scores: NDArray[np.float64] | pd.Series) -> float:
    """Mean NDCG@10 over the queries of some pairs.

    Args:
        judgments: columns query_id, passage_id, relevance; judgments of other queries are ignored.
        pairs: columns query_id, passage_id.
        scores: the scores of the pairs, in their order.
    """
    judgments = judgments[judgments["query_id"].isin(pairs["query_id"])]
    run = pairs[["query_id", "passage_id"]].assign(score=np.asarray(scores))
    return float(per_query(judgments, run, ["nDCG@10"])["nDCG@10"].mean())


def rank(run: pd.DataFrame) -> pd.DataFrame:
    """Sort the run by query and score, with ties in trec_eval's order, and add a column with the rank from 1."""
    ordered = run.sort_values(["query_id", "score", "passage_id"], ascending=[True, False, False]).reset_index(
        drop=True
    )
    return ordered.assign(rank=ordered.groupby("query_id").cumcount() + 1)
