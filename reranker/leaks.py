"""Queries that a source gives to more than one split: what is trained on must not be judged on."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer

from reranker.cleaning import GIVEN, SHOWN
from reranker.records import SPLITS
from reranker.spool import Spool

NEAR = 0.9
"""Share of common runs of three characters (Jaccard) from which two queries are taken for one."""
MOST = 100_000
"""Queries of the earlier splits that are looked at for near duplicates; equal ones are always found."""
MOST_HELD_OUT = 10_000
"""Queries of dev, and of test, that are."""
BLOCK = 256
"""Queries that are compared with all others at a time."""


class Leak(NamedTuple):
    """A query of dev or test, and the one of an earlier split that it is like."""

    query: str
    split: str
    other: str
    other_split: str
    equal: bool
    """The texts differ in case at most."""


class Leaks(NamedTuple):
    """What of dev and test an earlier split has too."""

    equal: int
    """Queries of the same words."""
    near: int
    """Queries of nearly the same words."""
    examples: list[Leak]
    """The first `SHOWN` of each kind and split, each with the nearest of the others."""


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
    for place in map(GIVEN.index, SPLITS[1:]):
        held_out, earlier = rows[split_of == place], rows[split_of < place]
        same = earlier.drop_duplicates("query", keep="last")
        equal = held_out["query"].isin(same["query"])
        others = pd.Series(same.index, index=same["query"])[held_out.loc[equal, "query"]]
        pairs = {True: np.column_stack([held_out.index[equal], others])}
        pairs[False] = _near(held_out.index[~equal][:MOST_HELD_OUT], earlier.index[:MOST], spool)
        for kind, found in pairs.items():
            number[kind] += len(found)
            first, second = (spool.texts("query", column) for column in found[:SHOWN].T)
            names = [[GIVEN[split_of[row]] for row in column] for column in found[:SHOWN].T]
            examples += map(Leak, first, names[0], second, names[1], [kind] * len(first))
    return Leaks(number[True], number[False], examples)


def describe(leaks: Leaks) -> str:
    """How many there are, with an example."""
    first = leaks.examples[0]
    return (
        f"{leaks.equal + leaks.near:,} of the queries of dev or test are also in an earlier split, "
        f"such as '{first.query}' ({first.split}) and '{first.other}' ({first.other_split})"
    )


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
