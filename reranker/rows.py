"""From the tables to the rows that the trainers take: which training queries, which right passage, which group."""

import hashlib

import numpy as np
import pandas as pd

from reranker.dataset import query_groups
from reranker.records import Tables


def in_hash_order(query_ids: pd.Series, *, salt: int) -> pd.Series:
    """The ids in an order that depends on each id and the salt alone, so that added queries slip in between.

    The first thousand of an order are a random sample that hardly changes when data is added.
    """
    keys = query_ids.map(lambda name: hashlib.blake2b(f"{salt}:{name}".encode(), digest_size=8).digest())
    return query_ids.iloc[np.argsort(keys.to_numpy(), kind="stable")].reset_index(drop=True)


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
    groups = pd.Series(pd.factorize(query_groups(passages, queries, judgments))[0], index=queries["query_id"])
    right = judgments[judgments["relevance"] > 0].sample(frac=1, random_state=seed).drop_duplicates("query_id")
    rows = pd.DataFrame({"query_id": query_ids}).merge(right[["query_id", "passage_id"]], on="query_id")
    return rows.assign(
        query=rows["query_id"].map(queries.set_index("query_id")["text"]),
        passage=rows["passage_id"].map(passages.set_index("passage_id")["text"]),
        group=rows["query_id"].map(groups),
    )


def training_groups(negatives: pd.DataFrame) -> pd.DataFrame:
    """Each query with its passages, the right one first.

    A list-wise loss wants groups of one size: queries with fewer passages than the largest group are
    filled up by repeating their last one, which in a softmax only weighs that passage more.

    Args:
        negatives: columns query_id, query, text (of the passage), kind (one `positive` per query, the others
            negatives), teacher (a logit).

    Returns:
        Columns query, passages, teacher; sorted by query_id.
    """
    table = negatives.assign(negative=negatives["kind"] != "positive")
    table = table.sort_values(["query_id", "negative"], kind="stable")
    groups = table.groupby("query_id").agg(query=("query", "first"), passages=("text", list), teacher=("teacher", list))
    size = int(groups["passages"].map(len).max())
    for column in ("passages", "teacher"):
        groups[column] = [values + values[-1:] * (size - len(values)) for values in groups[column]]
    return groups.reset_index(drop=True)
