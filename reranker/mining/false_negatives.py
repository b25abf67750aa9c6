"""Guards against false negatives: candidates that are probably right answers which nobody has labelled."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reranker.data.duplicates import shingles

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
GUARDS = ("group_positive", "near_duplicate", "similar", "contained")
CHUNK = 100_000
"""Pairs of passages that are compared at a time."""


class Guards(NamedTuple):
    """What the guards know of the passages, and which are on."""

    groups: Places
    """Of each passage; those of one are nearly the same text by MinHash."""
    vectors: NDArray[np.float32]
    """One normalised vector of each; shape (passages, dimensions)."""
    texts: Sequence[str]
    by_group: bool = True
    """Refuse what is right for another query of the query's group, and what is of the group of a right passage."""
    similarity: float | None = None
    """Refuse what has this cosine to a right passage or more."""
    containment: float | None = None
    """Refuse what shares this part, or more, of the shorter one's runs of words with a right passage."""

    def refusals(self, positions: Places, open_: Mask, related: Mask, right_of: Places, right: Places) -> list[Mask]:
        """Whether each guard of `GUARDS` refuses each candidate; one that an earlier guard refuses is not looked at.

        Args:
            positions: of the candidates; shape (queries, candidates).
            open_: whether they are looked at; same shape.
            related: whether they are right for a query of the same group; same shape.
            right_of: row of the query of each right passage.
            right: the right passages; same shape.
        """
        found = [open_ & related & self.by_group]
        left = open_ & ~found[0]
        for on, alike in (
            (self.by_group, self._same_group),
            (self.similarity is not None, self._similar),
            (self.containment is not None, self._contained),
        ):
            refused = np.zeros_like(open_)
            if on:
                for rows, passages in _each_right(right_of, right):
                    at, column = np.nonzero(left[rows] & ~refused[rows])
                    for start in range(0, len(at), CHUNK):
                        part = slice(start, start + CHUNK)
                        where = rows[at[part]], column[part]
                        refused[where] = alike(positions[where], passages[at[part]])
            found.append(refused)
            left &= ~refused
        return found

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


def _each_right(right_of: Places, right: Places) -> Iterator[tuple[Places, Places]]:
    """The first right passage of every row that has one, then the second, and so on."""
    order = np.argsort(right_of, kind="stable")
    right_of, right = right_of[order], right[order]
    number = np.arange(len(right)) - np.searchsorted(right_of, right_of)
    for turn in range(int(number.max(initial=-1)) + 1):
        yield right_of[number == turn], right[number == turn]
