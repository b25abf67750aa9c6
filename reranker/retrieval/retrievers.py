"""First-stage retrievers: by vectors, by words, and by a weighted sum of the scores of several retrievers."""

import copy
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
"""The number of scores that are held at once, which take 16 MB."""
WIDTH = 32_768
"""The number of passages whose scores are compared at a time for ranks."""
QUERIES = 4096
"""Queries per block. Progress is shown after each block."""
GROUPS = 8
"""Groups of passages for each passage to find, in the search for the best scores."""
SMALLEST = np.finfo(np.float32).tiny
"""A number below the score of every passage that shares a word with the query."""
SUMMED_QUERIES = 1024
"""The number of queries whose scores are added at a time."""
SUMMED_DEPTH = 1000
"""The number of passages of each retriever that a weighted sum looks at."""
MANY = 64
"""Passages of a query from which BM25 scores the whole corpus for it, which then takes less time than pair by pair."""
RRF_K = 60
"""The constant of reciprocal rank fusion in Cormack, Clarke and Buettcher (SIGIR 2009)."""


class Dense:
    """Ranks by inner products of vectors.

    Args:
        passages: vectors of shape (passages, dimensions).
        queries: vectors of shape (queries, dimensions).
        index: the index of the passages. An approximate one misses some passages, but scores and ranks are exact.
        engine: runs the searches; scores and ranks are computed in this process.

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
        rankings = self._engine.map(partial(_search_blocks, depth=depth), self._index, blocks, together=1)
        return _concatenate(rankings, queries, depth, label)

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
        """The number of passages of a part that score higher; shape (pairs,).

        A matrix product rounds differently from the score, so passages within the rounding error are scored again.
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
    """Ranks by BM25 as Lucene defines it, with the words of `bm25.words`. It finds only passages that share a word.

    Lù (2024), BM25S: orders of magnitude faster lexical search via eager sparse scoring.

    Args:
        passages: texts of the passages.
        queries: texts of the queries.
    """

    def __init__(self, passages: Sequence[str], queries: Sequence[str]) -> None:
        vocabulary: dict[str, int] = {}
        ids = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in words(text)]
            for text in track(passages, "bm25", "passages", len(passages))
        ]
        self._passages, self._vocabulary = len(ids), vocabulary
        self._queries = self._words_of(queries)
        self._starts = np.zeros(1, dtype=np.int64)
        if vocabulary:
            scorer = bm25s.BM25(k1=K1, b=B, method="lucene", csc_backend="scipy")
            scorer.index((ids, vocabulary), create_empty_token=False, show_progress=False)
            self._weights, self._rows, self._starts = (scorer.scores[key] for key in ("data", "indices", "indptr"))
            shape = self._passages, len(vocabulary)
            self._matrix = csc_array((self._weights, self._rows, self._starts), shape=shape)

    def ask(self, queries: Sequence[str]) -> "Lexical":
        """The same passages with other queries; the index is shared."""
        other = copy.copy(self)
        other._queries = self._words_of(queries)
        return other

    def _words_of(self, texts: Sequence[str]) -> list[Places]:
        known = self._vocabulary
        return [np.array([known[word] for word in words(text) if word in known], dtype=np.int64) for text in texts]

    def search(self, queries: Places, depth: int, *, label: str) -> Ranking:
        """See `FirstStage`."""
        depth = min(depth, self._passages)
        return _concatenate((self._search(part, depth) for part in _blocks(queries)), queries, depth, label)

    def _search(self, queries: Places, depth: int) -> Ranking:
        ranking = _empty_ranking(len(queries), depth)
        buffer = self._buffer()
        members = max(1, self._passages // (GROUPS * max(1, depth)))
        whole = self._passages // members * members
        for row, query in enumerate(queries):
            scores = self._scores_of(query, buffer)
            # At least `depth` passages reach the best score of the group that is at rank `depth` among the groups.
            maxima = scores[:whole].reshape(members, -1).max(axis=0)
            cut = np.partition(maxima, len(maxima) - depth)[len(maxima) - depth] if depth else np.float32(0)
            (some,) = np.nonzero(scores >= max(cut, SMALLEST))
            best = best_first(some[None], scores[some][None], depth)
            width = best.positions.shape[1]
            ranking.positions[row, :width], ranking.scores[row, :width] = best.positions[0], best.scores[0]
        return ranking

    def scores(self, queries: Places, passages: Places) -> Vectors:
        """See `FirstStage`."""
        scores = np.zeros(len(queries), dtype=np.float32)
        few = []
        buffer = self._buffer()
        for query, pairs in _by_query(queries):
            if len(pairs) < MANY:
                few.append(pairs)
            else:
                scores[pairs] = self._scores_of(query, buffer)[passages[pairs]]
        if few:
            rest = np.concatenate(few)
            scores[rest] = self._pair_scores(queries[rest], passages[rest])
        return scores

    def _pair_scores(self, queries: Places, passages: Places) -> Vectors:
        scores = np.zeros(len(queries), dtype=np.float32)
        words_of = [self._queries[query] for query in queries]
        pair = np.repeat(np.arange(len(words_of)), [len(ids) for ids in words_of])
        if len(pair):
            # The order of the words is that of `_scores_of`, so that the sums are equal to the bit.
            np.add.at(scores, pair, self._matrix[passages[pair], np.concatenate(words_of)])
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
            np.add.at(buffer, self._rows[part], self._weights[part])
        return buffer


class WeightedSum:
    """Ranks by a weighted sum of the scores of several retrievers.

    It looks at the passages that one of the retrievers has among its first ones, and every retriever scores each of
    them. Unlike reciprocal rank fusion, a weak retriever then does not pull down a strong one.

    Args:
        parts: retrievers of the same passages and queries.
        weights: the weight of each retriever, from 0; see `reranker.inference.fusion.fit_weights`.
        first: number of passages of each retriever to look at.
    """

    def __init__(self, parts: Sequence[FirstStage], weights: Sequence[float], first: int = SUMMED_DEPTH) -> None:
        self._parts, self._weights, self._first = parts, weights, first

    def search(self, queries: Places, depth: int, *, label: str) -> Ranking:
        """See `FirstStage`. It finds no more passages than all retrievers together."""
        depth = min(depth, self._first * len(self._parts))
        blocks = (queries[start : start + SUMMED_QUERIES] for start in range(0, len(queries), SUMMED_QUERIES))
        rankings = [_narrowed(self._rank(some, label), depth) for some in blocks]
        if not rankings:
            return _empty_ranking(0, depth)
        return Ranking(*(np.concatenate(columns) for columns in zip(*rankings, strict=True)))

    def scores(self, queries: Places, passages: Places) -> Vectors:
        """See `FirstStage`."""
        total = np.zeros(len(queries), dtype=np.float32)
        for part, weight in zip(self._parts, self._weights, strict=True):
            total += np.float32(weight) * part.scores(queries, passages)
        return total

    def ranks(self, queries: Places, passages: Places) -> Places:
        """See `FirstStage`. A passage that none of the retrievers has among its first ones has too good a rank."""
        scores, better = self.scores(queries, passages), np.zeros(len(queries), dtype=np.int64)
        by_query = _by_query(queries)
        for start in range(0, len(by_query), SUMMED_QUERIES):
            block = by_query[start : start + SUMMED_QUERIES]
            ranking = self._rank(np.array([query for query, _ in block], dtype=np.int64), "first stage")
            for row, (_, pairs) in enumerate(block):
                better[pairs] = (ranking.scores[row] > scores[pairs][:, None]).sum(axis=1)
        return better + 1

    def _rank(self, queries: Places, label: str) -> Ranking:
        """Rank every passage that a retriever has among its first ones; shape (queries, passages of all of them)."""
        found = [part.search(queries, self._first, label=label).positions for part in self._parts]
        positions = np.sort(np.concatenate(found, axis=1), axis=1)
        positions[:, 1:][positions[:, 1:] == positions[:, :-1]] = -1  # a passage counts once
        row, column = np.nonzero(positions >= 0)
        scores = np.full(positions.shape, -np.inf, dtype=np.float32)
        scores[row, column] = self.scores(queries[row], positions[row, column])
        return best_first(positions, scores, positions.shape[1])


def _narrowed(ranking: Ranking, depth: int) -> Ranking:
    """The first passages of a ranking, filled up with -1 where it has fewer."""
    narrow = _empty_ranking(len(ranking.positions), depth)
    width = min(depth, ranking.positions.shape[1])
    narrow.positions[:, :width], narrow.scores[:, :width] = ranking.positions[:, :width], ranking.scores[:, :width]
    return narrow


def _blocks(queries: Places) -> Iterator[Places]:
    for start in range(0, len(queries), QUERIES):
        yield queries[start : start + QUERIES]


def _search_blocks(index: Index, blocks: Iterable[Vectors], *, depth: int) -> Iterator[Ranking]:
    for block in blocks:
        yield index.search(block, depth)


def _concatenate(rankings: Iterable[Ranking], queries: Places, depth: int, label: str) -> Ranking:
    """Join the rankings of the blocks of queries into one ranking."""
    ranking = _empty_ranking(len(queries), depth)
    with progress(label, len(queries), "queries") as bar:
        for start, some in zip(range(0, len(queries), QUERIES), rankings, strict=True):
            part = slice(start, start + QUERIES)
            width = min(depth, some.positions.shape[1])
            ranking.positions[part, :width] = some.positions[:, :width]
            ranking.scores[part, :width] = some.scores[:, :width]
            bar.advance(len(queries[part]))
    return ranking


def _empty_ranking(queries: int, depth: int) -> Ranking:
    return Ranking(np.full((queries, depth), -1, dtype=np.int64), np.full((queries, depth), -np.inf, dtype=np.float32))


def _by_query(queries: Places) -> list[tuple[int, Places]]:
    """Each distinct query, with the positions at which it appears."""
    order = np.argsort(queries, kind="stable")
    distinct, starts = np.unique(queries[order], return_index=True)
    parts = np.split(order, starts[1:])[: len(distinct)]  # without queries it gives one part
    return list(zip(distinct.tolist(), parts, strict=True))
