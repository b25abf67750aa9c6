"""Which candidates become hard negatives, and the guards against false ones.

The filters have the names of `sentence_transformers.util.mine_hard_negatives` and its meaning but for two
points: a margin is kept from the best-ranked right passage instead of the lowest one, and the range counts
the candidates that a guard refuses. Beyond them, a candidate is refused as a probably unlabelled right answer
when it answers another query of the same group, or is nearly the same text as a right passage.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reranker.records import Tables

GUARDS = ("group_positive", "near_duplicate", "absolute_margin", "relative_margin", "max_score", "min_score")


class Filters(NamedTuple):
    """What a hard negative may look like; None switches a filter off."""

    num_negatives: int
    """Hard negatives per query."""
    range_min: int
    """First rank, counted from 0 after the judged passages are taken out."""
    range_max: int
    """Rank before which to stop."""
    sampling: str
    """`top` takes the first that pass, `random` any."""
    absolute_margin: float | None
    """Lowest distance below the score of the best right passage."""
    relative_margin: float | None
    """The same as a share of that score's magnitude."""
    max_score: float | None
    min_score: float | None


def refusals(
    pool: pd.DataFrame,
    filters: Filters,
    *,
    positive_scores: pd.Series,
    group_positives: pd.MultiIndex,
    near_duplicates: NDArray[np.bool_],
) -> pd.Series:
    """Why each candidate may not be a negative; an empty string where it may.

    Args:
        pool: candidates of training queries without their judged passages; columns query_id, passage_id, score.
        filters: see `Filters`.
        positive_scores: highest score of a right passage by query_id.
        group_positives: pairs (query_id, passage_id) that are right for a query of the same group.
        near_duplicates: for each row of `pool`, whether it is nearly the same text as a right passage.

    Returns:
        The first guard that applies, a name of `GUARDS`, with the index of `pool`.

    Raises:
        ValueError: a query of `pool` has no positive score.
    """
    positive = pool["query_id"].map(positive_scores)
    if positive.isna().any():
        raise ValueError("a query has no score of a right passage, so no margin can be kept from it")
    pairs = pd.MultiIndex.from_frame(pool[["query_id", "passage_id"]])
    never = pd.Series(False, index=pool.index)
    refused = {
        "group_positive": pairs.isin(group_positives),
        "near_duplicate": near_duplicates,
        "absolute_margin": never
        if filters.absolute_margin is None
        else pool["score"] > positive - filters.absolute_margin,
        "relative_margin": never
        if filters.relative_margin is None
        else pool["score"] > positive - positive.abs() * filters.relative_margin,
        "max_score": never if filters.max_score is None else pool["score"] > filters.max_score,
        "min_score": never if filters.min_score is None else pool["score"] < filters.min_score,
    }
    reasons = np.select([np.asarray(refused[guard]) for guard in GUARDS], GUARDS, default="")
    return pd.Series(reasons, index=pool.index, dtype="str")


def choose(pool: pd.DataFrame, filters: Filters, *, seed: int) -> pd.DataFrame:
    """The hard negatives of each query from the candidates that no guard refused.

    Args:
        pool: candidates sorted by query_id and rank; columns query_id, passage_id, score, position (rank
            from 0 with the judged passages taken out), reason.
        filters: see `Filters`.
        seed: of random sampling; sampling does not depend on the other queries.

    Returns:
        Columns query_id, passage_id, score; sorted by query_id and the order of preference.
    """
    usable = pool[(pool["reason"] == "") & pool["position"].between(filters.range_min, filters.range_max - 1)]
    if filters.sampling == "random":
        lot = pd.util.hash_pandas_object(
            usable["query_id"] + usable["passage_id"], index=False, hash_key=f"{seed:016d}"
        )
        usable = usable.assign(lot=lot.to_numpy()).sort_values(["query_id", "lot"], kind="stable")
    chosen = usable[usable.groupby("query_id").cumcount() < filters.num_negatives]
    return chosen[["query_id", "passage_id", "score"]].reset_index(drop=True)


def choose_random(
    query_ids: pd.Series, passage_ids: pd.Series, forbidden: pd.MultiIndex, number: int, *, seed: int
) -> pd.DataFrame:
    """Passages from anywhere in the corpus, so that the reranker also sees easy ones.

    Args:
        query_ids: the training queries.
        passage_ids: the corpus.
        forbidden: pairs (query_id, passage_id) that must not be drawn; a draw that hits one is left out.
        number: draws per query.
        seed: of the draws.

    Returns:
        Columns query_id, passage_id.
    """
    generator = np.random.default_rng(seed)
    drawn = pd.DataFrame(
        {
            "query_id": np.repeat(query_ids.to_numpy(), number),
            "passage_id": passage_ids.to_numpy()[generator.integers(0, len(passage_ids), size=len(query_ids) * number)],
        }
    ).drop_duplicates()
    return drawn[~pd.MultiIndex.from_frame(drawn).isin(forbidden)].reset_index(drop=True)


def near_duplicate_pairs(
    pool: pd.DataFrame, judgments: pd.DataFrame, passages: pd.DataFrame, vectors: NDArray[np.float32], similarity: float
) -> NDArray[np.bool_]:
    """Whether each candidate is nearly the same text as a right passage of its query.

    Nearly the same is a passage of one group, or a cosine of at least `similarity` between the passages' own
    vectors.

    Args:
        pool: columns query_id, passage_id.
        judgments: columns query_id, passage_id of right passages.
        passages: columns passage_id, group.
        vectors: one normalised vector per passage, in the order of `passages`; shape (passages, dimensions).
        similarity: cosine from which two passages count as the same.
    """
    position = pd.Series(np.arange(len(passages)), index=passages["passage_id"])
    groups = pd.factorize(passages["group"])[0]
    pairs = pool[["query_id", "passage_id"]].reset_index(drop=True).reset_index(names="row")
    pairs = pairs.merge(judgments[["query_id", "passage_id"]], on="query_id", suffixes=("", "_right"))
    here, right = (position[pairs[column]].to_numpy() for column in ("passage_id", "passage_id_right"))
    same = groups[here] == groups[right]
    for start in range(0, len(pairs), 100_000):
        part = slice(start, start + 100_000)
        same[part] |= np.einsum("ij,ij->i", vectors[here[part]], vectors[right[part]]) >= similarity
    found = np.zeros(len(pool), dtype=bool)
    np.logical_or.at(found, pairs["row"].to_numpy(), same)
    return found


