"""Indexes of vectors by name, and the choice among them by size.

Measured on static embeddings (256 dimensions) of docstrings, comments and documentation, on an AMD EPYC with bfloat16:
processor seconds to build, processor seconds for 1,000 queries, and the share of the exact first 100 passages that is
found. `-` is not measured.

|                      | 200,000 passages    | 1,000,000 passages  |
|----------------------|---------------------|---------------------|
| `faiss.IndexFlatIP`  | 0.1 + 0.95, 1       | 0.5 + 4.4, 1        |
| `flat`               | 0.3 + 0.42, 1       | 2 + 2.2, 1          |
| `ivf_flat`           | 2.1 + 2.1, 0.973    | -                   |
| `ivf_pq`             | 3.5 + 0.21, 0.969   | 20 + 0.48, 0.971    |
| `hnsw`               | 24 + 0.67, 0.974    | -                   |
"""

from typing import Protocol

import faiss
import numpy as np
import torch

from reranker.common.errors import UserError
from reranker.common.progress import progress
from reranker.retrieval.exact_search import Exact, rescored
from reranker.retrieval.ranking import Ranking, Vectors

FEW = 1000
"""Passages below which every search is exact: an index saves nothing, and k-means wants more of them."""
MANY = 200_000
"""Passages from which `auto` may choose an approximate index."""
PRODUCTS = 5e12
"""Passages x queries x dimensions from which it does: exact search takes about twice as long as `ivf_pq` then."""
SUBVECTORS = 128
"""Codes of 4 bits for a passage in `ivf_pq`, at most."""
REFINED = 4
"""Passages per passage that is wanted that `ivf_pq` scores exactly."""
PROBED = 4
"""One of so many lists is searched."""
SAMPLE = 64
"""Passages per list from which k-means learns the lists' centres."""
ITERATIONS = 5
"""Of k-means."""
SEED = 1
"""Of k-means."""
LINKS = 32
"""Neighbours of a passage in the graph of `hnsw`; twice as many on its lowest layer."""
EXPLORED = 40
"""Passages that are kept in sight while the neighbours of one are looked for."""
EXPLORED_PER_PASSAGE = 3
"""The same for a query, per passage that is wanted."""
EXPLORED_AT_LEAST = 100
"""The same for a query however few are wanted."""
BLOCK = 65_536
"""Passages that are added at once."""
GPU_DEPTH = 2048
"""Passages per query that faiss finds on a GPU, at most."""


class Index(Protocol):
    """The passages' vectors, ready for search by inner product."""

    name: str
    """Which one it is; never `auto`."""
    settings: dict[str, int]
    """What was chosen for the size of the corpus, by the names that faiss has."""

    def search(self, queries: Vectors, depth: int) -> Ranking:
        """The first passages of each query, best first, with their exact scores.

        Equal scores are ordered by position, from the last to the first. Where an approximate index finds too few,
        -1 and minus infinity fill up.

        Args:
            queries: shape (queries, dimensions).
            depth: at most the number of passages.
        """
        ...


def build(name: str, passages: Vectors, *, queries: int) -> Index:
    """An index of the passages; the same passages give the same one.

    - `flat`: exact search.
    - `ivf_flat`: k-means puts the passages into 2 * sqrt(passages) lists; a quarter of them is searched.
    - `ivf_pq`: the same lists, of product-quantised vectors (Jégou, Douze and Schmid, TPAMI 2011) with codes of 4 bits
      that stay in registers (André, Kermarrec and Le Scouarnec, VLDB 2015); four times as many passages as are wanted
      are scored exactly.
    - `hnsw`: a graph of near neighbours (Malkov and Yashunin, TPAMI 2020). It takes longest to build, so it pays only
      where far more queries than passages are searched and a few passages of each are wanted.
    - `auto`: `flat`, or `ivf_pq` where the corpus has 200,000 passages and passages x queries x dimensions reach
      5e12.

    Fewer than 1,000 passages are searched exactly whatever the name.

    Args:
        name: see above.
        passages: shape (passages, dimensions); kept, not copied if they are contiguous and of float32.
        queries: how many will be searched.

    Raises:
        UserError: a value is not finite.
    """
    passages = np.ascontiguousarray(passages, dtype=np.float32)
    check_finite(passages, "passages")
    if name == "auto":
        name = choose(*passages.shape, queries=queries)
    if name == "flat" or len(passages) < FEW:
        return _flat(passages)
    return Graph(passages) if name == "hnsw" else Lists(passages, name)


def choose(passages: int, dimensions: int, *, queries: int) -> str:
    """What `auto` stands for; it does not depend on the machine, so that results do not either."""
    return "ivf_pq" if passages >= MANY and passages * queries * dimensions >= PRODUCTS else "flat"


def measured_recall(index: Index, passages: Vectors, queries: Vectors, depth: int, *, sample: int) -> float:
    """The share of the exact first passages that an index finds, on some of the queries.

    Args:
        index: of the passages.
        passages: shape (passages, dimensions).
        queries: shape (queries, dimensions).
        depth: number of passages per query; the whole corpus if it is smaller.
        sample: number of queries, evenly spread over all of them.
    """
    depth = min(depth, len(passages))
    some = np.ascontiguousarray(queries[np.unique(np.linspace(0, len(queries) - 1, sample).astype(np.int64))])
    exact, found = (each.search(some, depth) for each in (_flat(np.ascontiguousarray(passages)), index))
    # a passage with the score of the last one is as good as that one
    return float((found.scores >= exact.scores[:, -1:]).mean())


