"""BM25 of given pairs, with the statistics of a corpus: a signal of exact words beside the models.

A first stage ranks a whole corpus and is a matter of retrieval; here single pairs are scored, also of
passages that the corpus does not have, as a reranker must.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reranker.common.errors import UserError

K1 = 1.2
B = 0.75


class Statistics(NamedTuple):
    """What BM25 needs to know of a corpus."""

    passages: int
    mean_length: float
    """Words per passage."""
    frequency: dict[str, int]
    """Number of passages that have a word."""


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case; `_` and punctuation separate."""
    return [word for word, _ in word_spans(text)]


def word_spans(text: str) -> list[tuple[str, int]]:
    """The words of a text, each with the place of its first character."""
    return [(found.group().casefold(), found.start()) for found in re.finditer(r"[^\W_]+", text)]


def statistics(passages: Iterable[str]) -> Statistics:
    """Count a corpus."""
    frequency: Counter[str] = Counter()
    number = total = 0
    for passage in passages:
        found = words(passage)
        number += 1
        total += len(found)
        frequency.update(set(found))
    return Statistics(number, total / max(number, 1), dict(sorted(frequency.items())))


def bm25(counted: Statistics, queries: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
    """BM25 of each query with the passage at the same place, as Lucene defines it (Kamphuis et al., ECIR 2020).

    Args:
        counted: of the corpus.
        queries: n texts.
        passages: n texts; each distinct one is split into words once.

    Returns:
        n scores, 0 where no word is shared.
    """
    bags: dict[str, Counter[str]] = {}
    scores = np.zeros(len(queries))
    for place, (query, passage) in enumerate(zip(queries, passages, strict=True)):
        bag = bags.get(passage)
        if bag is None:
            bag = bags[passage] = Counter(words(passage))
        length = K1 * (1 - B + B * bag.total() / (counted.mean_length or 1))
        for word in words(query):
            if times := bag.get(word):
                scores[place] += rarity(counted, word) * times / (times + length)
    return scores


def rarity(counted: Statistics, word: str) -> float:
    """Inverse document frequency of a word as Lucene defines it; above 0 for every word."""
    seen = counted.frequency.get(word, 0)
    return math.log(1 + (counted.passages - seen + 0.5) / (seen + 0.5))


def dump(counted: Statistics) -> str:
    """The statistics as JSON."""
    return json.dumps(counted._asdict(), ensure_ascii=False)


def load(path: Path) -> Statistics:
    """Statistics that `dump` made.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return Statistics(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not the word statistics of a reranker ({error}); run `dvc repro train`") from None
