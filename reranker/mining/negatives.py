"""Which candidates become hard negatives.

The filters have the names of `sentence_transformers.util.mine_hard_negatives` and its meaning: margins are kept from
the lowest score of a right passage, and the range counts the candidates that nothing refuses. Beyond them, the guards
of `reranker.mining.false_negatives` refuse what is probably an unlabelled right answer.

Queries and passages are known by their places in the tables here; nothing is held for each query but its candidates.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reranker.common.errors import UserError
from reranker.common.progress import progress
from reranker.mining.false_negatives import GUARDS, Guards
from reranker.mining.judgments import Judged, Places, contains, entries
from reranker.retrieval.ranking import FirstStage

Scores = NDArray[np.float32]
ScorePairs = Callable[[Places, Places], NDArray[np.floating]]
"""Of the queries' and the passages' places, shape (pairs,) each."""
FILTERS = ("absolute_margin", "relative_margin", "max_score", "min_score")
REASONS = (*GUARDS, *FILTERS)
"""Why a candidate is refused; the first that applies counts."""
TAKEN, KEPT = -1, 0
"""In the place of a reason: no candidate, for it is judged or there is none; not refused."""
BLOCK = 1024
"""Queries that are looked at together."""
TRIES = 4
"""Random passages that are drawn for each that is wanted: a draw may hit one that must not be taken."""


class Filters(NamedTuple):
    """What a hard negative may look like; None switches a filter off."""

    num_negatives: int
    """Hard negatives per query."""
    range_min: int
    """Rank, from 0, of the first candidate that is taken, of those that nothing refuses."""
    range_max: int
    """Rank before which to stop."""
    sampling: str
    """`top` takes the first of the range, `random` any, `buckets` one of each of `num_negatives` equal parts."""
    absolute_margin: float | None = None
    """Lowest distance below the lowest score of a right passage."""
    relative_margin: float | None = None
    """The same as a share of that score's magnitude."""
    max_score: float | None = None
    min_score: float | None = None


class Pool(NamedTuple):
    """Queries and their candidates, best first; padded with position -1 and score -inf."""

    queries: Places
    """Shape (queries,)."""
    positions: Places
    """Of passages; shape (queries, candidates)."""
    scores: Scores
    """The same shape."""


class Mined(NamedTuple):
    """What mining gives to training, and what there was to choose from."""

    rows: pd.DataFrame
    """Columns query, passage (places), score, kind (positive, graded, judged, hard or random), relevance; by query as
    in the pool, the positive first."""
    pool: Pool
    reasons: NDArray[np.int8]
    """Of each candidate of the pool: `TAKEN`, `KEPT`, or its reason's place in `REASONS` from 1."""
    positive_scores: NDArray[np.float64]
    """Highest score of a right passage of each query of the pool."""

    def refused(self) -> dict[str, int]:
        """Number of candidates by the reason for which they are refused."""
        counts = np.bincount(self.reasons[self.reasons > 0], minlength=len(REASONS) + 1)
        return {reason: int(count) for reason, count in zip(REASONS, counts[1:], strict=True)}


