"""Queries that a source gives to more than one split: what is trained on must not be judged on."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer

from reranker.records import SPLITS

NEAR = 0.9
"""Share of common runs of three characters (Jaccard) from which two queries are taken for one."""
MOST = 100_000
"""Queries of the earlier splits that are looked at for near duplicates; equal ones are always found."""
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


def find(rows: pd.DataFrame) -> list[Leak]:
    """The queries of a given dev or test split that an earlier one has too, in the same or nearly the same words.

    Args:
        rows: columns query (null for a passage of the corpus alone) and split; unsplit rows are not looked at.

    Returns:
        One for each such query, with the nearest of the others.
    """
    rows = rows[rows["query"].notna() & rows["split"].isin(SPLITS)]
    texts = {split: list(dict.fromkeys(rows.loc[rows["split"] == split, "query"])) for split in SPLITS}
    found: list[Leak] = []
    for place, split in enumerate(SPLITS[1:], start=1):
        earlier = [(text, name) for name in SPLITS[:place] for text in texts[name]]
        if texts[split] and earlier:
            found += _between(texts[split], split, earlier)
    return found


def describe(leaked: list[Leak]) -> str:
    """How many there are, with an example."""
    first = leaked[0]
    return (
        f"{len(leaked):,} of the queries of dev or test are also in an earlier split, "
        f"such as '{first.query}' ({first.split}) and '{first.other}' ({first.other_split})"
    )


def _between(queries: list[str], split: str, earlier: list[tuple[str, str]]) -> list[Leak]:
    same = {text.casefold(): (text, name) for text, name in earlier}
    found = [Leak(query, split, *same[query.casefold()], True) for query in queries if query.casefold() in same]
    rest = [query for query in queries if query.casefold() not in same]
    if not rest:
        return found
    earlier = earlier[:MOST]
    grams = CountVectorizer(analyzer="char_wb", ngram_range=(3, 3), binary=True, dtype=np.int32)
    others = grams.fit_transform(text for text, _ in earlier)
    sizes = others.sum(axis=1).A1
    for start in range(0, len(rest), BLOCK):
        some = rest[start : start + BLOCK]
        # the runs that no other query has count in the size as well
        own = np.array([len(set(grams.build_analyzer()(query))) for query in some])
        common = (grams.transform(some) @ others.T).toarray()
        likeness = common / (own[:, None] + sizes[None, :] - common)
        for query, like in zip(some, likeness, strict=True):
            other, name = earlier[int(like.argmax())]
            if like.max() >= NEAR:
                found.append(Leak(query, split, other, name, False))
    return found