def check_finite(vectors: Vectors, what: str) -> None:
    """Check that every value is a finite number.

    Raises:
        UserError: one is not.
    """
    for start in range(0, len(vectors), BLOCK):
        wrong = ~np.isfinite(vectors[start : start + BLOCK]).all(axis=1)
        if wrong.any():
            raise UserError(
                f"the vectors of the {what}: row {start + int(wrong.argmax())} has a value that is no finite number; "
                "use another model or remove this text"
            )


def _flat(passages: Vectors) -> Index:
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return Exact(passages) if fast and not faiss.get_num_gpus() else Flat(passages)


class Flat:
    """Exact search by faiss: on a GPU, or where the processor does not multiply bfloat16."""

    name = "flat"

    def __init__(self, passages: Vectors) -> None:
        self.settings: dict[str, int] = {}
        self._passages = passages
        self._index = faiss.IndexFlatIP(passages.shape[1])
        for start in range(0, len(passages), BLOCK):
            self._index.add(passages[start : start + BLOCK])
        self._gpu = _on_gpu(self._index)

    def search(self, queries: Vectors, depth: int) -> Ranking:
        """See `Index`."""
        queries = np.ascontiguousarray(queries)
        # a few more, as the products that choose them are rounded differently from the scores
        wanted = min(depth + 10, len(self._passages))
        index = self._gpu if self._gpu is not None and wanted <= GPU_DEPTH else self._index
        return rescored(index.search(queries, wanted)[1], queries, self._passages, depth)


class Lists:
    """Passages in lists by k-means, of which the nearest to a query are searched; in full, or as codes.

    Args:
        passages: shape (passages, dimensions), contiguous.
        name: `ivf_flat` or `ivf_pq`.
    """

    def __init__(self, passages: Vectors, name: str) -> None:
        self.name = name
        number, dimensions = passages.shape
        lists = round(2 * number**0.5)
        self.settings = {"nlist": lists, "nprobe": lists // PROBED}
        self._passages, self._refined = passages, 1
        centres = faiss.IndexFlatIP(dimensions)
        self._index: faiss.IndexIVF
        if name == "ivf_pq":
            self._refined = REFINED
            codes = max(m for m in range(1, min(SUBVECTORS, dimensions) + 1) if dimensions % m == 0)
            self.settings |= {"M": codes, "refined": REFINED}
            self._index = faiss.IndexIVFPQFastScan(centres, dimensions, lists, codes, 4, faiss.METRIC_INNER_PRODUCT)
        else:
            self._index = faiss.IndexIVFFlat(centres, dimensions, lists, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.niter, self._index.cp.seed = ITERATIONS, SEED
        self._index.cp.max_points_per_centroid, self._index.cp.min_points_per_centroid = SAMPLE, 1
        self._index.train(passages[np.unique(np.linspace(0, number - 1, SAMPLE * lists).astype(np.int64))])
        _add(self._index, passages)
        self._gpu = _on_gpu(self._index) if name == "ivf_flat" else None  # faiss searches these codes on a CPU alone

    def search(self, queries: Vectors, depth: int) -> Ranking:
        """See `Index`."""
        queries = np.ascontiguousarray(queries)
        wanted = min(self._refined * depth, len(self._passages))
        lists = self.settings["nlist"]
        # more of them where much of the corpus is wanted
        probed = min(max(self.settings["nprobe"], lists * 10 * depth // len(self._passages) + 1), lists)
        index: faiss.Index = self._index
        parameters = faiss.ParameterSpace()
        if self._gpu is not None and wanted <= GPU_DEPTH:
            index, parameters = self._gpu, faiss.GpuParameterSpace()
        parameters.set_index_parameter(index, "nprobe", probed)
        return rescored(index.search(queries, wanted)[1], queries, self._passages, depth)


class Graph:
    """A graph of passages that are near each other.

    Args:
        passages: shape (passages, dimensions), contiguous; kept beside a copy in bfloat16.
    """

    name = "hnsw"

    def __init__(self, passages: Vectors) -> None:
        self.settings = {"M": LINKS, "efConstruction": EXPLORED}
        self._passages = passages
        self._index = faiss.IndexHNSWSQ(
            passages.shape[1],
            faiss.ScalarQuantizer.QT_bf16,  # type: ignore[arg-type]
            LINKS,
            faiss.METRIC_INNER_PRODUCT,
        )
        self._index.hnsw.efConstruction = EXPLORED
        self._index.train(passages[:1])
        _add(self._index, passages)

    def search(self, queries: Vectors, depth: int) -> Ranking:
        """See `Index`."""
        queries = np.ascontiguousarray(queries)
        self._index.hnsw.efSearch = max(EXPLORED_PER_PASSAGE * depth, EXPLORED_AT_LEAST)
        return rescored(self._index.search(queries, depth)[1], queries, self._passages, depth)


def _add(index: faiss.Index, passages: Vectors) -> None:
    with progress("index", len(passages), "passages") as shown:
        for start in range(0, len(passages), BLOCK):
            index.add(passages[start : start + BLOCK])
            shown.advance(len(passages[start : start + BLOCK]))


def _on_gpu(index: faiss.Index) -> faiss.Index | None:
    """The index on all GPUs that faiss has; None where it has none."""
    return faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() else None
