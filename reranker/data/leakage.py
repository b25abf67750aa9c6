"""Finds queries that the sources give to several splits: a model must not be tested on what it was trained on."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer

from reranker.common.artifacts import SPLITS
from reranker.data.cleaning import MAX_EXAMPLES, SPLIT_NAMES
from reranker.data.text_store import Spool

NEAR = 0.9
"""Jaccard similarity of the sets of character trigrams from which two queries count as the same."""
MAX_EARLIER = 100_000
"""The largest number of queries of earlier splits that are searched for near duplicates, but not for equal queries."""
MAX_HELD_OUT = 10_000
"""The largest number of queries of dev, and of test, whose near duplicates are searched."""
BLOCK = 256
"""Queries that are compared with all others at once."""
MAX_ORIGINS = 3
"""The largest number of leaks whose origins a message names."""


class Leak(NamedTuple):
    """A query of dev or test, and the query of an earlier split that it equals or nearly equals."""

    query: str
    split: str
    origin: str
    """The origin of the first row with this query, as in `cleaning.Example`."""
    other: str
    other_split: str
    other_origin: str
    equal: bool
    """Whether the texts differ at most in letter case. Otherwise they have nearly the same words."""


class Bound(NamedTuple):
    """How many queries of a split were searched for near duplicates, where these are not all of them."""

    split: str
    """dev or test."""
    held_out: int
    of_held_out: int
    """The number of queries of that split without an equal query in an earlier split."""
    earlier: int
    of_earlier: int


class Leaks(NamedTuple):
    """Queries of dev and test that an earlier split has too."""

    equal: int
    """The number of queries with the same words."""
    near: int
    """The number of queries with nearly the same words."""
    examples: list[Leak]
    """The first `MAX_EXAMPLES` leaks of each kind and split, each with the most similar query of an earlier split."""
    bounds: list[Bound]
    """One bound for each split in which `MAX_EARLIER` or `MAX_HELD_OUT` left queries out."""


def find(rows: pd.DataFrame, spool: Spool) -> Leaks:
    """Find the queries that the sources give to dev or test and that an earlier split has in the same or similar words.

    Args:
        rows: columns as in `CleaningResult.rows`; unsplit rows are ignored.
        spool: the texts of the rows.
    """
    rows = rows[["wording", "query", "split"]][(rows["query"] != 0) & (rows["split"] > 0)].drop_duplicates(
        ["wording", "split"]
    )
    rows = rows.sort_values("split", kind="stable")
    split_of = rows["split"]
    number = {True: 0, False: 0}
    examples: list[Leak] = []
    bounds: list[Bound] = []
    for code in map(SPLIT_NAMES.index, SPLITS[1:]):
        held_out, earlier = rows[split_of == code], rows[split_of < code]
        same = earlier.drop_duplicates("query", keep="last")
        equal = held_out["query"].isin(same["query"])
        twins = pd.Series(same.index, index=same["query"])[held_out.loc[equal, "query"]]
        pairs = {True: np.column_stack([held_out.index[equal], twins])}
        others = held_out.index[~equal]
        pairs[False] = _near(others[:MAX_HELD_OUT], earlier.index[:MAX_EARLIER], spool)
        sizes = min(len(others), MAX_HELD_OUT), len(others), min(len(earlier), MAX_EARLIER), len(earlier)
        if all(sizes) and sizes[::2] != sizes[1::2]:
            bounds.append(Bound(SPLIT_NAMES[code], *sizes))
        for kind, leaks in pairs.items():
            number[kind] += len(leaks)
            first = leaks[:MAX_EXAMPLES].ravel()
            if len(first):  # each call of `texts` reads the whole spool
                queries, origins = (spool.texts(column, first) for column in ("query", "origin"))
                splits = [SPLIT_NAMES[split_of[row]] for row in first]
                sides = list(zip(queries, splits, origins, strict=True))
                examples += (Leak(*own, *other, kind) for own, other in zip(sides[::2], sides[1::2], strict=True))
    return Leaks(number[True], number[False], examples, bounds)


def describe(leaks: Leaks) -> str:
    """A sentence with the number of leaks, an example, and the origins of the first `MAX_ORIGINS`."""
    first, *more = leaks.examples[:MAX_ORIGINS]
    return (
        f"{leaks.equal + leaks.near:,} of the queries of dev or test are also in an earlier split "
        f"({leaks.equal:,} in the same words, {leaks.near:,} in nearly the same), "
        f"such as '{first.query}' ({first.split}, {first.origin}) "
        f"and '{first.other}' ({first.other_split}, {first.other_origin})"
        + "".join(f"; also {leak.origin} and {leak.other_origin}" for leak in more)
    )


def describe_bound(bound: Bound) -> str:
    """A sentence that says how many queries were searched, and how many there are."""
    return (
        f"nearly equal queries were looked for among {bound.held_out:,} of {bound.of_held_out:,} queries "
        f"of {bound.split} and {bound.earlier:,} of {bound.of_earlier:,} of earlier splits"
    )


def table(leaks: Leaks) -> pd.DataFrame:
    """The examples as a table with the columns of `Leak`."""
    texts = {name: "str" for name in Leak._fields if name != "equal"}
    return pd.DataFrame(leaks.examples, columns=list(Leak._fields)).astype({**texts, "equal": bool})


def across_splits(queries: pd.DataFrame) -> int:
    """Count the queries of dev or test whose group has a query of an earlier split.

    Only splits that a source gives can cut a group. This is usual in a collection with one corpus for all splits, where
    a passage may be relevant for queries of two splits.

    Args:
        queries: columns group, and split (its position in `SPLIT_NAMES`, above 0).
    """
    earliest = queries.groupby("group")["split"].transform("min")
    return int((queries["split"] > earliest).sum())


def _near(held_out: pd.Index, earlier: pd.Index, spool: Spool) -> NDArray[np.int64]:
    """Pairs of rows with nearly the same queries; shape (pairs, 2)."""
    pairs: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    if held_out.empty or earlier.empty:
        return np.empty((0, 2), np.int64)
    queries = spool.texts("query", held_out.to_numpy())
    grams = CountVectorizer(analyzer="char_wb", ngram_range=(3, 3), binary=True, dtype=np.int32)
    others = grams.fit_transform(spool.texts("query", earlier.to_numpy()))
    sizes = others.sum(axis=1).A1
    analyze = grams.build_analyzer()
    for start in range(0, len(queries), BLOCK):
        some = queries[start : start + BLOCK]
        # The size also counts the trigrams that no other query has, which `grams` does not know.
        own = np.array([len(set(analyze(query))) for query in some])
        common = (grams.transform(some) @ others.T).toarray()
        similarity = common / (own[:, None] + sizes[None, :] - common)
        near = np.flatnonzero(similarity.max(axis=1) >= NEAR)
        pairs.append(np.column_stack([start + near, similarity.argmax(axis=1)[near]]))
    positions = np.concatenate(pairs)
    return np.column_stack([held_out.to_numpy()[positions[:, 0]], earlier.to_numpy()[positions[:, 1]]])
