"""The interface of first-stage retrievers, and their rankings as tables of candidates.

The retrievers themselves are in `retrievers`. The package `mining` chooses the candidates that become negatives.
"""

from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


class Ranking(NamedTuple):
    """The first passages of each query. Row i belongs to query i."""

    positions: NDArray[np.int64]
    """Positions of the passages in the corpus, best first; shape (queries, depth). Missing ones at the end are -1."""
    scores: Vectors
    """Scores of the passages, with the same shape; minus infinity where the position is -1."""


class FirstStage(Protocol):
    """A retriever over one corpus and one set of queries. Both are named by their positions in the tables.

    The three methods agree: a passage has one score for a query, and its rank follows from that score.
    """

    def search(self, queries: NDArray[np.int64], depth: int, *, label: str) -> Ranking:
        """Find the first passages of each query.

        Args:
            queries: positions of the queries; there may be none.
            depth: number of passages per query, or the size of the corpus if that is smaller.
            label: the label of the progress.
        """
        ...

    def scores(self, queries: NDArray[np.int64], passages: NDArray[np.int64]) -> Vectors:
        """Scores of pairs; shape (pairs,)."""
        ...

    def ranks(self, queries: NDArray[np.int64], passages: NDArray[np.int64]) -> NDArray[np.int64]:
        """True rank of each pair's passage in the corpus, which is the number of passages that score higher, plus 1."""
        ...


def best_first(positions: NDArray[np.int64], scores: Vectors, depth: int) -> Ranking:
    """Rank some passages of each query. Passages with equal scores are ordered by position, from the last to the first.

    Args:
        positions: positions below 2^32, or -1 for no passage; shape (queries, passages).
        scores: scores of the passages, with the same shape.
        depth: the largest number of passages per query.
    """
    # Each key is one number that sorts by score and then by position, which takes a tenth of the time of lexsort.
    bits = (scores + np.float32(0)).view(np.int32)  # -0.0 + 0.0 is 0.0
    keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32) | positions
    nothing = np.iinfo(np.int64).min
    keys[positions < 0] = nothing
    keys.sort(axis=1)
    keys = keys[:, ::-1][:, :depth]
    bits = (keys >> 32).astype(np.int32)
    is_passage = keys != nothing
    return Ranking(
        np.where(is_passage, keys & 0xFFFFFFFF, -1),
        np.where(is_passage, (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32), np.float32(-np.inf)),
    )


def candidates(ranking: Ranking, query_ids: pd.Series, passage_ids: pd.Series) -> pd.DataFrame:
    """Turn a ranking into a table, without the positions that are -1.

    Equal scores are ordered as trec_eval orders them, by passage id from the last to the first.

    Args:
        ranking: the ranking of these queries.
        query_ids: ids of the queries, in the order of the ranking's rows.
        passage_ids: ids of the passages of the corpus.

    Returns:
        Columns query_id, passage_id, rank (from 1), score; sorted by query_id and rank.
    """
    queries = np.argsort(query_ids.to_numpy(), kind="stable")
    positions, scores = ranking.positions[queries], ranking.scores[queries]
    by_id = np.argsort(passage_ids.to_numpy())  # sorting numbers takes a tenth of the time that sorting ids takes
    order_of = np.argsort(by_id)
    orders, scores = best_first(np.where(positions < 0, -1, order_of[positions]), scores, positions.shape[1])
    positions = by_id[orders]
    row, column = np.nonzero(orders >= 0)
    return pd.DataFrame(
        {
            "query_id": query_ids.to_numpy()[queries][row],
            "passage_id": passage_ids.to_numpy()[positions[row, column]],
            "rank": column + 1,
            "score": scores[row, column],
        }
    )


def missed_positives(
    candidates: pd.DataFrame, judgments: pd.DataFrame, stage: FirstStage, query_ids: pd.Series, passage_ids: pd.Series
) -> pd.DataFrame:
    """Find relevant passages that are not among the candidates, for the evaluation mode that adds them.

    Args:
        candidates: columns query_id, passage_id, rank.
        judgments: columns query_id, passage_id, relevance, for the queries of the candidates.
        stage: the retriever that ranked the candidates.
        query_ids: ids of the retriever's queries.
        passage_ids: ids of the passages of the corpus.

    Returns:
        Columns query_id, passage_id, rank (the true rank in the whole corpus), score.
    """
    relevant = judgments.loc[judgments["relevance"] > 0, ["query_id", "passage_id"]]
    retrieved = pd.MultiIndex.from_frame(candidates[["query_id", "passage_id"]])
    missed = relevant[~pd.MultiIndex.from_frame(relevant).isin(retrieved)].reset_index(drop=True)
    queries = pd.Index(query_ids).get_indexer(missed["query_id"])
    passages = pd.Index(passage_ids).get_indexer(missed["passage_id"])
    lowest = missed["query_id"].map(candidates.groupby("query_id")["rank"].max()).fillna(0).to_numpy(dtype=np.int64)
    # `ranks` ignores ids, so a missed passage with the score of the last candidate could get the rank of a candidate.
    rank = np.maximum(stage.ranks(queries, passages), lowest + 1)
    return missed.assign(rank=rank, score=stage.scores(queries, passages))
