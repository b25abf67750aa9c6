"""Divides the training queries among the stages, and chooses a relevant passage for each of them."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from reranker.common.artifacts import PATHS, Tables
from reranker.common.errors import UserError
from reranker.common.source_schema import SourceSection


def training_order(queries: pd.DataFrame, sources: Mapping[str, SourceSection]) -> pd.Series:
    """The ids of the training queries, in the random order in which the stages take them.

    The order depends only on each id and the weight of its source, so that queries that are added later slip
    in between: the first thousand are a random sample that hardly changes when data is added. With the weights 2 and 1,
    the queries of the first source are drawn twice as often as long as both sources have queries left. This is weighted
    sampling without replacement (Efraimidis and Spirakis, 2006).

    Args:
        queries: columns query_id, split, source.
        sources: the sources by name, with their weights.

    Raises:
        UserError: a query is from a source that `sources` lacks.
    """
    train = queries[queries["split"] == "train"]
    for unknown in train.loc[~train["source"].isin(sources), "source"]:
        raise UserError(f"{PATHS.queries}: column source: '{unknown}' is no source of params.yaml")
    lots = train["query_id"].map(
        lambda name: int.from_bytes(hashlib.blake2b(f"1:{name}".encode(), digest_size=8).digest(), "big")
    )
    waits = -np.log1p(-lots.to_numpy(float) / 2**64) / train["source"].map(lambda name: sources[name].weight).to_numpy(
        float
    )
    return train["query_id"].iloc[np.argsort(waits, kind="stable")].reset_index(drop=True)


def set_aside(query_ids: pd.Series, share: float) -> tuple[pd.Series, pd.Series]:
    """Divide training queries between the first stage and the reranker.

    A retriever ranks the right passages of the queries that it was tuned on too well, so the reranker needs queries
    that the retriever has not seen.

    Args:
        query_ids: ids of the training queries, see `training_order`.
        share: share of the queries for the retriever; both get at least one where there are two.

    Returns:
        The queries of the retriever, and those that are set aside for the reranker.
    """
    number = max(1, min(round(share * len(query_ids)), len(query_ids) - 1))
    return query_ids[:number], query_ids[number:]


def relevant_pairs(query_ids: pd.Series, tables: Tables, *, seed: int) -> pd.DataFrame:
    """Choose one relevant passage for each query. Rows of the same group must not be negatives of each other.

    Args:
        query_ids: ids of training queries; those without a relevant passage are left out.
        tables: the data set.
        seed: seed of the choice between several relevant passages.

    Returns:
        Columns query_id, passage_id, query, passage, group (a number), in the order of `query_ids`.
    """
    passages, queries, judgments = tables
    groups = pd.Series(pd.factorize(queries["group"])[0], index=queries["query_id"])
    relevant = judgments[judgments["relevance"] > 0].sample(frac=1, random_state=seed).drop_duplicates("query_id")
    rows = pd.DataFrame({"query_id": query_ids}).merge(relevant[["query_id", "passage_id"]], on="query_id")
    return rows.assign(
        query=rows["query_id"].map(queries.set_index("query_id")["text"]),
        passage=rows["passage_id"].map(passages.set_index("passage_id")["text"]),
        group=rows["query_id"].map(groups),
    )
