"""First-stage retrievers: by vectors, by words, and several fused."""

from collections.abc import Callable, Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from reranker.errors import UserError
from reranker.exact import inner_products
from reranker.index import Index, check_finite
from reranker.lexical import K1, B, words
from reranker.progress import progress
from reranker.retrieval import FirstStage, Ranking, Vectors

Places = NDArray[np.int64]

CELLS = 4_194_304
"""Scores that are held at once: 16 MB."""
WIDTH = 32_768
"""Passages that are looked at together for ranks."""
QUERIES = 4096
"""Queries per block: what progress shows."""
FUSION_DEPTH = 1000
"""Passages of each retriever that are fused."""
FUSION_K = 60
"""The constant of reciprocal-rank fusion in Cormack, Clarke and Buettcher (SIGIR 2009)."""


class Dense:
    """Inner products of vectors.

    Args:
        passages: shape (passages, dimensions).
        queries: shape (queries, dimensions).
        index: of the passages. An approximate one misses some; scores and ranks are exact all the same.

    Raises:
        UserError: the dimensions differ or a value of the queries is not finite.
    """

    def __init__(self, passages: Vectors, queries: Vectors, index: Index) -> None:
        if passages.shape[1] != queries.shape[1]:
            raise UserError(
                f"the vectors of the passages have {passages.shape[1]} dimensions and those of the queries "
                f"{queries.shape[1]}; embed both with the same model"
            )
        check_finite(queries, "queries")
        self._passages = np.ascontiguousarray(passages, dtype=np.float32)
        self._queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._index = index

    def search(self, queries: Places, depth: int, *, label: str) -> Ranking:
        """See `FirstStage`."""
        depth = min(depth, len(self._passages))
        return _in_blocks(lambda part: self._index.search(self._queries[part], depth), queries, depth, label)

    def scores(self, queries: Places, passages: Places) -> Vectors:
        """See `FirstStage`."""
        return inner_products(self._queries, queries, self._passages, passages)

    def ranks(self, queries: Places, passages: Places) -> Places:
        """See `FirstStage`."""
        scores = self.scores(queries, passages)
        better = np.zeros(len(queries), dtype=np.int64)
        for start in range(0, len(self._passages), WIDTH):
            part = self._passages[start : start + WIDTH]
            longest = float(np.sqrt(np.einsum("ij,ij->i", part, part).max()))
            for first in range(0, len(queries), CELLS // WIDTH):
                pairs = slice(first, first + CELLS // WIDTH)
                better[pairs] += self._better(queries[pairs], scores[pairs], start, part, longest)
        return better + 1

    def _better(self, queries: Places, scores: Vectors, start: int, part: Vectors, longest: float) -> Places:
        """How many passages of a part score higher, shape (pairs,).

        A matrix product rounds differently from the score, so what is as near as rounding allows is scored again.
        """
        vectors = self._queries[queries]
        products = vectors @ part.T
        error = part.shape[1] * 2**-22 * longest * np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        above = products > (scores + error)[:, None]
        row, column = np.nonzero((products >= (scores - error)[:, None]) & ~above)
        near = inner_products(self._queries, queries[row], self._passages, start + column)
        better: Places = above.sum(axis=1) + np.bincount(row[near > scores[row]], minlength=len(queries))
        return better


class Lexical:
    """BM25 as Lucene defines it, with the words of `reranker.lexical`: only passages that share a word are found.

    Lù (2024), BM25S: orders of magnitude faster lexical search via eager sparse scoring.

    Args:
        passages: texts.
        queries: texts.
    """

    def __init__(self, passages: Sequence[str], queries: Sequence[str]) -> None:
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in passages]
        self._passages = len(ids)
        self._queries = [
            np.array([vocabulary[word] for word in words(text) if word in vocabulary], dtype=np.int64)
            for text in queries
        ]
        self._starts = np.zeros(1, dtype=np.int64)
        if vocabulary:
            counted = bm25s.BM25(k1=K1, b=B, method="lucene", csc_backend="scipy")
            counted.index((ids, vocabulary), create_empty_token=False, show_progress=False)
            self._starts, self._found = counted.scores["indptr"], counted.scores["indices"]
            self._weights = counted.scores["data"]
            self._matrix = csc_array(
                (self._weights, self._found, self._starts), shape=(self._passages, len(vocabulary))
            )

    def search(self, queries: Places, depth: int, *, label: str) -> Ranking:
        """See `FirstStage`."""
        depth = min(depth, self._passages)
        return _in_blocks(lambda part: self.block(part, depth), queries, depth, label)

    def block(self, queries: Places, depth: int) -> Ranking:
        """The same without progress."""
        found = _nothing(len(queries), depth)
        for row, query in enumerate(queries):
            scores = self._scores_of(query)
            (some,) = np.nonzero(scores)
            if len(some) > depth:
                cut = np.partition(scores[some], len(some) - depth)[len(some) - depth]
                some = some[scores[some] >= cut]
            best = some[np.lexsort((-some, -scores[some]))][:depth]
            found.positions[row, : len(best)], found.scores[row, : len(best)] = best, scores[best]
        return found

    def scores(self, queries: Places, passages: Places) -> Vectors:
        """See `FirstStage`."""
        scores = np.zeros(len(queries), dtype=np.float32)
        of = [self._queries[query] for query in queries]
        pair = np.repeat(np.arange(len(of)), [len(part) for part in of])
        if len(pair):
            # one by one in the order of the query's words, as `_scores_of` adds: the sums are equal to the bit
            np.add.at(scores, pair, self._matrix[passages[pair], np.concatenate(of)])
        return scores

    def ranks(self, queries: Places, passages: Places) -> Places:
        """See `FirstStage`."""
        better = np.zeros(len(queries), dtype=np.int64)
        for query, pairs in _by_query(queries):
            scores = self._scores_of(query)
            better[pairs] = [(scores > score).sum() for score in scores[passages[pairs]]]
        return better + 1

    def _scores_of(self, query: int) -> Vectors:
        scores = np.zeros(self._passages, dtype=np.float32)
        for word in self._queries[query]:
            part = slice(self._starts[word], self._starts[word + 1])
            scores[self._found[part]] += self._weights[part]
        return scores


class Fused:
    """Reciprocal-rank fusion: the sum of 1 / (60 + rank) over the retrievers that find a passage.

    Cormack, Clarke and Buettcher (SIGIR 2009). A passage that none of them finds has score 0 and the rank after the
    last one that is found.

    Args:
        parts: retrievers of the same passages and queries.
        first: passages of each retriever that are fused.
    """

    def __init__(self, parts: Sequence[FirstStage], first: int = FUSION_DEPTH) -> None:
        self._parts, self._first = parts, first

    def search(self, queries: Places, depth: int, *, label: str) -> Ranking:
        """See `FirstStage`."""
        rankings = [part.search(queries, self._first, label=label) for part in self._parts]
        depth = min(depth, sum(ranking.positions.shape[1] for ranking in rankings))
        found = _nothing(len(queries), depth)
        for start in range(0, len(queries), QUERIES):
            part = slice(start, start + QUERIES)
            fused = _fuse([ranking.positions[part] for ranking in rankings])
            found.positions[part], found.scores[part] = fused.positions[:, :depth], fused.scores[:, :depth]
        return found

    def scores(self, queries: Places, passages: Places) -> Vectors:
        """See `FirstStage`."""
        return self._pairs(queries, passages)[0]

    def ranks(self, queries: Places, passages: Places) -> Places:
        """See `FirstStage`."""
        return self._pairs(queries, passages)[1]

    def _pairs(self, queries: Places, passages: Places) -> tuple[Vectors, Places]:
        scores, better = np.zeros(len(queries), dtype=np.float32), np.zeros(len(queries), dtype=np.int64)
        distinct, of = np.unique(queries, return_inverse=True)
        found = self.search(distinct, len(self._parts) * self._first, label="fusion")
        for row, (place, passage) in enumerate(zip(of, passages, strict=True)):
            here = found.positions[place] == passage
            scores[row] = found.scores[place][here].sum()
            better[row] = (found.scores[place] > scores[row]).sum()
        return scores, better + 1


def _fuse(rankings: Sequence[Places]) -> Ranking:
    """Fuse rankings of the same queries; shapes (queries, depth of each)."""
    positions = np.concatenate(rankings, axis=1)
    shares = np.concatenate([np.arange(1, ranking.shape[1] + 1) for ranking in rankings])
    scores = np.where(positions >= 0, 1 / (FUSION_K + shares), 0)
    order = np.argsort(positions, axis=1, kind="stable")
    positions, scores = np.take_along_axis(positions, order, axis=1), np.take_along_axis(scores, order, axis=1)
    for ahead in range(1, len(rankings)):  # equal ones are neighbours: the first of them takes the others' shares
        same = positions[:, ahead:] == positions[:, :-ahead]
        scores[:, :-ahead] += np.where(same, scores[:, ahead:], 0)
    again = np.zeros(positions.shape, dtype=bool)
    again[:, 1:] = positions[:, 1:] == positions[:, :-1]
    nothing = again | (positions < 0)
    positions = np.where(nothing, -1, positions)
    scores = np.where(nothing, -np.inf, scores).astype(np.float32)
    best = np.lexsort((-positions, -scores), axis=1)
    return Ranking(np.take_along_axis(positions, best, axis=1), np.take_along_axis(scores, best, axis=1))


def _in_blocks(search: Callable[[Places], Ranking], queries: Places, depth: int, label: str) -> Ranking:
    found = _nothing(len(queries), depth)
    with progress(label, len(queries), "queries") as shown:
        for start in range(0, len(queries), QUERIES):
            part = slice(start, start + QUERIES)
            found.positions[part], found.scores[part] = search(queries[part])
            shown.advance(len(queries[part]))
    return found


def _nothing(queries: int, depth: int) -> Ranking:
    return Ranking(np.full((queries, depth), -1, dtype=np.int64), np.full((queries, depth), -np.inf, dtype=np.float32))


def _by_query(queries: Places) -> list[tuple[int, Places]]:
    """Each distinct query with the rows that have it."""
    order = np.argsort(queries, kind="stable")
    distinct, starts = np.unique(queries[order], return_index=True)
    parts = np.split(order, starts[1:])[: len(distinct)]  # of no queries it makes one part
    return list(zip(distinct.tolist(), parts, strict=True))
