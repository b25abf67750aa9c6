"""First-stage retrieval: what a retriever is, and its rankings as tables of candidates.

The retrievers are in `first_stage`. Which candidates become negatives is decided elsewhere.
"""

from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


class Ranking(NamedTuple):
    """The first passages of each query; row i belongs to query i."""

    positions: NDArray[np.int64]
    """Positions of the passages in the corpus, best first; -1 behind the last one that was found; shape
    (queries, depth)."""
    scores: Vectors
    """Their scores, same shape; minus infinity where no passage was found."""


class FirstStage(Protocol):
    """A retriever over one corpus and one set of queries, which are known by their places in the tables.

    The three methods agree: a passage has one score for a query, and its rank follows from it.
    """

    def search(self, queries: NDArray[np.int64], depth: int, *, label: str) -> Ranking:
        """The first passages of each query.

        Args:
            queries: their places; none is fine.
            depth: number of passages per query; the whole corpus if it is smaller.
            label: what the progress is called.
        """
        ...

    def scores(self, queries: NDArray[np.int64], passages: NDArray[np.int64]) -> Vectors:
        """Scores of pairs, shape (pairs,)."""
        ...

    def ranks(self, queries: NDArray[np.int64], passages: NDArray[np.int64]) -> NDArray[np.int64]:
        """True rank of each pair's passage in the whole corpus: the number of passages that score higher, plus 1."""
        ...


def best_first(positions: NDArray[np.int64], scores: Vectors, depth: int) -> Ranking:
    """The best of some passages; equal scores by position, from the last to the first.

    Args:
        positions: below 2^32; -1 where there is none; shape (queries, passages).
        scores: of them, same shape.
        depth: number of passages per query, at most.
    """
    # one number that sorts by score, then by position: sorting such takes a tenth of the time of lexsort
    bits = (scores + np.float32(0)).view(np.int32)  # -0.0 + 0.0 is 0.0
    keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32) | positions
    nothing = np.iinfo(np.int64).min
    keys[positions < 0] = nothing
    keys.sort(axis=1)
    keys = keys[:, ::-1][:, :depth]
    bits = (keys >> 32).astype(np.int32)
    found = keys != nothing
    return Ranking(
        np.where(found, keys & 0xFFFFFFFF, -1),
        np.where(found, (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32), np.float32(-np.inf)),
    )


def candidates(ranking: Ranking, query_ids: pd.Series, passage_ids: pd.Series) -> pd.DataFrame:
    """A ranking as a table, without the places where no passage was found.

    Equal scores are ordered as trec_eval orders them, by passage id from the last to the first.

    Args:
        ranking: of these queries.
        query_ids: in the order of the ranking's rows.
        passage_ids: of the corpus.

    Returns:
        Columns query_id, passage_id, rank (from 1), score; sorted by query_id and rank.
    """
    queries = np.argsort(query_ids.to_numpy(), kind="stable")
    positions, scores = ranking.positions[queries], ranking.scores[queries]
    by_id = np.argsort(passage_ids.to_numpy())  # sorting numbers takes a tenth of the time that sorting ids takes
    place_of = np.argsort(by_id)
    places, scores = best_first(np.where(positions < 0, -1, place_of[positions]), scores, positions.shape[1])
    positions = by_id[places]
    row, place = np.nonzero(places >= 0)
    return pd.DataFrame(
        {
            "query_id": query_ids.to_numpy()[queries][row],
            "passage_id": passage_ids.to_numpy()[positions[row, place]],
            "rank": place + 1,
            "score": scores[row, place],
        }
    )


def missed_positives(
    candidates: pd.DataFrame, judgments: pd.DataFrame, stage: FirstStage, query_ids: pd.Series, passage_ids: pd.Series
) -> pd.DataFrame:
    """Right passages that are not among the candidates, with their true rank: the second evaluation mode adds them.

    Args:
        candidates: columns query_id, passage_id, rank.
        judgments: columns query_id, passage_id, relevance; of these queries.
        stage: the retriever that found the candidates.
        query_ids: of the retriever's queries.
        passage_ids: of the corpus.

    Returns:
        Columns as in `candidates`: query_id, passage_id, rank, score.
    """
    right = judgments.loc[judgments["relevance"] > 0, ["query_id", "passage_id"]]
    known = pd.MultiIndex.from_frame(candidates[["query_id", "passage_id"]])
    missed = right[~pd.MultiIndex.from_frame(right).isin(known)].reset_index(drop=True)
    of = pd.Index(query_ids).get_indexer(missed["query_id"])
    at = pd.Index(passage_ids).get_indexer(missed["passage_id"])
    lowest = missed["query_id"].map(candidates.groupby("query_id")["rank"].max()).fillna(0).to_numpy(dtype=np.int64)
    # passages with the score of the last candidate may rank above it by id; a missed one never ranks among them
    rank = np.maximum(stage.ranks(of, at), lowest + 1)
    return missed.assign(rank=rank, score=stage.scores(of, at))
