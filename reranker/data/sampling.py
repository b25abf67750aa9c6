"""From the tables to the rows that the trainers take: which training queries, which right passage, which group."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from reranker.common.artifacts import PATHS, Tables
from reranker.common.errors import UserError
from reranker.common.source_schema import SourceSection


def training_order(queries: pd.DataFrame, sources: Mapping[str, SourceSection], *, salt: int) -> pd.Series:
    """The ids of the training queries in the order in which they are taken.

    It depends on each id, its source's weight and the salt alone, so that added queries slip in between: the first
    thousand are a random sample that hardly changes when data is added. Of sources with the weights 2 and 1, the
    first one's queries are drawn twice as often while both last: weighted sampling without replacement (Efraimidis
    and Spirakis, 2006).

    Args:
        queries: columns query_id, split, source.
        sources: by name, with their weights.
        salt: another one gives another order.

    Raises:
        UserError: a query is of another source.
    """
    train = queries[queries["split"] == "train"]
    for unknown in train.loc[~train["source"].isin(sources), "source"]:
        raise UserError(f"{PATHS.queries}: column source: '{unknown}' is no source of params.yaml")
    lots = train["query_id"].map(
        lambda name: int.from_bytes(hashlib.blake2b(f"{salt}:{name}".encode(), digest_size=8).digest(), "big")
    )
    waits = -np.log1p(-lots.to_numpy(float) / 2**64) / train["source"].map(lambda name: sources[name].weight).to_numpy(
        float
    )
    return train["query_id"].iloc[np.argsort(waits, kind="stable")].reset_index(drop=True)


def right_pairs(query_ids: pd.Series, tables: Tables, *, seed: int) -> pd.DataFrame:
    """One right passage per query, and the group within which rows are not negatives of each other.

    Args:
        query_ids: of the training queries that are wanted.
        tables: the data set.
        seed: of the choice between several right passages.

    Returns:
        Columns query_id, passage_id, query, passage, group (a number), in the order of `query_ids`.
    """
    passages, queries, judgments = tables
    groups = pd.Series(pd.factorize(queries["group"])[0], index=queries["query_id"])
    right = judgments[judgments["relevance"] > 0].sample(frac=1, random_state=seed).drop_duplicates("query_id")
    rows = pd.DataFrame({"query_id": query_ids}).merge(right[["query_id", "passage_id"]], on="query_id")
    return rows.assign(
        query=rows["query_id"].map(queries.set_index("query_id")["text"]),
        passage=rows["passage_id"].map(passages.set_index("passage_id")["text"]),
        group=rows["query_id"].map(groups),
    )
