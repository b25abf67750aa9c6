"""The judgments of a data set by places: which passages are right, which wrong, for which queries."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from reranker.common.artifacts import Tables

Places = NDArray[np.int64]
"""Of queries or passages in their tables."""


class Judged(NamedTuple):
    """What is known of passages, a row for each query and a column for each passage."""

    right: csr_array
    """Their relevance, above 0."""
    wrong: csr_array
    """1 where a passage is judged to be wrong."""
    group: Places
    """Of each query."""
    related: csr_array
    """A row for each group: the passages that are right for one of its queries."""


def by_place(tables: Tables) -> Judged:
    """The judgments of a data set by places."""
    passages, queries, judgments = tables
    at = pd.Index(queries["query_id"]).get_indexer(judgments["query_id"])
    of = pd.Index(passages["passage_id"]).get_indexer(judgments["passage_id"])
    relevance = judgments["relevance"].to_numpy()
    shape = len(queries), len(passages)

    def matrix(values: NDArray[np.integer]) -> csr_array:
        used = values > 0
        return csr_array((values[used].astype(np.int32), (at[used], of[used])), shape=shape)

    right = matrix(relevance)
    group, names = pd.factorize(queries["group"])
    members = csr_array((np.ones(len(group), np.int32), (group, np.arange(len(group)))), shape=(len(names), len(group)))
    return Judged(right, matrix((relevance == 0).astype(np.int32)), group.astype(np.int64), csr_array(members @ right))


def contains(matrix: csr_array, rows: Places, columns: Places) -> NDArray[np.bool_]:
    """Whether a matrix has an entry at each place.

    Args:
        matrix: sparse.
        rows: shape (n,).
        columns: of each of these rows; shape (n, width), -1 for none.
    """
    of, at = entries(matrix, rows)
    width = matrix.shape[1]
    # a last key that nothing equals keeps the search inside
    keys = np.append(np.sort(of * width + at), -1)
    wanted = np.arange(len(rows))[:, None] * width + columns
    found = np.searchsorted(keys[:-1], wanted)
    return np.asarray((keys[found] == wanted) & (columns >= 0))


def entries(matrix: csr_array, rows: Places) -> tuple[Places, Places]:
    """The entries of these rows: the place of the row among them, and the column."""
    sizes = np.diff(matrix.indptr)[rows]
    ends = np.cumsum(sizes)
    of = np.repeat(np.arange(len(rows)), sizes)
    at = np.arange(len(of)) - np.repeat(ends - sizes, sizes) + np.repeat(matrix.indptr[rows], sizes)
    return of.astype(np.int64), matrix.indices[at].astype(np.int64)
