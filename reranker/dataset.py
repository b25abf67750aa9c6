"""The tables that every later stage reads: cleaning, duplicates and leak-free splits.

Tables (ids are strings, rows are sorted by id):

    passages   passage_id, text
    queries    query_id, text, split (train, dev or test), source (its name in params.yaml)
    judgments  query_id, passage_id, relevance (integer, above 0 means right)
"""

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tokenizers import Tokenizer

from reranker.records import SPLITS, UNSPLIT, Example, Tables

GIVEN = (UNSPLIT, *SPLITS)
SHOWN = 100
"""Dropped rows of each reason that are kept to look at."""


class Limits(NamedTuple):
    """What a usable example looks like; lengths in words or characters, both ends included."""

    min_query_words: int
    max_query_words: int
    min_passage_chars: int


class Cleaned(NamedTuple):
    """What cleaning keeps, and what it drops."""

    rows: pd.DataFrame
    """Columns query (null for a passage of the corpus alone), passage, relevance, split and source."""
    dropped: dict[str, int]
    """Rows by the reason for which they were dropped."""
    examples: pd.DataFrame
    """Columns reason, origin, query and passage: the first `SHOWN` dropped rows of each reason."""


def clean(examples: Iterable[Example], limits: Limits) -> Cleaned:
    """Drop examples that cannot be used.

    White space is collapsed in queries and cut off around passages. Each dropped row is counted once,
    under the first reason that applies. Nothing is lost unseen: kept rows and counts add up to the input. Of rows with
    the same texts and split the first is kept, with the highest relevance of them.
    """
    dropped = dict.fromkeys(
        (
            "query_empty",
            "passage_empty",
            "not_unicode",
            "query_short",
            "query_long",
            "passage_short",
            "same_row",
            "query_without_right_passage",
        ),
        0,
    )
    shown: list[tuple[str | None, ...]] = []

    def drop(reason: str, origin: str, query: str | None, passage: str) -> None:
        dropped[reason] += 1
        if dropped[reason] <= SHOWN:
            shown.append((reason, *map(_writable, (origin, query, passage))))

    kept: dict[tuple[str | None, str, str], tuple[int, str, str]] = {}
    for example in examples:
        query = None if example.query is None else " ".join(example.query.split())
        row = query, example.passage.strip(), example.split
        told = example.relevance, example.origin, example.source
        if reason := _refusal(*row[:2], limits):
            drop(reason, example.origin, *row[:2])
            continue
        if row in kept:
            drop("same_row", example.origin, *row[:2])
            told = max(example.relevance, kept[row][0]), *kept[row][1:]
        kept[row] = told
    answered = {query.casefold() for (query, *_), (relevance, *_) in kept.items() if query is not None and relevance}
    rows = []
    for (query, passage, split), (relevance, origin, source) in kept.items():
        if query is None or query.casefold() in answered:
            rows.append((query, passage, relevance, split, source))
        else:
            drop("query_without_right_passage", origin, query, passage)
    table = pd.DataFrame(rows, columns=["query", "passage", "relevance", "split", "source"])
    table = table.astype(dict.fromkeys(table.columns, "str") | {"relevance": "int64"})
    return Cleaned(table, dropped, pd.DataFrame(shown, columns=["reason", "origin", "query", "passage"], dtype="str"))


def _refusal(query: str | None, passage: str, limits: Limits) -> str | None:
    if query == "":
        return "query_empty"
    if not passage:
        return "passage_empty"
    if not (_is_unicode(query or "") and _is_unicode(passage)):
        return "not_unicode"
    words = None if query is None else len(query.split())
    if words is not None and words < limits.min_query_words:
        return "query_short"
    if words is not None and words > limits.max_query_words:
        return "query_long"
    return "passage_short" if len(passage) < limits.min_passage_chars else None


def _writable(text: str | None) -> str | None:
    """The text with question marks in the place of lone surrogates, which no file can hold."""
    return None if text is None else text.encode(errors="replace").decode()


def _is_unicode(text: str) -> bool:
    # half of a surrogate pair is a character to Python and an error to every tokenizer and file
    return not re.search("[\ud800-\udfff]", text)