class Mined(NamedTuple):
    """What mining gives to training."""

    rows: pd.DataFrame
    """Columns query_id, passage_id, score, kind (positive, judged, hard or random); by query_id, the positive first."""
    refused: dict[str, int]
    """Number of candidates that each guard refused."""


def mine(
    ranked: pd.DataFrame,
    query_ids: pd.Series,
    tables: Tables,
    vectors: NDArray[np.float32],
    query_vectors: NDArray[np.float32],
    filters: Filters,
    *,
    number: int,
    random_negatives: int,
    duplicate_similarity: float,
    seed: int,
) -> Mined:
    """Training groups of the first queries whose right passage is retrieved too.

    A query whose right passage the retriever misses is left out: its group would teach that the passage
    that looks unlike the query is the right one, and at test every candidate comes from the retriever.

    A passage that is judged to be wrong is a negative whatever the guards say, and comes before the mined ones.

    Args:
        ranked: the retriever's ranking of these queries; columns query_id, passage_id, rank (from 1), score.
        query_ids: training queries in the order in which they are taken.
        tables: the data set.
        vectors: the retriever's vector of each passage, in the order of `tables.passages`.
        query_vectors: the same of each query, in the order of `tables.queries`.
        filters: see `Filters`.
        number: of queries.
        random_negatives: passages from anywhere in the corpus per query.
        duplicate_similarity: see `near_duplicate_pairs`.
        seed: of every random choice.
    """
    passages, queries, judgments = tables
    right = judgments[judgments["relevance"] > 0]
    marked = ranked.merge(judgments, on=["query_id", "passage_id"], how="left")
    positives = marked[(marked["relevance"] > 0) & (marked["rank"] <= filters.range_max)]
    retrieved = set(positives["query_id"])
    taken = [query for query in query_ids if query in retrieved][:number]
    # the best-ranked right passage: the others are neither negatives nor needed
    positives = positives[positives["query_id"].isin(taken)].drop_duplicates("query_id")
    wrong = judgments.loc[(judgments["relevance"] == 0) & judgments["query_id"].isin(taken), ["query_id", "passage_id"]]
    wrong = wrong.assign(score=_scores(wrong, tables, vectors, query_vectors), kind="judged")
    wrong = wrong.sort_values(["query_id", "score"], ascending=[True, False], kind="stable")

    pool = marked[marked["query_id"].isin(taken) & marked["relevance"].isna()].reset_index(drop=True)
    pool["position"] = pool.groupby("query_id").cumcount()
    pool = pool[pool["position"] < filters.range_max].reset_index(drop=True)
    same_group = group_positives(queries, judgments)
    pool["reason"] = refusals(
        pool,
        filters,
        positive_scores=positives.set_index("query_id")["score"],
        group_positives=same_group,
        near_duplicates=near_duplicate_pairs(pool, right, passages, vectors, duplicate_similarity),
    )
    hard = pd.concat([wrong, choose(pool, filters, seed=seed).assign(kind="hard")])
    hard = hard[hard.groupby("query_id").cumcount() < filters.num_negatives]
    forbidden = pd.MultiIndex.from_frame(
        pd.concat([same_group.to_frame(index=False), hard[["query_id", "passage_id"]]])
    )
    easy = choose_random(pd.Series(taken), passages["passage_id"], forbidden, random_negatives, seed=seed)
    easy = easy[~near_duplicate_pairs(easy, right, passages, vectors, duplicate_similarity)]
    rows = pd.concat([positives.assign(kind="positive"), hard, easy.assign(kind="random")])
    rows = rows[["query_id", "passage_id", "score", "kind"]]
    rows = rows.sort_values("kind", key=lambda kind: kind != "positive", kind="stable").sort_values(
        "query_id", kind="stable"
    )
    # a query with nothing but its right passage has nothing to teach
    rows = rows[rows.groupby("query_id")["kind"].transform("size") > 1].reset_index(drop=True)
    counts = pool["reason"].value_counts()
    return Mined(rows, {guard: int(counts.get(guard, 0)) for guard in GUARDS})


def _scores(
    pairs: pd.DataFrame, tables: Tables, vectors: NDArray[np.float32], query_vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    of = pd.Index(tables.queries["query_id"]).get_indexer(pairs["query_id"])
    at = pd.Index(tables.passages["passage_id"]).get_indexer(pairs["passage_id"])
    scores: NDArray[np.float32] = np.einsum("ij,ij->i", query_vectors[of], vectors[at])
    return scores


def group_positives(queries: pd.DataFrame, judgments: pd.DataFrame) -> pd.MultiIndex:
    """Pairs (query_id, passage_id) in which the passage is right for the query or for another one of its group."""
    group = queries.set_index("query_id")["group"]
    right = judgments[judgments["relevance"] > 0].assign(group=lambda table: table["query_id"].map(group))
    members = group.reset_index().merge(right[["group", "passage_id"]].drop_duplicates(), on="group")
    return pd.MultiIndex.from_frame(members[["query_id", "passage_id"]])
