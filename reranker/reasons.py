"""A guess at why a right passage does not stand first: something to look at, not a finding."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from reranker import duplicates

MISSED = "right passage not retrieved"
NEAR = "unjudged near-duplicate of the right answer"
CUT = "right passage cut at max_length"
NONE = ""
REASONS = (NONE, MISSED, NEAR, CUT)
"""In the order in which they are looked for."""
CONTAINED = 0.8
"""Share of the shorter passage's runs of words from which two passages are taken to be nearly the same."""


runs = lru_cache(100_000)(duplicates.runs)
"""A passage stands in the rankings of many queries."""


class Passage(NamedTuple):
    """A passage as far as it is needed here."""

    text: str
    group: str
    """The same for passages that are nearly the same by MinHash, see `dataset`."""


def guess(query: str, right: Sequence[Passage], above: Sequence[Passage], holds: Callable[[str, str], bool]) -> str:
    """Why no right passage of a query stands first.

    Args:
        query: its text.
        right: the right passages that were retrieved, the best ranked first.
        above: the passages that the reranker put above the first of them and that nobody has judged.
        holds: whether the cross-encoder can read all the words of a query that a passage has, see `reach.can_hold`.

    Returns:
        One of `REASONS`.
    """
    if not right:
        return MISSED
    if any(alike(one, other) for one in above for other in right):
        return NEAR
    return NONE if holds(query, right[0].text) else CUT


def alike(first: Passage, second: Passage) -> bool:
    """Whether two passages are of one group, or one has most of the other's runs of words."""
    if first.group == second.group:
        return True
    own, others = runs(first.text), runs(second.text)
    common = len(np.intersect1d(own, others, assume_unique=True))
    return common >= CONTAINED * min(len(own), len(others))
