"""Whether a cross-encoder can read all of what a passage says in a query's words."""

from bisect import bisect_left
from collections.abc import Sequence

from tokenizers import Tokenizer

from reranker.excerpts import HEAD, read, room_beside
from reranker.lexical import words


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
