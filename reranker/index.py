"""Indexes of vectors by name: which passages have the largest inner products with a query."""

from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from reranker.retrieval import Ranking, Vectors


class Index(Protocol):
    """The passages' vectors, ready for search by inner product."""

    name: str
    """Which one it is; never `auto`."""
    settings: dict[str, int]
    """What was chosen for the size of the corpus."""

    def search(self, queries: Vectors, depth: int) -> Ranking:
        """The first passages of each query, best first, with the scores of `inner_products`.

        Args:
            queries: shape (queries, dimensions).
            depth: at most the number of passages.
        """
        ...


def build(name: str, passages: Vectors, *, queries: int) -> Index:
    """An index of the passages.

    Args:
        name: `flat`, `hnsw`, `ivf_flat`, `ivf_pq` or `auto`.
        passages: shape (passages, dimensions); kept, not copied.
        queries: how many will be searched.
    """
    return _Flat(passages)


class _Flat:
    name = "flat"

    def __init__(self, passages: Vectors) -> None:
        self.settings: dict[str, int] = {}
        self._passages = passages
        self._index = faiss.IndexFlatIP(passages.shape[1])
        self._index.add(np.ascontiguousarray(passages))

    def search(self, queries: Vectors, depth: int) -> Ranking:
        _, positions = self._index.search(np.ascontiguousarray(queries), depth)
        return rescored(positions.astype(np.int64), queries, self._passages, depth)


def rescored(positions: NDArray[np.int64], queries: Vectors, passages: Vectors, depth: int) -> Ranking:
    """The best of the given passages by their exact scores; equal ones by position, from the last to the first."""
    scores = np.empty(positions.shape, dtype=np.float32)
    for row, found in enumerate(positions):
        scores[row] = inner_products(np.broadcast_to(queries[row], (len(found), passages.shape[1])), passages[found])
    best = np.lexsort((-positions, -scores), axis=1)[:, :depth]
    return Ranking(np.take_along_axis(positions, best, axis=1), np.take_along_axis(scores, best, axis=1))


def inner_products(left: Vectors, right: Vectors) -> Vectors:
    """Inner product of each vector with the one at the same place.

    A matrix product rounds a score differently from one shape of the matrices to another; this does not.
    """
    products: Vectors = np.einsum("ij,ij->i", left, right)
    return products