def build(rows: pd.DataFrame, *, dev_share: float, test_share: float) -> Tables:
    """Merge duplicates and split.

    Passages with the same text are one passage. Queries with the same text, letter case aside, are one
    query that has the passages of all of them, each with its highest relevance. Ids are hashes of the text, so
    they stay the same when data is added.

    A query that a source gives to a split is in that split; of several, in the one that is looked at latest. The others
    go where their group goes, or where its hash says; so do those given to train as long as none is given to dev or
    to test. A query that several sources have counts for the first of them by name.

    Args:
        rows: columns query, passage, relevance, split and source, cleaned.
        dev_share: share of the query groups that goes to dev, below 1.
        test_share: the same for test.
    """
    rows = rows.assign(passage_id=[f"p{_digest(text)}" for text in rows["passage"]])
    passages = rows.groupby("passage_id", as_index=False).agg(text=("passage", "first"))
    pairs = rows[rows["query"].notna()]
    pairs = pairs.assign(
        query_id=[f"q{_digest(text.casefold())}" for text in pairs["query"]],
        given=pairs["split"].map(GIVEN.index),
    )
    # the smallest text of a merged query stands for it, so that the order of the rows does not matter
    queries = pairs.groupby("query_id", as_index=False).agg(
        text=("query", "min"), given=("given", "max"), source=("source", "min")
    )
    judgments = pairs.groupby(["query_id", "passage_id"], as_index=False)[["relevance"]].max()
    groups = query_groups(passages, queries, judgments)
    drawn = assign_splits(groups, dev_share, test_share)
    queries["split"] = settle_splits(groups, queries.pop("given"), drawn)
    return Tables(passages, queries[["query_id", "text", "split", "source"]], judgments)


def settle_splits(groups: pd.Series, given: pd.Series, drawn: pd.Series) -> pd.Series:
    """The split of each query from what its source gives and what the hash of its group says.

    Args:
        groups: name of each query's group.
        given: place of the given split in `GIVEN`.
        drawn: split by the hash.
    """
    own = given.where(given > 0, given.groupby(groups).transform("max"))
    split = drawn.where(own == 0, own.map(dict(enumerate(GIVEN))))
    for name in SPLITS[1:]:
        if GIVEN.index(name) not in set(given):
            split = split.mask((own == GIVEN.index("train")) & (drawn == name), name)
    return split.astype("str")


def query_groups(passages: pd.DataFrame, queries: pd.DataFrame, judgments: pd.DataFrame) -> pd.Series:
    """Name of each query's group: queries that must not be on two sides of a split.

    Judgments of relevance 0 join nothing.

    Two queries are in one group when they share a right passage, or when their texts, or the texts of
    their right passages, have the same fingerprint; also through a third query.

    Returns:
        Group names (the smallest query_id of the group), in the order and with the index of `queries`.
    """
    judgments = judgments[judgments["relevance"] > 0]
    query_at = pd.Series(np.arange(len(queries)), index=queries["query_id"])
    fingerprints = passages.set_index("passage_id")["text"].map(fingerprint)
    edges = pd.concat(
        [
            pd.DataFrame({"query": query_at.to_numpy(), "node": "q" + queries["text"].map(fingerprint)}),
            pd.DataFrame(
                {
                    "query": query_at[judgments["query_id"]].to_numpy(),
                    "node": "p" + fingerprints[judgments["passage_id"]].to_numpy(),
                }
            ),
        ]
    )
    nodes, _ = pd.factorize(edges["node"])
    size = len(queries) + int(nodes.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(edges)), (edges["query"], len(queries) + nodes)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    component = component[: len(queries)]
    return queries["query_id"].groupby(component).transform("min")


def assign_splits(groups: pd.Series, dev_share: float, test_share: float) -> pd.Series:
    """Split of each group by a hash of its name: a query's split depends on its own group alone."""
    place = groups.map(lambda name: int(_digest(name), 16) / 16**12)
    split = pd.Series("train", index=groups.index, dtype="str")
    split[place < test_share + dev_share] = "dev"
    split[place < test_share] = "test"
    return split


def fingerprint(text: str) -> str:
    """The text without case, digits, punctuation and white space: equal for trivial variants of one text.

    A text without any letter is its own fingerprint.
    """
    return re.sub(r"[\W\d_]+", "", text.casefold()) or text


def token_percentiles(tokenizer: Tokenizer, texts: pd.Series, name: str) -> dict[str, int]:
    """Lengths in tokens of the base model, special tokens included: they tell what `max_length` cuts off.

    Returns:
        The percentiles 50, 90 and 99 and the longest, as `NAME_p50` and so on.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts.tolist())]
    percentiles = np.percentile(lengths, [50, 90, 99, 100], method="higher")
    return {f"{name}_{key}": int(value) for key, value in zip(("p50", "p90", "p99", "max"), percentiles, strict=True)}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
