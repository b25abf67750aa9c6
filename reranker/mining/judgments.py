"""The judgments of a data set as sparse matrices: which passages are relevant to which queries, and which are not."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from reranker.common.artifacts import Tables

Places = NDArray[np.int64]
"""Row numbers of queries or passages in their tables."""


class JudgmentMatrices(NamedTuple):
    """Judgments with a row for each query and a column for each passage."""

    relevant: csr_array
    """The relevance of each relevant passage; it is above 0."""
    irrelevant: csr_array
    """1 where a passage is judged not to be relevant."""
    group: Places
    """The group of each query."""
    related: csr_array
    """A row for each group has an entry for each passage that is relevant to one of the group's queries."""


def judgment_matrices(tables: Tables) -> JudgmentMatrices:
    """Build the matrices from the tables of a data set."""
    passages, queries, judgments = tables
    at = pd.Index(queries["query_id"]).get_indexer(judgments["query_id"])
    of = pd.Index(passages["passage_id"]).get_indexer(judgments["passage_id"])
    relevance = judgments["relevance"].to_numpy()
    shape = len(queries), len(passages)

    def matrix(values: NDArray[np.integer]) -> csr_array:
        positive = values > 0
        return csr_array((values[positive].astype(np.int32), (at[positive], of[positive])), shape=shape)

    relevant = matrix(relevance)
    group, names = pd.factorize(queries["group"])
    members = csr_array((np.ones(len(group), np.int32), (group, np.arange(len(group)))), shape=(len(names), len(group)))
    irrelevant = matrix((relevance == 0).astype(np.int32))
    return JudgmentMatrices(relevant, irrelevant, group.astype(np.int64), csr_array(members @ relevant))


def contains(matrix: csr_array, rows: Places, columns: Places) -> NDArray[np.bool_]:
    """Whether a matrix has an entry at each place.

    Args:
        matrix: a sparse matrix.
        rows: row numbers; shape (n,).
        columns: column numbers in each of these rows; shape (n, width), -1 for none.
    """
    of, at = entries(matrix, rows)
    width = matrix.shape[1]
    # a search for a key above all others ends at the last place, so that place holds a key that never matches
    keys = np.append(np.sort(of * width + at), -1)
    lookup = np.arange(len(rows))[:, None] * width + columns
    places = np.searchsorted(keys[:-1], lookup)
    return np.asarray((keys[places] == lookup) & (columns >= 0))


def entries(matrix: csr_array, rows: Places) -> tuple[Places, Places]:
    """For each entry of these rows, the position of its row in `rows`, and its column."""
    sizes = np.diff(matrix.indptr)[rows]
    ends = np.cumsum(sizes)
    of = np.repeat(np.arange(len(rows)), sizes)
    at = np.arange(len(of)) - np.repeat(ends - sizes, sizes) + np.repeat(matrix.indptr[rows], sizes)
    return of.astype(np.int64), matrix.indices[at].astype(np.int64)
