"""The part of a long passage that a cross-encoder reads for a query: the beginning, and where its words stand.

A cross-encoder reads query and passage together, so it can be shown another part of the passage for every
query; a bi-encoder, which reads the passage alone, cannot. Choosing the part by the query's words is the
passage selection of Zou et al. (KDD 2021) and of IDCM (Hofstätter et al., SIGIR 2021) in its simplest form.
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

if TYPE_CHECKING:  # it brings torch, which the report does without
    from transformers import PreTrainedTokenizerBase

GAP = " … "
HEAD = 3
"""The beginning of the passage gets one part in so many, for it often says what all of it is about."""


class Tokens(NamedTuple):
    """Where a passage's tokens and words stand."""

    starts: NDArray[np.int64]
    """Place of each token's first character."""
    ends: NDArray[np.int64]
    words: dict[str, NDArray[np.int64]]
    """Tokens at which a word begins, by the word."""


def excerpts(
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    counted: Statistics,
    queries: Sequence[str],
    passages: Sequence[str],
) -> list[str]:
    """What of each passage fits beside its query: all of it, or its beginning and its best window.

    The best window has the largest sum of inverse document frequencies of the query's words, each counted
    once; where equal ones follow each other, it is the middle of the first such run.

    Args:
        tokenizer: of the cross-encoder; a fast one, which knows where a token stands.
        max_length: tokens of a pair.
        counted: word statistics of the corpus.
        queries: n texts.
        passages: n texts.

    Returns:
        n texts; a passage that fits is returned as it is.
    """
    lengths = {text: len(ids) for text, ids in _encode(tokenizer, queries, "input_ids").items()}
    offsets = _encode(tokenizer, passages, "offset_mapping")
    known: dict[str, Tokens] = {}
    special = tokenizer.num_special_tokens_to_add(pair=True)
    chosen = []
    for query, passage in zip(queries, passages, strict=True):
        room = room_beside(lengths[query], max_length - special)
        if len(offsets[passage]) <= room:
            chosen.append(passage)
            continue
        if passage not in known:
            known[passage] = read(passage, offsets[passage])
        chosen.append(_excerpt(passage, known[passage], {word for word, _ in word_spans(query)}, counted, room))
    return chosen


def in_words(pairs: pd.DataFrame, texts: Tables) -> pd.DataFrame:
    """Pairs with what they say.

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
    table: pd.DataFrame, texts: Tables, tokenizer: PreTrainedTokenizerBase, max_length: int, counted: Statistics
) -> pd.DataFrame:
    """Pairs with what they say, and what of it a cross-encoder reads.

    Args:
        table: columns query_id, passage_id.
        texts: the data set.
        tokenizer: see `excerpts`.
        max_length: see `excerpts`.
        counted: see `excerpts`.

    Returns:
        The table with the columns query, passage and text, the excerpt of the passage.
    """
    table = in_words(table, texts)
    return table.assign(
        text=excerpts(tokenizer, max_length, counted, table["query"].tolist(), table["passage"].tolist())
    )


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], what: str) -> dict[str, list[Any]]:
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    encoded = tokenizer(distinct, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return dict(zip(distinct, encoded[what], strict=True))


def room_beside(query: int, both: int) -> int:
    """Tokens that a passage may have beside a query.

    Args:
        query: its tokens.
        both: tokens of the two together.
    """
    # the tokenizer cuts the longer of the two texts, so a passage keeps half of the room at least
    return max(both - query, both // 2)


def read(text: str, offsets: Sequence[tuple[int, int]]) -> Tokens:
    """A passage's tokens and words.

    Args:
        text: the passage.
        offsets: first character and end of each token.
    """
    starts, ends = np.asarray(offsets, dtype=np.int64).T
    places: dict[str, list[int]] = {}
    for word, start in word_spans(text):
        places.setdefault(word, []).append(int(np.searchsorted(starts, start, side="right")) - 1)
    return Tokens(starts, ends, {word: np.asarray(tokens) for word, tokens in places.items()})


def _excerpt(text: str, passage: Tokens, wanted: set[str], counted: Statistics, room: int) -> str:
    head = room // HEAD
    width = room - head - 1  # one token stands for the gap
    last = len(passage.starts) - width
    worth = np.zeros(last + 1)
    for word in sorted(wanted & passage.words.keys()):
        covered = np.zeros(last + 2, dtype=np.int64)
        tokens = passage.words[word]
        np.add.at(covered, np.clip(tokens - width + 1, 0, last + 1), 1)
        np.add.at(covered, np.clip(tokens + 1, 0, last + 1), -1)
        worth += rarity(counted, word) * (np.cumsum(covered)[:-1] > 0)
    possible = worth[head:]
    best = np.flatnonzero(possible >= possible.max() - 1e-9)
    run = best[: int(np.argmax(np.append(np.diff(best), 2) > 1)) + 1]  # equal windows that follow each other
    start = head + int(run[len(run) // 2]) if possible.max() > 0 else head
    if start <= head + 1:
        return text[: passage.ends[room - 1]]
    beginning = text[: passage.starts[head]].rstrip()
    return beginning + GAP + text[passage.starts[start] : passage.ends[start + width - 1]]


def can_hold(tokenizer: Tokenizer, max_length: int, query: str, passage: str) -> bool:
    """Whether some excerpt, see `excerpts`, can hold every word of the query that the passage has.

    Args:
        tokenizer: of the cross-encoder; it is left without truncation and padding.
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
    known = read(passage, of_passage.offsets).words
    # what the beginning does not show must stand in one window
    late = [known[word].tolist() for word in sorted({*words(query)} & known.keys()) if known[word][0] >= head]
    starts = sorted({place for places in late for place in places})
    return not late or any(all(_within(places, start, width) for places in late) for start in starts)


def _within(places: Sequence[int], start: int, width: int) -> bool:
    """Whether one of some sorted places is among so many from the start."""
    found = bisect_left(places, start)
    return found < len(places) and places[found] < start + width
