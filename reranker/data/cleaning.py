"""Which examples can be used: each is looked at on its own, and what tells it from others is kept as numbers."""

import hashlib
import re
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from reranker.common.artifacts import SPLITS
from reranker.data.text_store import COLUMNS, Spool

UNSPLIT = "unsplit"
"""In the place of a split that the source does not give: prepare decides."""
GIVEN = (UNSPLIT, *SPLITS)
SHOWN = 100
"""Dropped rows of each reason that are kept to look at."""
REASONS = (
    "query_empty",
    "passage_empty",
    "not_unicode",
    "query_short",
    "query_long",
    "passage_short",
    "same_row",
    "query_without_right_passage",
)
KEYS = ("wording", "query", "query_id", "query_print", "passage", "passage_id", "passage_print")
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Example(NamedTuple):
    """A question, a passage, and whether it answers it."""

    origin: str
    """Where it was found, for messages: a qualified name, a file and row."""
    query: str | None
    """None: a passage of the corpus, beside what was judged."""
    passage: str
    relevance: int = 1
    """Above 0: the passage is right; a larger one is more so. 0: it is judged to be wrong."""
    split: str = UNSPLIT
    """train, dev or test where the source gives it."""
    source: str = ""
    """Its name in params.yaml."""


class Part(NamedTuple):
    """Some examples of a source, and how far it is read."""

    examples: list[Example]
    share: float
    """Of the source that is read with this part, 0 to 1."""
    unused: Sequence[str] = ()
    """Columns that are there and that nothing is read from."""


class Limits(NamedTuple):
    """What a usable example looks like; lengths in words or characters, both ends included."""

    min_query_words: int
    max_query_words: int
    min_passage_chars: int


class Cleaned(NamedTuple):
    """What cleaning keeps, and what it drops."""

    rows: pd.DataFrame
    """The index is the row's number in the spool. Columns `KEYS` (numbers that are equal where the texts are:
    wording, the query's text; query, the same without letter case; passage; each _id, what its id is made of; each
    _print, its fingerprint; a passage of the corpus alone has 0 for its query), relevance, split (its place in
    `GIVEN`), source (its place among the names in their order)."""
    dropped: dict[str, int]
    """Rows by the reason for which they were dropped."""
    examples: pd.DataFrame
    """Columns reason, origin, query and passage: the first `SHOWN` dropped rows of each reason."""


class Cleaner:
    """Drops examples that cannot be used, in a stream; the texts of the others go to the spool.

    White space is collapsed in queries and cut off around passages. Each dropped row is counted once, under the first
    reason that applies. Nothing is lost unseen: kept rows and counts add up to the input.

    Args:
        limits: what is usable.
        sources: their names.
        spool: empty; takes the rows that are usable on their own.
    """

    def __init__(self, limits: Limits, sources: Iterable[str], spool: Spool) -> None:
        self._limits, self._spool = limits, spool
        self._source = {name: place for place, name in enumerate(sorted(sources))}
        self._split = {name: place for place, name in enumerate(GIVEN)}
        self._keys = {name: array("Q") for name in KEYS}
        self._told = {"relevance": array("i"), "split": array("b"), "source": array("h")}
        self._dropped = dict.fromkeys(REASONS, 0)
        self._shown: list[tuple[str | None, ...]] = []

    def add(self, example: Example) -> None:
        """Look at one more."""
        query = None if example.query is None else " ".join(example.query.split())
        passage = example.passage.strip()
        if reason := _refusal(query, passage, self._limits):
            self._drop(reason, example.origin, query, passage)
            return
        self._spool.add(example.origin, query, passage)
        folded = query.casefold() if query is not None else ""
        asked = [number(query), number(folded), number(folded, 6), number(fingerprint(query))] if query else [0] * 4
        answer = number(passage), number(passage, 6), number(fingerprint(passage))
        for keys, key in zip(self._keys.values(), (*asked, *answer), strict=True):
            keys.append(key)
        told = example.relevance, self._split[example.split], self._source[example.source]
        for column, value in zip(self._told.values(), told, strict=True):
            column.append(value)

    def finish(self) -> Cleaned:
        """Drop what the other rows tell: of rows with the same texts and split the first is kept, with the highest
        relevance of them; a query for which no passage is right is dropped with all its rows.
        """  # noqa: D205 - one sentence for two rules
        columns = self._keys | self._told
        self._keys, self._told = {}, {}  # of ten million rows there is no room for a copy
        rows = pd.DataFrame(
            {name: np.frombuffer(column, column.typecode) for name, column in columns.items()}, copy=False
        )
        # odd factors keep sums of random numbers as random as they are
        same = pd.Series(rows["wording"].to_numpy() * _ODD + rows["passage"].to_numpy() + rows["split"].to_numpy("u8"))
        repeated = same.duplicated(keep=False)
        rows.loc[repeated, "relevance"] = rows["relevance"][repeated].groupby(same[repeated]).transform("max")
        again = same.duplicated()
        asked = rows["query"] != 0
        unanswered = asked & ~again & ~rows["query"].isin(rows["query"][rows["relevance"] > 0])
        for reason, rows_of in (("same_row", again), ("query_without_right_passage", unanswered)):
            self._dropped[reason] = int(rows_of.sum())
            first = np.flatnonzero(rows_of)[:SHOWN]
            texts = (self._spool.texts(name, first) for name in COLUMNS)
            self._shown += ((reason, *row) for row in zip(*texts, strict=True))
        examples = pd.DataFrame(self._shown, columns=["reason", *COLUMNS], dtype="str")
        return Cleaned(rows[~again & ~unanswered], self._dropped, examples)

    def _drop(self, reason: str, origin: str, query: str | None, passage: str) -> None:
        self._dropped[reason] += 1
        if self._dropped[reason] <= SHOWN:
            self._shown.append((reason, *map(_writable, (origin, query, passage))))


def _refusal(query: str | None, passage: str, limits: Limits) -> str | None:
    if query == "":
        return "query_empty"
    if not passage:
        return "passage_empty"
    if not (is_unicode(query or "") and is_unicode(passage)):
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


def is_unicode(text: str) -> bool:
    """Whether a text is free of lone surrogates."""
    # half of a surrogate pair is a character to Python and an error to every tokenizer and file
    return not re.search("[\ud800-\udfff]", text)


def fingerprint(text: str) -> str:
    """The text without case, digits, punctuation and white space: equal for trivial variants of one text.

    A text without any letter is its own fingerprint.
    """
    return re.sub(r"[\W\d_]+", "", text.casefold()) or text


def number(text: str, size: int = 8) -> int:
    """A hash of so many bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")
