"""Queries that a source gives to more than one split: what is trained on must not be judged on."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer

from reranker.common.artifacts import SPLITS
from reranker.data.cleaning import GIVEN, SHOWN
from reranker.data.text_store import Spool

NEAR = 0.9
"""Share of common runs of three characters (Jaccard) from which two queries are taken for one."""
MOST = 100_000
"""Queries of the earlier splits that are looked at for near duplicates; equal ones are always found."""
MOST_HELD_OUT = 10_000
"""Queries of dev, and of test, that are."""
BLOCK = 256
"""Queries that are compared with all others at a time."""
TOLD = 3
"""Leaks that a message says the place of."""


class Leak(NamedTuple):
    """A query of dev or test, and the one of an earlier split that it is like."""

    query: str
    split: str
    origin: str
    """Where it stands, as in `records.Example`; of equal rows the first."""
    other: str
    other_split: str
    other_origin: str
    equal: bool
    """The texts differ in case at most; else they have nearly the same words."""


class Bound(NamedTuple):
    """How many queries were looked at for near duplicates, where that is not all of them."""

    split: str
    """dev or test."""
    held_out: int
    of_held_out: int
    """Queries of that split without an equal one in an earlier split."""
    earlier: int
    of_earlier: int


class Leaks(NamedTuple):
    """What of dev and test an earlier split has too."""

    equal: int
    """Queries of the same words."""
    near: int
    """Queries of nearly the same words."""
    examples: list[Leak]
    """The first `SHOWN` of each kind and split, each with the nearest of the others."""
    bounds: list[Bound]
    """One for each split in which `MOST` or `MOST_HELD_OUT` left queries out."""


def find(rows: pd.DataFrame, spool: Spool) -> Leaks:
    """The queries of a given dev or test split that an earlier one has too, in the same or nearly the same words.

    Args:
        rows: columns as in `Cleaned.rows`; unsplit rows are not looked at.
        spool: has the texts.
    """
    rows = rows[["wording", "query", "split"]][(rows["query"] != 0) & (rows["split"] > 0)].drop_duplicates(
        ["wording", "split"]
    )
    rows = rows.sort_values("split", kind="stable")
    split_of = rows["split"]
    number = {True: 0, False: 0}
    examples: list[Leak] = []
    bounds: list[Bound] = []
    for place in map(GIVEN.index, SPLITS[1:]):
        held_out, earlier = rows[split_of == place], rows[split_of < place]
        same = earlier.drop_duplicates("query", keep="last")
        equal = held_out["query"].isin(same["query"])
        twins = pd.Series(same.index, index=same["query"])[held_out.loc[equal, "query"]]
        pairs = {True: np.column_stack([held_out.index[equal], twins])}
        others = held_out.index[~equal]
        pairs[False] = _near(others[:MOST_HELD_OUT], earlier.index[:MOST], spool)
        sizes = min(len(others), MOST_HELD_OUT), len(others), min(len(earlier), MOST), len(earlier)
        if all(sizes) and sizes[::2] != sizes[1::2]:
            bounds.append(Bound(GIVEN[place], *sizes))
        for kind, found in pairs.items():
            number[kind] += len(found)
            shown = found[:SHOWN].ravel()
            if len(shown):  # each call of the spool reads all of it
                queries, origins = (spool.texts(column, shown) for column in ("query", "origin"))
                splits = [GIVEN[split_of[row]] for row in shown]
                sides = list(zip(queries, splits, origins, strict=True))
                examples += (Leak(*own, *other, kind) for own, other in zip(sides[::2], sides[1::2], strict=True))
    return Leaks(number[True], number[False], examples, bounds)


def describe(leaks: Leaks) -> str:
    """How many there are, with an example, and where the first `TOLD` stand."""
    first, *more = leaks.examples[:TOLD]
    return (
        f"{leaks.equal + leaks.near:,} of the queries of dev or test are also in an earlier split "
        f"({leaks.equal:,} in the same words, {leaks.near:,} in nearly the same), "
        f"such as '{first.query}' ({first.split}, {first.origin}) "
        f"and '{first.other}' ({first.other_split}, {first.other_origin})"
        + "".join(f"; also {leak.origin} and {leak.other_origin}" for leak in more)
    )


def describe_bound(bound: Bound) -> str:
    """What was looked at, and of how many."""
    return (
        f"nearly equal queries were looked for among {bound.held_out:,} of {bound.of_held_out:,} queries "
        f"of {bound.split} and {bound.earlier:,} of {bound.of_earlier:,} of earlier splits"
    )


def table(leaks: Leaks) -> pd.DataFrame:
    """The examples as a table; columns as in `Leak`."""
    texts = {name: "str" for name in Leak._fields if name != "equal"}
    return pd.DataFrame(leaks.examples, columns=list(Leak._fields)).astype({**texts, "equal": bool})


def across_splits(queries: pd.DataFrame) -> int:
    """Queries of dev or test in whose group is one of an earlier split: only splits that a source gives cut a group.

    In a collection with one corpus for all splits that is usual, for a passage may be right for queries of two of them.

    Args:
        queries: columns group, and split (its place in `GIVEN`, above 0).
    """
    earliest = queries.groupby("group")["split"].transform("min")
    return int((queries["split"] > earliest).sum())


def _near(held_out: pd.Index, earlier: pd.Index, spool: Spool) -> NDArray[np.int64]:
    """Rows of nearly the same queries; shape (pairs, 2)."""
    found: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    if held_out.empty or earlier.empty:
        return np.empty((0, 2), np.int64)
    queries = spool.texts("query", held_out.to_numpy())
    grams = CountVectorizer(analyzer="char_wb", ngram_range=(3, 3), binary=True, dtype=np.int32)
    others = grams.fit_transform(spool.texts("query", earlier.to_numpy()))
    sizes = others.sum(axis=1).A1
    analyze = grams.build_analyzer()
    for start in range(0, len(queries), BLOCK):
        some = queries[start : start + BLOCK]
        # the runs that no other query has count in the size as well
        own = np.array([len(set(analyze(query))) for query in some])
        common = (grams.transform(some) @ others.T).toarray()
        likeness = common / (own[:, None] + sizes[None, :] - common)
        near = np.flatnonzero(likeness.max(axis=1) >= NEAR)
        found.append(np.column_stack([start + near, likeness.argmax(axis=1)[near]]))
    places = np.concatenate(found)
    return np.column_stack([held_out.to_numpy()[places[:, 0]], earlier.to_numpy()[places[:, 1]]])
