"""First-stage retrievers: by vectors, by words, and reciprocal rank fusion of several."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import bm25s
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from reranker.common.engine import LOCAL, Engine
from reranker.common.errors import UserError
from reranker.common.progress import progress, track
from reranker.retrieval.bm25 import K1, B, words
from reranker.retrieval.exact_search import inner_products
from reranker.retrieval.index import Index, check_finite
from reranker.retrieval.ranking import FirstStage, Ranking, Vectors, best_first

Places = NDArray[np.int64]
CELLS = 4_194_304
"""Scores that are held at once: 16 MB."""
WIDTH = 32_768
"""Passages that are looked at together for ranks."""
QUERIES = 4096
"""Queries per block: what progress shows."""
GROUPS = 8
"""Groups of passages per passage that is wanted, when the best are looked for."""
SMALLEST = np.finfo(np.float32).tiny
"""Below every score of a passage that shares a word."""
RRF_QUERIES = 1024
"""Queries whose rankings are merged together."""
RRF_DEPTH = 1000
"""Passages of each retriever whose ranks count."""
RRF_K = 60
"""The constant of reciprocal rank fusion in Cormack, Clarke and Buettcher (SIGIR 2009)."""


class Dense:
    """Inner products of vectors.

    Args:
        passages: shape (passages, dimensions).
        queries: shape (queries, dimensions).
        index: of the passages. An approximate one misses some; scores and ranks are exact all the same.
        engine: what searches it; scores and ranks are computed here.

    Raises:
        UserError: the dimensions differ or a value of the queries is not finite.
    """

    def __init__(self, passages: Vectors, queries: Vectors, index: Index, engine: Engine = LOCAL) -> None:
        if passages.shape[1] != queries.shape[1]:
            raise UserError(
                f"the vectors of the passages have {passages.shape[1]} dimensions and those of the queries "
                f"{queries.shape[1]}; embed both with the same model"
            )
        check_finite(queries, "queries")
        self._passages = np.ascontiguousarray(passages, dtype=np.float32)
        self._queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._index, self._engine = index, engine

    def search(self, queries: Places, depth: int, *, label: str) -> Ranking:
        """See `FirstStage`."""
        depth = min(depth, len(self._passages))
        blocks = (self._queries[part] for part in _blocks(queries))
        found = self._engine.map(partial(_searched, depth=depth), self._index, blocks, together=1)
        return _together(found, queries, depth, label)

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
    """BM25 as Lucene defines it, with the words of `bm25.words`: only passages that share a word are found.

    Lù (2024), BM25S: orders of magnitude faster lexical search via eager sparse scoring.

    Args:
        passages: texts.
        queries: texts.
    """

    def __init__(self, passages: Sequence[str], queries: Sequence[str]) -> None:
        vocabulary: dict[str, int] = {}
        ids = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in words(text)]
            for text in track(passages, "bm25", "passages", len(passages))
        ]
        self._passages = len(ids)
        self._queries = [
            np.array([vocabulary[word] for word in words(text) if word in vocabulary], dtype=np.int64)
            for text in queries
        ]
        self._starts = np.zeros(1, dtype=np.int64)
        if vocabulary:
            counted = bm25s.BM25(k1=K1, b=B, method="lucene", csc_backend="scipy")
            counted.index((ids, vocabulary), create_empty_token=False, show_progress=False)
            self._weights, self._found, self._starts = (counted.scores[key] for key in ("data", "indices", "indptr"))
            shape = self._passages, len(vocabulary)
            self._matrix = csc_array((self._weights, self._found, self._starts), shape=shape)

    def search(self, queries: Places, depth: int, *, label: str) -> Ranking:
        """See `FirstStage`."""
        depth = min(depth, self._passages)
        return _together((self._search(part, depth) for part in _blocks(queries)), queries, depth, label)

    def _search(self, queries: Places, depth: int) -> Ranking:
        found = _nothing(len(queries), depth)
        buffer = self._buffer()
        members = max(1, self._passages // (GROUPS * max(1, depth)))
        whole = self._passages // members * members
        for row, query in enumerate(queries):
            scores = self._scores_of(query, buffer)
            # as many passages as are wanted reach the score of the last of the groups' best
            best = scores[:whole].reshape(members, -1).max(axis=0)
            cut = np.partition(best, len(best) - depth)[len(best) - depth] if depth else np.float32(0)
            (some,) = np.nonzero(scores >= max(cut, SMALLEST))
            ranked = best_first(some[None], scores[some][None], depth)
            width = ranked.positions.shape[1]
            found.positions[row, :width], found.scores[row, :width] = ranked.positions[0], ranked.scores[0]
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
        buffer = self._buffer()
        for query, pairs in _by_query(queries):
            scores = self._scores_of(query, buffer)
            better[pairs] = (scores > scores[passages[pairs]][:, None]).sum(axis=1)
        return better + 1

    def _buffer(self) -> Vectors:
        return np.empty(self._passages, dtype=np.float32)

    def _scores_of(self, query: int, buffer: Vectors) -> Vectors:
        buffer.fill(0)
        for word in self._queries[query]:
            part = slice(self._starts[word], self._starts[word + 1])
            np.add.at(buffer, self._found[part], self._weights[part])
        return buffer


class ReciprocalRankFusion:
    """Reciprocal rank fusion: the sum of 1 / (60 + rank) over the retrievers that find a passage.

    Cormack, Clarke and Buettcher (SIGIR 2009). A passage that none of them finds has score 0 and the rank after the
    last one that is found.

    Args:
        parts: retrievers of the same passages and queries.
        first: passages of each retriever whose ranks count.
    """

    def __init__(self, parts: Sequence[FirstStage], first: int = RRF_DEPTH) -> None:
        self._parts, self._first = parts, first

    def search(self, queries: Places, depth: int, *, label: str) -> Ranking:
        """See `FirstStage`; no more passages than all retrievers give."""
        depth = min(depth, self._first * len(self._parts))
        return _together((self._rank(part, label) for part in _blocks(queries)), queries, depth, label)

    def scores(self, queries: Places, passages: Places) -> Vectors:
        """See `FirstStage`."""
        return self._pairs(queries, passages)[0]

    def ranks(self, queries: Places, passages: Places) -> Places:
        """See `FirstStage`."""
        return self._pairs(queries, passages)[1]

    def _pairs(self, queries: Places, passages: Places) -> tuple[Vectors, Places]:
        scores, better = np.zeros(len(queries), dtype=np.float32), np.zeros(len(queries), dtype=np.int64)
        by_query = _by_query(queries)
        for start in range(0, len(by_query), RRF_QUERIES):
            block = by_query[start : start + RRF_QUERIES]
            found = self._rank(np.array([query for query, _ in block]), "reciprocal rank fusion")
            pairs = np.concatenate([rows for _, rows in block])
            of = np.repeat(np.arange(len(block)), [len(rows) for _, rows in block])
            step = max(1, CELLS // found.positions.shape[1])
            for at in range(0, len(pairs), step):
                some, row = pairs[at : at + step], of[at : at + step]
                here = found.positions[row] == passages[some][:, None]
                scores[some] = np.where(here, found.scores[row], 0).sum(axis=1)
                better[some] = (found.scores[row] > scores[some][:, None]).sum(axis=1)
        return scores, better + 1

    def _rank(self, queries: Places, label: str) -> Ranking:
        """Every passage that a retriever finds, best first; shape (queries, passages of all retrievers)."""
        rankings = [part.search(queries, self._first, label=label).positions for part in self._parts]
        starts = range(0, max(1, len(queries)), RRF_QUERIES)
        blocks = [_merge([each[start : start + RRF_QUERIES] for each in rankings]) for start in starts]
        return Ranking(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _merge(rankings: Sequence[Places]) -> Ranking:
    """Reciprocal rank fusion of rankings of the same queries; shapes (queries, depth of each)."""
    positions = np.concatenate(rankings, axis=1)
    shares = 1 / (RRF_K + np.concatenate([np.arange(1, each.shape[1] + 1) for each in rankings]))
    # sorted by position, then by retriever: the sum does not depend on where the others rank the passage
    keys = np.sort((positions << 32) | np.arange(len(shares)), axis=1)
    positions, scores = keys >> 32, shares[keys & 0xFFFFFFFF]
    first = np.ones(positions.shape, dtype=bool)
    first[:, 1:] = positions[:, 1:] != positions[:, :-1]
    for ahead in range(1, len(rankings)):  # the first of equal neighbours takes the others' shares
        same = positions[:, ahead:] == positions[:, :-ahead]
        scores[:, :-ahead] += np.where(same, scores[:, ahead:], 0)
    return best_first(np.where(first, positions, -1), scores.astype(np.float32), positions.shape[1])


def _blocks(queries: Places) -> Iterator[Places]:
    for start in range(0, len(queries), QUERIES):
        yield queries[start : start + QUERIES]


def _searched(index: Index, blocks: Iterable[Vectors], *, depth: int) -> Iterator[Ranking]:
    for block in blocks:
        yield index.search(block, depth)


def _together(rankings: Iterable[Ranking], queries: Places, depth: int, label: str) -> Ranking:
    """The rankings of the blocks of some queries as one."""
    found = _nothing(len(queries), depth)
    with progress(label, len(queries), "queries") as shown:
        for start, some in zip(range(0, len(queries), QUERIES), rankings, strict=True):
            part = slice(start, start + QUERIES)
            width = min(depth, some.positions.shape[1])
            found.positions[part, :width] = some.positions[:, :width]
            found.scores[part, :width] = some.scores[:, :width]
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