def retrieve(first_stage: FirstStage, queries: Places, known: Judged, filters: Filters, number: int) -> Pool:
    """Candidates of the first queries whose right passage is retrieved, or that bring wrong passages of their own.

    Of another query, whose right passage the retriever misses, the group would teach that the passage that looks unlike
    the query is the right one, and at test every candidate comes from the retriever.

    Args:
        first_stage: ranks the corpus.
        queries: in the order in which they are taken.
        known: see `Judged`.
        filters: see `Filters`.
        number: of queries that are wanted.

    Raises:
        UserError: there is no such query.
    """
    most = int(np.diff(known.right.indptr).max(initial=0))
    depth = filters.range_max + most
    parts: list[Pool] = []
    left = min(number, len(queries))
    for block in _blocks(queries, max(BLOCK, min(number, 16 * BLOCK))):
        found = first_stage.search(block, depth, label="mine: training queries")
        is_right = contains(known.right, block, found.positions[:, : filters.range_max]).any(axis=1)
        brings = np.diff(known.wrong.indptr)[block] > 0
        has_right = np.diff(known.right.indptr)[block] > 0
        taken = np.flatnonzero(has_right & (is_right | brings))[:left]
        parts.append(Pool(block[taken], found.positions[taken], found.scores[taken]))
        left -= len(taken)
        if not left:
            break
    if not any(len(part.queries) for part in parts):
        raise UserError(
            f"params.yaml: range_max: no training query has a right passage among the first {filters.range_max} "
            "candidates; raise it, choose another retriever, or look at data/prepared/judgments.parquet"
        )
    return Pool(
        np.concatenate([part.queries for part in parts]),
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def rescore(pool: Pool, score: ScorePairs) -> Pool:
    """The candidates by the scores of another model, in their order.

    Args:
        pool: see `Pool`.
        score: gets all pairs at once, so that it can sort them by length.
    """
    there = pool.positions >= 0
    scores = np.full(pool.scores.shape, -np.inf, np.float32)
    scores[there] = score(np.repeat(pool.queries, there.sum(axis=1)), pool.positions[there])
    order = np.argsort(-scores, axis=1, kind="stable")
    return Pool(
        pool.queries, np.take_along_axis(pool.positions, order, axis=1), np.take_along_axis(scores, order, axis=1)
    )


def mine(
    pool: Pool,
    score: ScorePairs,
    known: Judged,
    filters: Filters,
    guards: Guards,
    *,
    random_share: float,
    lots: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    seed: int,
) -> Mined:
    """The training group of each query of the pool: a right passage and its negatives.

    The right passage is the most relevant one, and of several the one with the highest score. Passages that are right
    but less so come with it as `graded`, as many as negatives at most: losses of lists learn from their order. What
    is judged to be wrong is a negative whatever the guards say, and comes before the mined ones. A query for which
    every candidate is refused gets random negatives in their place.

    Args:
        pool: see `retrieve`.
        score: of right and judged passages, on the scale of the pool's scores.
        known: see `Judged`.
        filters: see `Filters`.
        guards: see `Guards`.
        random_share: share of the negatives that are passages from anywhere in the corpus.
        lots: a random number for each query and each passage that stays the same when others are added.
        seed: of every random choice, which does not depend on the other queries.
    """
    number = len(pool.queries)
    right_of, right = entries(known.right, pool.queries)
    right_scores = np.asarray(score(pool.queries[right_of], right), float)
    highest, lowest = np.full(number, -np.inf), np.full(number, np.inf)
    np.maximum.at(highest, right_of, right_scores)
    np.minimum.at(lowest, right_of, right_scores)
    relevance = np.asarray(known.right[pool.queries[right_of], right]).ravel()
    best = np.lexsort((-right_scores, -relevance, right_of))
    starts = np.unique(right_of[best], return_index=True)[1]
    less = relevance[best] < np.repeat(relevance[best][starts], np.diff(np.append(starts, len(best))))
    best, graded = best[starts], best[less]

    wrong_of, wrong = entries(known.wrong, pool.queries)
    wrong_scores = np.asarray(score(pool.queries[wrong_of], wrong), float)
    order = np.lexsort((-wrong_scores, wrong_of))
    wrong_of, wrong, wrong_scores = wrong_of[order], wrong[order], wrong_scores[order]

    reasons = np.zeros(pool.positions.shape, np.int8)
    chosen = np.zeros(pool.positions.shape, np.bool_)
    with progress("mine: negatives", number, "queries") as shown:
        for rows in _blocks(np.arange(number), BLOCK):
            part = Pool(pool.queries[rows], pool.positions[rows], pool.scores[rows])
            reasons[rows] = _refuse(part, lowest[rows], known, filters, guards)
            drawn = _mixed(lots[0][part.queries][:, None], lots[1][part.positions], seed)
            chosen[rows] = choose(reasons[rows] == KEPT, filters, drawn)
            shown.advance(len(rows))
    hard_of, column = np.nonzero(chosen)
    hard, hard_scores = pool.positions[hard_of, column], pool.scores[hard_of, column].astype(float)

    mined = pd.concat(
        [
            _rows(right_of[best], right[best], right_scores[best], "positive", relevance[best]),
            _rows(right_of[graded], right[graded], right_scores[graded], "graded", relevance[graded]),
            _rows(wrong_of, wrong, wrong_scores, "judged"),
            _rows(hard_of, hard, hard_scores, "hard"),
        ]
    )
    wanted = round(filters.num_negatives * random_share)
    negative = mined["relevance"] == 0
    places = mined.groupby(["row", negative]).cumcount()
    mined = mined[places < np.where(negative, filters.num_negatives - wanted, filters.num_negatives + 1)]
    empty = np.bincount(mined.loc[mined["relevance"] == 0, "row"], minlength=number) == 0
    easy = _draw(pool.queries, mined, known, guards, np.where(empty, filters.num_negatives, wanted), lots, seed)
    easy["score"] = np.asarray(score(pool.queries[easy["row"]], easy["passage"].to_numpy()), float)
    mined = pd.concat([mined, easy]).sort_values("row", kind="stable", ignore_index=True)
    mined.insert(0, "query", pool.queries[mined.pop("row")])
    # a query with nothing but right passages has nothing to teach
    mined = mined[mined.groupby("query")["relevance"].transform("min") == 0].reset_index(drop=True)
    return Mined(mined, pool, reasons, highest)


def _blocks(values: Places, size: int) -> Iterator[Places]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _rows(
    of: Places, passages: Places, scores: NDArray[np.float64], kind: str, relevance: Places | int = 0
) -> pd.DataFrame:
    return pd.DataFrame({"row": of, "passage": passages, "score": scores, "kind": kind, "relevance": relevance})


def _refuse(
    pool: Pool, positive: NDArray[np.float64], known: Judged, filters: Filters, guards: Guards
) -> NDArray[np.int8]:
    """See `Mined.reasons`.

    Args:
        pool: some queries of it.
        positive: lowest score of a right passage of each.
        known: see `Judged`.
        filters: see `Filters`.
        guards: see `Guards`.
    """
    queries, positions, scores = pool
    taken = (positions < 0) | contains(known.right, queries, positions) | contains(known.wrong, queries, positions)
    right_of, right = entries(known.right, queries)
    limits = np.full((len(FILTERS), len(queries)), np.inf)
    if filters.absolute_margin is not None:
        limits[0] = positive - filters.absolute_margin
    if filters.relative_margin is not None:
        limits[1] = positive - np.abs(positive) * filters.relative_margin
    if filters.max_score is not None:
        limits[2] = filters.max_score
    refused = [scores > limit[:, None] for limit in limits[:3]]
    lowest = -np.inf if filters.min_score is None else filters.min_score
    related = contains(known.related, known.group[queries], positions)
    found = [*guards.refusals(positions, ~taken, related, right_of, right), *refused, scores < lowest]
    reasons = np.select(found, [np.int8(place) for place in range(1, len(found) + 1)], default=np.int8(KEPT))
    reasons[taken] = TAKEN
    return reasons.astype(np.int8)


def choose(usable: NDArray[np.bool_], filters: Filters, lots: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which candidates are taken.

    Args:
        usable: whether nothing refuses it; shape (queries, candidates), best first.
        filters: see `Filters`.
        lots: a random number from 0 to 1 for each, same shape.
    """
    rank = np.cumsum(usable, axis=1) - 1
    inside = usable & (rank >= filters.range_min) & (rank < filters.range_max)
    rank -= filters.range_min
    if filters.sampling == "top":
        return np.asarray(inside & (rank < filters.num_negatives))
    key = np.where(inside, lots, np.inf)
    if filters.sampling == "buckets":
        # the parts are of what there is, so that a query with few candidates has its negatives from all of them
        size = inside.sum(axis=1, keepdims=True)
        bucket = rank * filters.num_negatives // np.maximum(size, 1)
        order = np.argsort(np.where(inside, bucket + lots, np.inf), axis=1, kind="stable")
        sorted_bucket = np.take_along_axis(np.where(inside, bucket, -1), order, axis=1)
        first = np.diff(sorted_bucket, axis=1, prepend=-1) != 0
        firsts = np.zeros_like(inside)
        np.put_along_axis(firsts, order, first, axis=1)
        return np.asarray(firsts & inside)
    order = np.argsort(key, axis=1, kind="stable")[:, : filters.num_negatives]
    chosen = np.zeros_like(inside)
    np.put_along_axis(chosen, order, True, axis=1)
    return np.asarray(chosen & inside)


def lots(ids: pd.Series) -> NDArray[np.uint64]:
    """A random number for each id that depends on the id alone."""
    return pd.util.hash_array(ids.to_numpy(dtype=object)).astype(np.uint64)


def _mixed(first: NDArray[np.uint64], second: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """A number from 0 to 1 for each pair, by the mixing of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    salt = np.uint64(seed * 0xD1B54A32D192ED03 % 2**64)
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + second + salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def _draw(
    queries: Places,
    mined: pd.DataFrame,
    known: Judged,
    guards: Guards,
    wanted: Places,
    lots: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    seed: int,
) -> pd.DataFrame:
    """Random passages that are neither judged nor mined nor refused by a guard; fewer where draws hit such ones."""
    tries = int(wanted.max(initial=0)) * TRIES
    size = known.right.shape[1]
    place = _mixed(lots[0][queries][:, None], np.arange(tries, dtype=np.uint64)[None, :], seed)
    positions = (place * size).astype(np.int64)
    row = np.repeat(np.arange(len(queries)), tries)
    table = pd.DataFrame({"row": row, "passage": positions.ravel()})
    taken = (
        table.duplicated().to_numpy()
        | table.merge(mined[["row", "passage"]], how="left", indicator=True)["_merge"].eq("both").to_numpy()
    )
    taken = taken.reshape(positions.shape)
    for rows in _blocks(np.arange(len(queries)), BLOCK):
        part, of = positions[rows], queries[rows]
        judged_here = contains(known.right, of, part) | contains(known.wrong, of, part)
        related = contains(known.related, known.group[of], part)
        refused = guards.refusals(part, ~judged_here, related, *entries(known.right, of))
        taken[rows] |= judged_here | np.any(refused, axis=0)
    drawn = ~taken & (np.cumsum(~taken, axis=1) <= wanted[:, None])
    of, column = np.nonzero(drawn)
    return _rows(of, positions[of, column], np.zeros(len(of)), "random")
