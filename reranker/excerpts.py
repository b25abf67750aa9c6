"""The part of a long passage that a cross-encoder reads for a query: the beginning, and where its words stand.

A cross-encoder reads query and passage together, so it can be shown another part of the passage for every
query; a bi-encoder, which reads the passage alone, cannot. Choosing the part by the query's words is the
passage selection of Zou et al. (KDD 2021) and of IDCM (Hofstätter et al., SIGIR 2021) in its simplest form.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from reranker.lexical import Statistics, rarity, word_spans, words

if TYPE_CHECKING:  # it brings torch, which the report does without
    from transformers import PreTrainedTokenizerBase

GAP = " … "
HEAD = 3
"""The beginning of the passage gets one part in so many, for it often says what all of it is about."""


class _Passage(NamedTuple):
    starts: NDArray[np.int64]
    """Place of each token's first character."""
    ends: NDArray[np.int64]
    words: dict[str, NDArray[np.int64]]
    """Tokens at which a word begins, by the word."""


def excerpts(
    tokenizer: "PreTrainedTokenizerBase",
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
    known: dict[str, _Passage] = {}
    special = tokenizer.num_special_tokens_to_add(pair=True)
    chosen = []
    for query, passage in zip(queries, passages, strict=True):
        room = _room(max_length - special, lengths[query])
        if len(offsets[passage]) <= room:
            chosen.append(passage)
            continue
        if passage not in known:
            known[passage] = _read(passage, offsets[passage])
        chosen.append(_excerpt(passage, known[passage], {word for word, _ in word_spans(query)}, counted, room))
    return chosen


def can_hold(tokenizer: Tokenizer, max_length: int, query: str, passage: str) -> bool:
    """Whether some excerpt can hold every word of the query that the passage has.

    Args:
        tokenizer: of the cross-encoder; it is left without truncation and padding.
        max_length: tokens of a pair.
        query: a text.
        passage: a text.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    of_query, of_passage = tokenizer.encode_batch([query, passage], add_special_tokens=False)
    room = _room(max_length - tokenizer.num_special_tokens_to_add(is_pair=True), len(of_query.ids))
    if len(of_passage.ids) <= room:
        return True
    head = room // HEAD
    width = room - head - 1
    known = _read(passage, of_passage.offsets).words
    # what the beginning does not show must stand in one window
    late = [known[word].tolist() for word in sorted({*words(query)} & known.keys()) if known[word][0] >= head]
    starts = sorted({place for places in late for place in places})
    return not late or any(all(_within(places, start, width) for places in late) for start in starts)


def _within(places: list[int], start: int, width: int) -> bool:
    found = bisect_left(places, start)
    return found < len(places) and places[found] < start + width


def _room(both: int, query: int) -> int:
    """Tokens that a passage may have beside a query of so many; the longer of two texts is cut, so half at least."""
    return max(both - query, both // 2)


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], what: str) -> dict[str, list[Any]]:
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    encoded = tokenizer(distinct, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return dict(zip(distinct, encoded[what], strict=True))


def _read(text: str, offsets: list[tuple[int, int]]) -> _Passage:
    starts, ends = np.asarray(offsets, dtype=np.int64).T
    places: dict[str, list[int]] = {}
    for word, start in word_spans(text):
        places.setdefault(word, []).append(int(np.searchsorted(starts, start, side="right")) - 1)
    return _Passage(starts, ends, {word: np.asarray(tokens) for word, tokens in places.items()})


def _excerpt(text: str, passage: _Passage, wanted: set[str], counted: Statistics, room: int) -> str:
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
