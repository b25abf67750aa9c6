"""Excerpts of long passages for a cross-encoder: the beginning, and the window that best covers the query's words.

A cross-encoder reads query and passage together, so it can read another part of the passage for every query; a
bi-encoder cannot, because it reads the passage alone. Choosing the part by the query's words is the passage
selection of Zou et al. (KDD 2021) and of IDCM (Hofstätter et al., SIGIR 2021) in its simplest form.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tokenizers import Tokenizer

from reranker.common.artifacts import Tables
from reranker.retrieval.bm25 import Statistics, rarity, word_spans, words

if TYPE_CHECKING:  # this import loads torch, which the report does not need
    from transformers import PreTrainedTokenizerBase

GAP = " … "
HEAD = 3
"""The beginning of the passage gets one third of the excerpt, because it often says what the passage is about."""


class Tokens(NamedTuple):
    """The positions of a passage's tokens and words."""

    starts: NDArray[np.int64]
    """Position of each token's first character."""
    ends: NDArray[np.int64]
    """Position after each token's last character."""
    words: dict[str, NDArray[np.int64]]
    """Numbers of the tokens at which a word begins, by the word."""


def excerpts(
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    statistics: Statistics,
    queries: Sequence[str],
    passages: Sequence[str],
) -> list[str]:
    """The part of each passage that fits beside its query: all of it, or its beginning and its best window.

    The best window has the largest sum of inverse document frequencies of the query's words, each counted
    once. Among consecutive windows of equal value, the middle one of the first such run is taken.

    Args:
        tokenizer: the cross-encoder's tokenizer; it must be a fast one, which gives the offsets of tokens.
        max_length: tokens of a pair.
        statistics: word statistics of the corpus.
        queries: n texts.
        passages: n texts.

    Returns:
        n texts; a passage that fits is returned as it is.
    """
    lengths = {text: len(ids) for text, ids in _encode(tokenizer, queries, "input_ids").items()}
    offsets = _encode(tokenizer, passages, "offset_mapping")
    cache: dict[str, Tokens] = {}
    special = tokenizer.num_special_tokens_to_add(pair=True)
    parts = []
    for query, passage in zip(queries, passages, strict=True):
        room = room_beside(lengths[query], max_length - special)
        if len(offsets[passage]) <= room:
            parts.append(passage)
            continue
        if passage not in cache:
            cache[passage] = locate(passage, offsets[passage])
        parts.append(_excerpt(passage, cache[passage], {word for word, _ in word_spans(query)}, statistics, room))
    return parts


def in_words(pairs: pd.DataFrame, texts: Tables) -> pd.DataFrame:
    """Pairs with their texts.

    Args:
        pairs: columns query_id, passage_id.
        texts: the data set.

    Returns:
        The table with the columns query and passage.
    """
    return pairs.assign(
        query=pairs["query_id"].map(texts.queries.set_index("query_id")["text"]),
        passage=pairs["passage_id"].map(texts.passages.set_index("passage_id")["text"]),
    )


def with_texts(
    table: pd.DataFrame, texts: Tables, tokenizer: PreTrainedTokenizerBase, max_length: int, statistics: Statistics
) -> pd.DataFrame:
    """Pairs with their texts, and with the excerpts that a cross-encoder reads.

    Args:
        table: columns query_id, passage_id.
        texts: the data set.
        tokenizer: see `excerpts`.
        max_length: see `excerpts`.
        statistics: see `excerpts`.

    Returns:
        The table with the columns query, passage and text (the excerpt of the passage).
    """
    table = in_words(table, texts)
    return table.assign(
        text=excerpts(tokenizer, max_length, statistics, table["query"].tolist(), table["passage"].tolist())
    )


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], field: str) -> dict[str, list[Any]]:
    """One field of the tokenizer's output for each distinct text."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    encoded = tokenizer(distinct, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return dict(zip(distinct, encoded[field], strict=True))


def room_beside(query: int, both: int) -> int:
    """The number of tokens that a passage may have beside a query.

    Args:
        query: number of the query's tokens.
        both: number of tokens that the two may have together.
    """
    # the tokenizer truncates the longer of the two texts, so a passage keeps at least half of the room
    return max(both - query, both // 2)


def locate(text: str, offsets: Sequence[tuple[int, int]]) -> Tokens:
    """The positions of a passage's tokens and words.

    Args:
        text: the passage.
        offsets: start and end of each token, in characters.
    """
    starts, ends = np.asarray(offsets, dtype=np.int64).T
    places: dict[str, list[int]] = {}
    for word, start in word_spans(text):
        places.setdefault(word, []).append(int(np.searchsorted(starts, start, side="right")) - 1)
    return Tokens(starts, ends, {word: np.asarray(tokens) for word, tokens in places.items()})


def _excerpt(text: str, passage: Tokens, query: set[str], statistics: Statistics, room: int) -> str:
    """The beginning of a passage and its best window for the words of a query, in so many tokens."""
    head = room // HEAD
    width = room - head - 1  # one token is for the gap
    last = len(passage.starts) - width
    worth = np.zeros(last + 1)
    for word in sorted(query & passage.words.keys()):
        covered = np.zeros(last + 2, dtype=np.int64)
        tokens = passage.words[word]
        np.add.at(covered, np.clip(tokens - width + 1, 0, last + 1), 1)
        np.add.at(covered, np.clip(tokens + 1, 0, last + 1), -1)
        worth += rarity(statistics, word) * (np.cumsum(covered)[:-1] > 0)
    possible = worth[head:]
    best = np.flatnonzero(possible >= possible.max() - 1e-9)
    run = best[: int(np.argmax(np.append(np.diff(best), 2) > 1)) + 1]  # consecutive windows of equal value
    start = head + int(run[len(run) // 2]) if possible.max() > 0 else head
    if start <= head + 1:
        return text[: passage.ends[room - 1]]
    beginning = text[: passage.starts[head]].rstrip()
    return beginning + GAP + text[passage.starts[start] : passage.ends[start + width - 1]]


def can_hold(tokenizer: Tokenizer, max_length: int, query: str, passage: str) -> bool:
    """Whether an excerpt, see `excerpts`, can hold every word that the query and the passage share.

    Args:
        tokenizer: the cross-encoder's tokenizer; its truncation and padding are switched off.
        max_length: tokens of a pair.
        query: a text.
        passage: a text.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    of_query, of_passage = tokenizer.encode_batch([query, passage], add_special_tokens=False)
    room = room_beside(len(of_query.ids), max_length - tokenizer.num_special_tokens_to_add(is_pair=True))
    if len(of_passage.ids) <= room:
        return True
    head = room // HEAD
    width = room - head - 1
    tokens = locate(passage, of_passage.offsets).words
    # one window must hold all words that are not in the beginning
    late = [tokens[word].tolist() for word in sorted({*words(query)} & tokens.keys()) if tokens[word][0] >= head]
    starts = sorted({place for places in late for place in places})
    return not late or any(all(_within(places, start, width) for places in late) for start in starts)


def _within(places: Sequence[int], start: int, width: int) -> bool:
    """Whether one of some sorted places is in the window of this width that begins at `start`."""
    first = bisect_left(places, start)
    return first < len(places) and places[first] < start + width
