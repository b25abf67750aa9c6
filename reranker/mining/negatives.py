"""Choose the candidates that become hard negatives.

The filters have the names and the meaning that they have in `sentence_transformers.util.mine_hard_negatives`: margins
are measured from the lowest score of a relevant passage, and the range counts the candidates that nothing refuses. The
guards of `reranker.mining.false_negatives` also refuse passages that are probably relevant but not labelled.

This module names queries and passages by their row numbers in the tables. It keeps only candidates for each query.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reranker.common.errors import UserError
from reranker.common.progress import progress
from reranker.mining.false_negatives import GUARDS, Guards
from reranker.mining.judgments import JudgmentMatrices, Places, contains, entries
from reranker.retrieval.ranking import FirstStage

Scores = NDArray[np.float32]
ScorePairs = Callable[[Places, Places], NDArray[np.floating]]
"""Scores pairs; it takes the row numbers of their queries and of their passages, shape (pairs,) each."""
FILTERS = ("absolute_margin", "relative_margin", "max_score", "min_score")
REASONS = (*GUARDS, *FILTERS)
"""Why a candidate is refused; the first reason that applies counts."""
NO_CANDIDATE, NOT_REFUSED = -1, 0
"""Values in the place of a reason. `NO_CANDIDATE` marks a judged passage and an empty place."""
BLOCK = 1024
"""Queries that are processed together."""
TRIES = 4
"""Random draws per random negative, since a draw may hit a passage that cannot be used."""


class Filters(NamedTuple):
    """The conditions on a hard negative; None switches a filter off."""

    num_negatives: int
    """Hard negatives per query."""
    range_min: int
    """First rank of the range; ranks start at 0 and count only the candidates that nothing refuses."""
    range_max: int
    """The rank behind the last one of the range."""
    sampling: str
    """`top` takes the first of the range, `random` any, `buckets` one of each of `num_negatives` equal parts."""
    absolute_margin: float | None = None
    """A negative scores at least this much less than the relevant passage with the lowest score."""
    relative_margin: float | None = None
    """The same margin as a share of that score's magnitude."""
    max_score: float | None = None
    min_score: float | None = None


class Pool(NamedTuple):
    """Queries and their candidates, best first; rows are padded with position -1 and score -inf."""

    queries: Places
    """Shape (queries,)."""
    positions: Places
    """The candidate passages; shape (queries, candidates)."""
    scores: Scores
    """The candidates' scores; same shape."""


class MiningResult(NamedTuple):
    """The rows that training reads, and the candidates that they were chosen from."""

    rows: pd.DataFrame
    """Columns query, passage (row numbers), score, kind (positive, graded, judged, hard or random), relevance. Queries
    are in the order of the pool, and a query's positive comes first."""
    pool: Pool
    reasons: NDArray[np.int8]
    """For each candidate of the pool `NO_CANDIDATE`, `NOT_REFUSED`, or the place of its reason in `REASONS` from 1."""
    positive_scores: NDArray[np.float64]
    """For each query of the pool, the highest score of a relevant passage."""

    def refusal_counts(self) -> dict[str, int]:
        """The number of refused candidates by reason."""
        counts = np.bincount(self.reasons[self.reasons > 0], minlength=len(REASONS) + 1)
        return {reason: int(count) for reason, count in zip(REASONS, counts[1:], strict=True)}


