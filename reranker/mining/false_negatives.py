"""Guards against false negatives: candidates that are probably relevant though nobody has labelled them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reranker.data.duplicates import shingles

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
GUARDS = ("group_positive", "near_duplicate", "similar", "contained")
CHUNK = 100_000
"""Pairs of passages that are compared in one step."""


class Guards(NamedTuple):
    """The data that the guards compare, and which guards are on."""

    groups: Places
    """The group of each passage; passages of one group have nearly the same text by MinHash."""
    vectors: NDArray[np.float32]
    """A normalised vector of each passage; shape (passages, dimensions)."""
    texts: Sequence[str]
    by_group: bool = True
    """Refuse a candidate that is relevant to another query of the query's group, or shares a relevant one's group."""
    similarity: float | None = None
    """Refuse a candidate whose cosine to a relevant passage is at least this."""
    containment: float | None = None
    """Refuse a candidate that shares at least this part of the shorter text's runs of words with a relevant passage."""

    def refusals(self, positions: Places, open_: Mask, related: Mask, query_of: Places, relevant: Places) -> list[Mask]:
        """Whether each guard of `GUARDS` refuses each candidate; a later guard skips what an earlier one refuses.

        Args:
            positions: passages of the candidates; shape (queries, candidates).
            open_: whether the guards look at each candidate; same shape.
            related: whether each candidate is relevant to a query of the same group; same shape.
            query_of: row of the query of each relevant passage.
            relevant: the relevant passages; same shape as `query_of`.
        """
        masks = [open_ & related & self.by_group]
        left = open_ & ~masks[0]
        for on, alike in (
            (self.by_group, self._same_group),
            (self.similarity is not None, self._similar),
            (self.containment is not None, self._contained),
        ):
            refused = np.zeros_like(open_)
            if on:
                for rows, passages in _relevant_by_turn(query_of, relevant):
                    at, column = np.nonzero(left[rows] & ~refused[rows])
                    for start in range(0, len(at), CHUNK):
                        part = slice(start, start + CHUNK)
                        where = rows[at[part]], column[part]
                        refused[where] = alike(positions[where], passages[at[part]])
            masks.append(refused)
            left &= ~refused
        return masks

    def _same_group(self, first: Places, second: Places) -> Mask:
        return np.asarray(self.groups[first] == self.groups[second])

    def _similar(self, first: Places, second: Places) -> Mask:
        return np.asarray(np.einsum("ij,ij->i", self.vectors[first], self.vectors[second]) >= self.similarity)

    def _contained(self, first: Places, second: Places) -> Mask:
        own = {place: shingles(self.texts[place]) for place in {*first.tolist(), *second.tolist()}}
        shares = (
            len(np.intersect1d(own[a], own[b], assume_unique=True)) / min(len(own[a]), len(own[b]))
            for a, b in zip(first.tolist(), second.tolist(), strict=True)
        )
        return np.fromiter(shares, float, len(first)) >= (self.containment or 0.0)


def _relevant_by_turn(query_of: Places, relevant: Places) -> Iterator[tuple[Places, Places]]:
    """Yield the first relevant passage of every row that has one, then the second, and so on."""
    order = np.argsort(query_of, kind="stable")
    query_of, relevant = query_of[order], relevant[order]
    number = np.arange(len(relevant)) - np.searchsorted(query_of, query_of)
    for turn in range(int(number.max(initial=-1)) + 1):
        yield query_of[number == turn], relevant[number == turn]
