"""Drops examples that cannot be used. The texts of the others go to disk, and hashes of the texts stay in memory."""

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
"""Stands for the split of an example whose source gives none, so that prepare decides."""
SPLIT_NAMES = (UNSPLIT, *SPLITS)
MAX_EXAMPLES = 100
"""The largest number of dropped rows that are saved as examples of each reason."""
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
    """A query, a passage, and whether the passage is relevant for the query."""

    origin: str
    """Where the example comes from, for messages: a qualified name, or a file and a row."""
    query: str | None
    """None for a passage of the corpus, which comes without a judgment."""
    passage: str
    relevance: int = 1
    """A passage is relevant above 0, and the more so the larger the number. 0 is a judgment that it is not relevant."""
    split: str = UNSPLIT
    """train, dev or test where the source gives a split."""
    source: str = ""
    """The name of the source in params.yaml."""


class Part(NamedTuple):
    """Some examples of a source, and how much of the source has been read."""

    examples: list[Example]
    share: float
    """The share of the source that has been read at the end of this part, from 0 to 1."""
    unused: Sequence[str] = ()
    """Columns of the source that are not read."""


class Limits(NamedTuple):
    """Limits on the lengths of a usable example, in words or characters. The limits themselves are allowed."""

    min_query_words: int
    max_query_words: int
    min_passage_chars: int


class CleaningResult(NamedTuple):
    """The rows that pass cleaning, and a report on the rows that are dropped."""

    rows: pd.DataFrame
    """The index is the row's number in the spool. Columns `KEYS`, relevance, split (its position in `SPLIT_NAMES`),
    source (its position among the sorted names).

    `KEYS` are hashes of texts: wording of the query's text, query of the same without letter case, passage of the
    passage's text, each _id of what its id is made of, and each _print of the fingerprint. The hashes of the query are
    0 for a passage of the corpus that comes without a query."""
    dropped: dict[str, int]
    """The number of dropped rows for each reason."""
    examples: pd.DataFrame
    """Columns reason, origin, query and passage: the first `MAX_EXAMPLES` dropped rows of each reason."""


class Cleaner:
    """Drops examples that cannot be used from a stream, and writes the texts of the others to the spool.

    White space is collapsed in queries and stripped from the ends of passages. Each dropped row is counted once, under
    the first reason that applies, so the remaining rows and the counts add up to the input.

    Args:
        limits: the lengths of a usable example.
        sources: the names of the sources.
        spool: an empty spool for the rows that are usable on their own.
    """

    def __init__(self, limits: Limits, sources: Iterable[str], spool: Spool) -> None:
        self._limits, self._spool = limits, spool
        self._source = {name: place for place, name in enumerate(sorted(sources))}
        self._split = {name: place for place, name in enumerate(SPLIT_NAMES)}
        self._keys = {name: array("Q") for name in KEYS}
        self._attributes = {"relevance": array("i"), "split": array("b"), "source": array("h")}
        self._dropped = dict.fromkeys(REASONS, 0)
        self._examples: list[tuple[str | None, ...]] = []

    def add(self, example: Example) -> None:
        """Drop an example, or add it to the rows."""
        query = None if example.query is None else " ".join(example.query.split())
        passage = example.passage.strip()
        if reason := _refusal(query, passage, self._limits):
            self._drop(reason, example.origin, query, passage)
            return
        self._spool.add(example.origin, query, passage)
        folded = query.casefold() if query is not None else ""
        query_keys = (
            [number(query), number(folded), number(folded, 6), number(fingerprint(query))] if query else [0] * 4
        )
        passage_keys = number(passage), number(passage, 6), number(fingerprint(passage))
        for keys, key in zip(self._keys.values(), (*query_keys, *passage_keys), strict=True):
            keys.append(key)
        attributes = example.relevance, self._split[example.split], self._source[example.source]
        for column, value in zip(self._attributes.values(), attributes, strict=True):
            column.append(value)

    def finish(self) -> CleaningResult:
        """Drop rows that the other rows make useless.

        Rows with the same texts and split become the first of them, with their highest relevance. A query without a
        relevant passage is dropped with all its rows.
        """
        columns = self._keys | self._attributes
        self._keys, self._attributes = {}, {}  # there is no room for a copy of ten million rows
        rows = pd.DataFrame(
            {name: np.frombuffer(column, column.typecode) for name, column in columns.items()}, copy=False
        )
        # An odd factor keeps a sum of hashes as random as the hashes are.
        same = pd.Series(rows["wording"].to_numpy() * _ODD + rows["passage"].to_numpy() + rows["split"].to_numpy("u8"))
        shared = same.duplicated(keep=False)
        rows.loc[shared, "relevance"] = rows["relevance"][shared].groupby(same[shared]).transform("max")
        repeated = same.duplicated()
        has_query = rows["query"] != 0
        unanswered = has_query & ~repeated & ~rows["query"].isin(rows["query"][rows["relevance"] > 0])
        for reason, rows_of in (("same_row", repeated), ("query_without_right_passage", unanswered)):
            self._dropped[reason] = int(rows_of.sum())
            first = np.flatnonzero(rows_of)[:MAX_EXAMPLES]
            texts = (self._spool.texts(name, first) for name in COLUMNS)
            self._examples += ((reason, *row) for row in zip(*texts, strict=True))
        examples = pd.DataFrame(self._examples, columns=["reason", *COLUMNS], dtype="str")
        return CleaningResult(rows[~repeated & ~unanswered], self._dropped, examples)

    def _drop(self, reason: str, origin: str, query: str | None, passage: str) -> None:
        self._dropped[reason] += 1
        if self._dropped[reason] <= MAX_EXAMPLES:
            self._examples.append((reason, *map(_writable, (origin, query, passage))))


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
    """Replace lone surrogates, which no file can hold, by question marks."""
    return None if text is None else text.encode(errors="replace").decode()


def is_unicode(text: str) -> bool:
    """Whether a text is free of lone surrogates."""
    # Python accepts half of a surrogate pair as a character, but tokenizers and files do not.
    return not re.search("[\ud800-\udfff]", text)


def fingerprint(text: str) -> str:
    """Reduce a text to its letters in lower case, so that trivial variants of a text are equal.

    A text without any letter stays as it is.
    """
    return re.sub(r"[\W\d_]+", "", text.casefold()) or text


def number(text: str, size: int = 8) -> int:
    """A hash of a text, as a number of `size` bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")