def retrieve(
    first_stage: FirstStage, queries: Places, judgments: JudgmentMatrices, filters: Filters, number: int
) -> Pool:
    """Retrieve candidates for the first queries with a relevant passage among them, or with judged negatives.

    Other queries are left out. Where the retriever misses the relevant passage, the group would teach that a passage
    which looks unlike the query is the relevant one. At test time, however, every candidate comes from the retriever.

    Args:
        first_stage: the retriever that ranks the corpus.
        queries: row numbers; earlier queries are preferred.
        judgments: see `JudgmentMatrices`.
        filters: see `Filters`.
        number: the largest number of queries in the pool.

    Raises:
        UserError: no query can be used.
    """
    most = int(np.diff(judgments.relevant.indptr).max(initial=0))
    depth = filters.range_max + most
    parts: list[Pool] = []
    left = min(number, len(queries))
    for block in _blocks(queries, max(BLOCK, min(number, 16 * BLOCK))):
        ranking = first_stage.search(block, depth, label="mine: training queries")
        retrieves_relevant = contains(judgments.relevant, block, ranking.positions[:, : filters.range_max]).any(axis=1)
        has_irrelevant = np.diff(judgments.irrelevant.indptr)[block] > 0
        has_relevant = np.diff(judgments.relevant.indptr)[block] > 0
        rows = np.flatnonzero(has_relevant & (retrieves_relevant | has_irrelevant))[:left]
        parts.append(Pool(block[rows], ranking.positions[rows], ranking.scores[rows]))
        left -= len(rows)
        if not left:
            break
    if not any(len(part.queries) for part in parts):
        raise UserError(
            f"params.yaml: range_max: no training query has a relevant passage among the first {filters.range_max} "
            "candidates; raise it, choose another retriever, or look at data/prepared/judgments.parquet"
        )
    return Pool(
        np.concatenate([part.queries for part in parts]),
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def rescore(pool: Pool, score: ScorePairs) -> Pool:
    """Score the candidates with another model and sort them by its scores.

    Args:
        pool: see `Pool`.
        score: the other model; it gets all pairs at once, so that it can sort them by length.
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
    judgments: JudgmentMatrices,
    filters: Filters,
    guards: Guards,
    *,
    random_share: float,
    id_hashes: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    seed: int,
) -> MiningResult:
    """Form the training group of each query of the pool: a relevant passage and its negatives.

    The positive is the most relevant passage, and of several such passages the one with the highest score. Less
    relevant passages join it as `graded`, at most as many as negatives, because listwise losses learn from their order.
    A passage that is judged not to be relevant is a negative whatever the guards say, and it comes before the hard
    negatives. A query whose candidates are all refused gets random negatives instead.

    Args:
        pool: see `retrieve`.
        score: scores relevant and judged passages on the scale of the pool's scores.
        judgments: see `JudgmentMatrices`.
        filters: see `Filters`.
        guards: see `Guards`.
        random_share: share of the negatives that are random passages of the corpus.
        id_hashes: see `id_hashes`, of all queries and of all passages.
        seed: seed of every random choice; a query's choices do not depend on the other queries.
    """
    number = len(pool.queries)
    query_of, relevant = entries(judgments.relevant, pool.queries)
    relevant_scores = np.asarray(score(pool.queries[query_of], relevant), float)
    highest, lowest = np.full(number, -np.inf), np.full(number, np.inf)
    np.maximum.at(highest, query_of, relevant_scores)
    np.minimum.at(lowest, query_of, relevant_scores)
    relevance = np.asarray(judgments.relevant[pool.queries[query_of], relevant]).ravel()
    best = np.lexsort((-relevant_scores, -relevance, query_of))
    starts = np.unique(query_of[best], return_index=True)[1]
    less = relevance[best] < np.repeat(relevance[best][starts], np.diff(np.append(starts, len(best))))
    best, graded = best[starts], best[less]

    irrelevant_of, irrelevant = entries(judgments.irrelevant, pool.queries)
    irrelevant_scores = np.asarray(score(pool.queries[irrelevant_of], irrelevant), float)
    order = np.lexsort((-irrelevant_scores, irrelevant_of))
    irrelevant_of, irrelevant, irrelevant_scores = irrelevant_of[order], irrelevant[order], irrelevant_scores[order]

    reasons = np.zeros(pool.positions.shape, np.int8)
    chosen = np.zeros(pool.positions.shape, np.bool_)
    with progress("mine: negatives", number, "queries") as bar:
        for rows in _blocks(np.arange(number), BLOCK):
            part = Pool(pool.queries[rows], pool.positions[rows], pool.scores[rows])
            reasons[rows] = _reasons(part, lowest[rows], judgments, filters, guards)
            draws = _random_numbers(id_hashes[0][part.queries][:, None], id_hashes[1][part.positions], seed)
            chosen[rows] = choose(reasons[rows] == NOT_REFUSED, filters, draws)
            bar.advance(len(rows))
    hard_of, column = np.nonzero(chosen)
    hard, hard_scores = pool.positions[hard_of, column], pool.scores[hard_of, column].astype(float)

    groups = pd.concat(
        [
            _rows(query_of[best], relevant[best], relevant_scores[best], "positive", relevance[best]),
            _rows(query_of[graded], relevant[graded], relevant_scores[graded], "graded", relevance[graded]),
            _rows(irrelevant_of, irrelevant, irrelevant_scores, "judged"),
            _rows(hard_of, hard, hard_scores, "hard"),
        ]
    )
    random_number = round(filters.num_negatives * random_share)
    negative = groups["relevance"] == 0
    places = groups.groupby(["row", negative]).cumcount()
    groups = groups[places < np.where(negative, filters.num_negatives - random_number, filters.num_negatives + 1)]
    empty = np.bincount(groups.loc[groups["relevance"] == 0, "row"], minlength=number) == 0
    numbers = np.where(empty, filters.num_negatives, random_number)
    easy = _random_negatives(pool.queries, groups, judgments, guards, numbers, id_hashes, seed)
    easy["score"] = np.asarray(score(pool.queries[easy["row"]], easy["passage"].to_numpy()), float)
    groups = pd.concat([groups, easy]).sort_values("row", kind="stable", ignore_index=True)
    groups.insert(0, "query", pool.queries[groups.pop("row")])
    # training cannot learn from a group without a negative
    groups = groups[groups.groupby("query")["relevance"].transform("min") == 0].reset_index(drop=True)
    return MiningResult(groups, pool, reasons, highest)


def _blocks(values: Places, size: int) -> Iterator[Places]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _rows(
    of: Places, passages: Places, scores: NDArray[np.float64], kind: str, relevance: Places | int = 0
) -> pd.DataFrame:
    return pd.DataFrame({"row": of, "passage": passages, "score": scores, "kind": kind, "relevance": relevance})


def _reasons(
    pool: Pool, positive: NDArray[np.float64], judgments: JudgmentMatrices, filters: Filters, guards: Guards
) -> NDArray[np.int8]:
    """Reasons as in `MiningResult.reasons`.

    Args:
        pool: some queries of the pool.
        positive: for each query, the lowest score of a relevant passage.
        judgments: see `JudgmentMatrices`.
        filters: see `Filters`.
        guards: see `Guards`.
    """
    queries, positions, scores = pool
    judged = contains(judgments.relevant, queries, positions) | contains(judgments.irrelevant, queries, positions)
    is_candidate = (positions >= 0) & ~judged
    query_of, relevant = entries(judgments.relevant, queries)
    limits = np.full((len(FILTERS), len(queries)), np.inf)
    if filters.absolute_margin is not None:
        limits[0] = positive - filters.absolute_margin
    if filters.relative_margin is not None:
        limits[1] = positive - np.abs(positive) * filters.relative_margin
    if filters.max_score is not None:
        limits[2] = filters.max_score
    refused = [scores > limit[:, None] for limit in limits[:3]]
    lowest = -np.inf if filters.min_score is None else filters.min_score
    related = contains(judgments.related, judgments.group[queries], positions)
    masks = [*guards.refusals(positions, is_candidate, related, query_of, relevant), *refused, scores < lowest]
    reasons = np.select(masks, [np.int8(place) for place in range(1, len(masks) + 1)], default=np.int8(NOT_REFUSED))
    reasons[~is_candidate] = NO_CANDIDATE
    return reasons.astype(np.int8)


def choose(usable: NDArray[np.bool_], filters: Filters, draws: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which candidates become negatives.

    Args:
        usable: whether nothing refuses each candidate; shape (queries, candidates), best first.
        filters: see `Filters`.
        draws: a random number from 0 to 1 for each candidate; same shape.
    """
    rank = np.cumsum(usable, axis=1) - 1
    inside = usable & (rank >= filters.range_min) & (rank < filters.range_max)
    rank -= filters.range_min
    if filters.sampling == "top":
        return np.asarray(inside & (rank < filters.num_negatives))
    key = np.where(inside, draws, np.inf)
    if filters.sampling == "buckets":
        # the usable candidates are divided, not the whole range, so that few candidates fill all buckets too
        size = inside.sum(axis=1, keepdims=True)
        bucket = rank * filters.num_negatives // np.maximum(size, 1)
        order = np.argsort(np.where(inside, bucket + draws, np.inf), axis=1, kind="stable")
        sorted_bucket = np.take_along_axis(np.where(inside, bucket, -1), order, axis=1)
        first = np.diff(sorted_bucket, axis=1, prepend=-1) != 0
        firsts = np.zeros_like(inside)
        np.put_along_axis(firsts, order, first, axis=1)
        return np.asarray(firsts & inside)
    order = np.argsort(key, axis=1, kind="stable")[:, : filters.num_negatives]
    chosen = np.zeros_like(inside)
    np.put_along_axis(chosen, order, True, axis=1)
    return np.asarray(chosen & inside)


def id_hashes(ids: pd.Series) -> NDArray[np.uint64]:
    """A hash of each id; it stays the same when other ids are added."""
    return pd.util.hash_array(ids.to_numpy(dtype=object)).astype(np.uint64)


def _random_numbers(first: NDArray[np.uint64], second: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """A random number from 0 to 1 for each pair, by splitmix64's mixing (Steele, Lea and Flood, OOPSLA 2014)."""
    salt = np.uint64(seed * 0xD1B54A32D192ED03 % 2**64)
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + second + salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def _random_negatives(
    queries: Places,
    groups: pd.DataFrame,
    judgments: JudgmentMatrices,
    guards: Guards,
    numbers: Places,
    id_hashes: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    seed: int,
) -> pd.DataFrame:
    """Draw random passages that are neither judged nor in the groups nor refused by a guard.

    A query gets fewer than its number where too many draws hit such passages.
    """
    tries = int(numbers.max(initial=0)) * TRIES
    size = judgments.relevant.shape[1]
    place = _random_numbers(id_hashes[0][queries][:, None], np.arange(tries, dtype=np.uint64)[None, :], seed)
    positions = (place * size).astype(np.int64)
    row = np.repeat(np.arange(len(queries)), tries)
    table = pd.DataFrame({"row": row, "passage": positions.ravel()})
    unusable = (
        table.duplicated().to_numpy()
        | table.merge(groups[["row", "passage"]], how="left", indicator=True)["_merge"].eq("both").to_numpy()
    )
    unusable = unusable.reshape(positions.shape)
    for rows in _blocks(np.arange(len(queries)), BLOCK):
        part, of = positions[rows], queries[rows]
        judged = contains(judgments.relevant, of, part) | contains(judgments.irrelevant, of, part)
        related = contains(judgments.related, judgments.group[of], part)
        refused = guards.refusals(part, ~judged, related, *entries(judgments.relevant, of))
        unusable[rows] |= judged | np.any(refused, axis=0)
    of, column = np.nonzero(~unusable & (np.cumsum(~unusable, axis=1) <= numbers[:, None]))
    return _rows(of, positions[of, column], np.zeros(len(of)), "random")
