"""How fast our exact search is beside `faiss.IndexFlatIP`: to build, search and rescore, both in turn in one process.

`same` is the share of the queries with the same passages in the same order; `scores` is whether all scores are equal.

    python -m benchmarks.exact_search FOLDER [--passages 200000 1000000] [--queries 2000] [--repeats 3]

FOLDER has, or gets, the vectors that `benchmarks.mining` uses.
"""

import argparse
import os
import statistics
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.measured import DEPTH, Moment, now, since
from benchmarks.mining import largest, vectors
from reranker.retrieval.exact_search import Exact
from reranker.retrieval.index import Flat
from reranker.retrieval.ranking import Ranking

SIDES = {"IndexFlatIP": Flat, "ours": Exact}


def main() -> None:
    """Make the vectors if they are not there, run both sides, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--queries", type=int, nargs="+", default=[2_000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    passages, queries = (np.ascontiguousarray(part) for part in vectors(largest(options.folder)))
    print(f"{os.cpu_count()} cores, {faiss.omp_get_max_threads()} threads, load {os.getloadavg()[0]:.1f}")
    titles = ("queries", "faiss s", "ours s", "times", "faiss CPU", "ours CPU", "times", "same", "scores")
    print(f"{'passages':>9} {' '.join(f'{title:>9}' for title in titles)}")
    for number in options.passages:
        for asked in options.queries:
            compare(passages[:number], queries[:asked], options.repeats)


def compare(passages: NDArray[np.float32], queries: NDArray[np.float32], repeats: int) -> None:
    """Print a line: the medians of both sides, how often ours goes into theirs, and whether they agree.

    Seconds of the processors are told beside those of the clock, which other work on the machine makes longer.
    """
    taken: dict[str, list[Moment]] = {side: [] for side in SIDES}
    found: dict[str, Ranking] = {}
    for _ in range(repeats):
        for side, kind in SIDES.items():
            before = now()
            found[side] = kind(passages).search(queries, DEPTH)
            taken[side].append(since(before))
    seconds = [
        statistics.median(moment[field] for moment in moments) for field in range(2) for moments in taken.values()
    ]
    plain, ours = found.values()
    same = (plain.positions == ours.positions).all(axis=1).mean()
    times = [
        f"{faiss_s:>9.2f} {ours_s:>9.2f} {faiss_s / ours_s:>9.2f}" for faiss_s, ours_s in (seconds[:2], seconds[2:])
    ]
    equal = (plain.scores == ours.scores).all()
    print(f"{len(passages):>9,} {len(queries):>9,} {' '.join(times)} {same:>9.4f} {equal!s:>9}", flush=True)


if __name__ == "__main__":
    main()
