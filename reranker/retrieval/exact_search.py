"""Exact inner products of vectors, and exact search by them.

One function computes every score, pair by pair, so that a pair has one score wherever it is asked for: a matrix
product rounds a score differently from one shape of the matrices to another.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from reranker.retrieval.ranking import Ranking, Vectors, best_first

Places = NDArray[np.int64]
CELLS = 8_000_000
"""Products, of 2 bytes, that one thread makes at once: about what the caches hold."""
WIDTH = 32_768
"""Passages that queries are multiplied with at once; a multiple of MEMBERS."""
ROWS = 256
"""Queries that a thread takes at once."""
MEMBERS = 32
"""Passages in a group, at most."""
GROUPS = 16
"""Groups per passage that is wanted, at least: with fewer, good passages hide behind each other."""
CONTENDERS = 16_000_000
"""Passages that are scored at once, with those that fill up the rows."""
LOWEST = -32_640
"""Below every finite bfloat16 and above minus infinity, as `_ordered` counts."""


class Exact:
    """Exact search: products in bfloat16 rule passages out, float32 products of the others decide.

    A product of rounded vectors differs from the true one by no more than the norms of the rounding errors allow
    (Cauchy-Schwarz). Every passage that may be among the first within that bound is kept, a few more than are
    asked for, so the rounding loses nothing. Where the processor multiplies bfloat16, this takes 0.3 to 0.67 of the
    time of `faiss.IndexFlatIP`; `python -m benchmarks.exact_search` compares them.

    Args:
        passages: shape (passages, dimensions); kept, not copied if they are contiguous, beside a copy in bfloat16.
    """

    name = "flat"

    def __init__(self, passages: Vectors) -> None:
        self.settings: dict[str, int] = {}
        self._passages = np.ascontiguousarray(passages)
        self._parts: list[torch.Tensor] = []
        self._norm = self._error = 0.0
        for start in range(0, len(passages), WIDTH):
            part = torch.from_numpy(np.array(passages[start : start + WIDTH]))
            rounded = part.bfloat16()
            self._norm = max(self._norm, float(part.norm(dim=1).max()))
            self._error = max(self._error, float((part - rounded.float()).norm(dim=1).max()))
            self._parts.append(torch.nn.functional.pad(rounded, (0, 0, 0, -len(part) % MEMBERS)))

    def search(self, queries: Vectors, depth: int) -> Ranking:
        """The first passages of each query, best first; equal scores by position, from the last to the first.

        Args:
            queries: shape (queries, dimensions).
            depth: at most the number of passages.
        """
        found = Ranking(
            np.empty((len(queries), depth), dtype=np.int64), np.empty((len(queries), depth), dtype=np.float32)
        )
        threads = torch.get_num_threads()
        rows = max(1, min(ROWS, CELLS // min(WIDTH, len(self._passages)), -(-len(queries) // threads)))

        def run(start: int) -> None:
            part = slice(start, start + rows)
            found.positions[part], found.scores[part] = self._search(queries[part], depth)

        try:
            # threads that do not wait for each other: most steps between the products use one
            with ThreadPoolExecutor(threads, initializer=_one_thread) as pool:
                list(pool.map(run, range(0, len(queries), rows)))
        finally:
            torch.set_num_threads(threads)
        return found

    def _search(self, queries: Vectors, depth: int) -> Ranking:
        queries = np.array(queries, dtype=np.float32, order="C")  # torch takes none that cannot be written to
        contenders = self._contenders(queries, depth)
        if contenders is None:
            middle = len(queries) // 2
            halves = self._search(queries[:middle], depth), self._search(queries[middle:], depth)
            return Ranking(*(np.concatenate([half[column] for half in halves]) for column in range(2)))
        return rescored(contenders, queries, self._passages, depth)

    def _contenders(self, queries: Vectors, depth: int) -> Places | None:
        """The passages that may be among the first of each query, filled up with -1; None: too many to score at once.

        The product of a passage that is among the first is at most one rounding error below the true product, which
        is at most one below the `depth`-th largest product of groups' best passages.
        """
        rounded = torch.from_numpy(queries).bfloat16()
        error = self._largest_error(torch.from_numpy(queries), rounded)
        best = np.empty((len(queries), 0), dtype=np.int16)
        kept: list[_Reaching] = []
        number_kept = 0
        for number, part in enumerate(self._parts):
            products = rounded @ part.T
            products[:, len(self._passages) - number * WIDTH :] = -torch.inf
            grouped = products.view(len(queries), _members(len(part), depth), -1)
            highest = _ordered(grouped.amax(dim=1))
            best = np.concatenate([best, highest], axis=1)
            if best.shape[1] >= depth:
                best.partition(best.shape[1] - depth, axis=1)
                best = best[:, -depth:]
            lowest = _lowest(best, error) if best.shape[1] == depth else np.full(len(queries), LOWEST, dtype=np.int16)
            reach = highest >= lowest[:, None]
            number_kept += int(np.count_nonzero(reach)) * grouped.shape[1]
            if number_kept > CONTENDERS and len(queries) > 1:
                return None
            kept.append(_reaching(grouped, reach, lowest, number * WIDTH))
        row, position, product = (np.concatenate(column) for column in zip(*kept, strict=True))
        still = product >= lowest[row]
        return _by_row(row[still], position[still], len(queries))

    def _largest_error(self, queries: torch.Tensor, rounded: torch.Tensor) -> Vectors:
        norm, error = queries.norm(dim=1), (queries - rounded.float()).norm(dim=1)
        summing = queries.shape[1] * 2**-23 * norm * self._norm  # of the sums in float32, both kinds of them
        largest: Vectors = (1.001 * (error * self._norm + (norm + error) * self._error + summing)).numpy()
        return largest


class _Reaching(NamedTuple):
    """Passages whose products reach the threshold of a query."""

    row: Places
    position: Places
    product: NDArray[np.int16]


def _reaching(grouped: torch.Tensor, reach: NDArray[np.bool_], lowest: NDArray[np.int16], first: int) -> _Reaching:
    """Look into the groups whose best passage reaches the threshold.

    Args:
        grouped: products, shape (queries, members, groups).
        reach: whether a group does, shape (queries, groups).
        lowest: threshold of each query.
        first: position of the first passage.
    """
    _, members, groups = grouped.shape
    row, group = np.divmod(np.flatnonzero(reach), groups)
    products = _as_ordered(grouped.view(torch.int16).numpy()[row, :, group])
    at, member = np.divmod(np.flatnonzero(products >= lowest[row][:, None]), members)
    return _Reaching(row[at], first + member * groups + group[at], products[at, member])


def _by_row(row: Places, position: Places, rows: int) -> Places | None:
    """The positions of each row side by side, filled up with -1; None if that takes too much memory."""
    number = np.bincount(row, minlength=rows)
    if rows > 1 and rows * number.max() > CONTENDERS:
        return None
    order = np.argsort(row.astype(np.int16), kind="stable")  # numpy sorts 16 bits by radix
    row, position = row[order], position[order]
    table = np.full((rows, int(number.max())), -1, dtype=np.int64)
    table[row, np.arange(len(row)) - (np.cumsum(number) - number)[row]] = position
    return table


def _members(width: int, depth: int) -> int:
    """Passages in a group: the fewer groups, the faster, but there have to be several per passage that is wanted."""
    members = MEMBERS
    while members > 1 and width // members < GROUPS * depth:
        members //= 2
    return members


def _ordered(products: torch.Tensor) -> NDArray[np.int16]:
    """The bits of bfloat16 as integers of the same order, which numpy compares and sorts much faster."""
    return _as_ordered(products.view(torch.int16).numpy())


def _as_ordered(bits: NDArray[np.int16]) -> NDArray[np.int16]:
    ordered: NDArray[np.int16] = bits ^ ((bits >> 15) & 0x7FFF)
    return ordered


def _lowest(best: NDArray[np.int16], error: Vectors) -> NDArray[np.int16]:
    """What the product of a passage that may be among the first reaches.

    Args:
        best: the largest products of groups, the smallest of them first; shape (queries, depth).
        error: largest error of a product but for the rounding of the product itself.
    """
    bits = best[:, 0].astype(np.int32) << 16
    product = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
    reached = (product - 2**-8 * np.abs(product) - 2 * error).astype(np.float32).view(np.int32)
    reached = (reached ^ ((reached >> 31) & 0x7FFFFFFF)) >> 16  # rounded down
    return np.maximum(reached, LOWEST).astype(np.int16)


def _one_thread() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def rescored(positions: Places, queries: Vectors, passages: Vectors, depth: int) -> Ranking:
    """The best of some passages by their exact scores; equal ones by position, from the last to the first.

    Args:
        positions: some of each query, each once, filled up with -1; shape (queries, at least depth).
        queries: shape (queries, dimensions), contiguous.
        passages: shape (passages, dimensions), contiguous.
        depth: number of passages per query.
    """
    scores = np.full(positions.shape, -np.inf, dtype=np.float32)
    positions = np.ascontiguousarray(positions)
    if positions.size:
        faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
            *(faiss.swig_ptr(array) for array in (scores, queries, passages, positions)),
            passages.shape[1],
            *positions.shape,
        )
    return best_first(positions, scores, depth)


def inner_products(queries: Vectors, query_rows: Places, passages: Vectors, passage_rows: Places) -> Vectors:
    """The exact scores of pairs, shape (pairs,).

    Args:
        queries: shape (queries, dimensions), contiguous.
        query_rows: the pairs' queries.
        passages: shape (passages, dimensions), contiguous.
        passage_rows: the pairs' passages.
    """
    scores = np.empty(len(query_rows), dtype=np.float32)
    left, right = (np.ascontiguousarray(rows, dtype=np.int64) for rows in (query_rows, passage_rows))
    if len(scores):
        faiss.pairwise_indexed_inner_product(  # type: ignore[attr-defined]
            passages.shape[1],
            len(scores),
            *(faiss.swig_ptr(array) for array in (queries, left, passages, right, scores)),
        )
    return scores
