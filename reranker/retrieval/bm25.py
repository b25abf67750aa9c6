"""Scores pairs with BM25 and the statistics of a corpus, as a signal of exact words beside the models' scores.

A reranker scores single pairs, also with passages that the corpus does not have. `retrievers.Lexical` ranks a whole
corpus with BM25.
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
    """The statistics of a corpus that BM25 needs."""

    passages: int
    mean_length: float
    """Mean number of words of a passage."""
    frequency: dict[str, int]
    """The number of passages that contain each word."""


def words(text: str) -> list[str]:
    """The words of a text, which are runs of letters and digits, in lower case."""
    return [word for word, _ in word_spans(text)]


def word_spans(text: str) -> list[tuple[str, int]]:
    """The words of a text, each with the position of its first character."""
    return [(match.group().casefold(), match.start()) for match in re.finditer(r"[^\W_]+", text)]


def statistics(passages: Iterable[str]) -> Statistics:
    """Compute the statistics of a corpus."""
    frequency: Counter[str] = Counter()
    number = total = 0
    for passage in passages:
        in_passage = words(passage)
        number += 1
        total += len(in_passage)
        frequency.update(set(in_passage))
    return Statistics(number, total / max(number, 1), dict(sorted(frequency.items())))


def bm25(corpus: Statistics, queries: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
    """BM25 of each query with the passage at the same position, as Lucene defines it (Kamphuis et al., ECIR 2020).

    Args:
        corpus: statistics of the corpus.
        queries: n texts.
        passages: n texts; each distinct text is split into words once.

    Returns:
        n scores, which are 0 for pairs without a common word.
    """
    bags: dict[str, Counter[str]] = {}
    scores = np.zeros(len(queries))
    for place, (query, passage) in enumerate(zip(queries, passages, strict=True)):
        bag = bags.get(passage)
        if bag is None:
            bag = bags[passage] = Counter(words(passage))
        length = K1 * (1 - B + B * bag.total() / (corpus.mean_length or 1))
        for word in words(query):
            if times := bag.get(word):
                scores[place] += rarity(corpus, word) * times / (times + length)
    return scores


def rarity(corpus: Statistics, word: str) -> float:
    """Inverse document frequency of a word as Lucene defines it, which is above 0 for every word."""
    frequency = corpus.frequency.get(word, 0)
    return math.log(1 + (corpus.passages - frequency + 0.5) / (frequency + 0.5))


def dump(corpus: Statistics) -> str:
    """Write statistics as JSON."""
    return json.dumps(corpus._asdict(), ensure_ascii=False)


def load(path: Path) -> Statistics:
    """Read statistics that `dump` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return Statistics(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not the word statistics of a reranker ({error}); run `dvc repro train`") from None
