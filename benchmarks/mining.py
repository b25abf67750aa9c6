"""How fast hard negatives are mined and in how much memory, beside `mine_hard_negatives` of Sentence Transformers.

Both sides get the same vectors and run in turn, each in a process of its own. Seconds are counted after the imports,
memory with them. `same` is the share of the queries with the same negatives in the same order, passages of equal score
aside; `recall` is the share of the exact first 100 passages that are found, on about 500 queries.

    python -m benchmarks.mining [--size default 200k 1m growth rescoring] [--index flat auto] [--folder FOLDER]

In a FOLDER the passages are kept for the next time. `growth` draws docs/mining.svg.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pandas as pd
import torch
from matplotlib import style
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from benchmarks import passages
from benchmarks.measured import DEPTH, NEGATIVES, TABLES, sample
from benchmarks.prepare import ROOT, run
from reranker.common.model_files import resolve
from reranker.report.figures import LIGHT, STYLE, WIDTH

PLAIN, OURS = "mine_hard_negatives", "ours"
SIZES = {"200k": (200_000, 50_000), "1m": (1_000_000, 100_000)}
REPEATS = {"default": 3, "200k": 3, "1m": 1}
GROWTH, GROWTH_QUERIES = (10_000, 31_623, 100_000, 316_228, 1_000_000), 5_000
FEW = 20
"""Queries whose candidates a cross-encoder scores."""
TIE = 1e-6
"""Scores that differ by less are equal: libraries add in different orders."""


class Run(NamedTuple):
    """What a side took."""

    seconds: float
    cpu: float
    """Seconds of all processors."""
    peak: float
    """MiB."""


def main() -> None:
    """Make what is needed, run both sides, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ["default", *SIZES, "growth", "rescoring"]
    parser.add_argument("--size", nargs="+", choices=sizes, default=sizes)
    parser.add_argument("--index", nargs="+", default=["flat", "auto"], help="as in params.yaml; growth takes the last")
    parser.add_argument("--folder", type=Path, help="where the passages are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).absolute()
        print(f"{os.cpu_count()} cores, {faiss.omp_get_max_threads()} threads, load {os.getloadavg()[0]:.1f}")
        print(f"{'':<42} {'seconds':>8} {'times':>6} {'CPU s':>8} {'MiB':>7} {'same':>7} {'recall':>7}", flush=True)
        for size in options.size:
            if size == "growth":
                growth(largest(folder), folder, options.index[-1])
            elif size == "rescoring":
                rescoring(corpus(folder, "default"), folder)
            else:
                compare(corpus(folder, size), folder, options.index, REPEATS[size])


def corpus(folder: Path, size: str) -> Path:
    """The folder of a corpus, made if it is not there."""
    if size == "default":
        return made(folder / size, passages.default_text)
    return made(folder / size, lambda path: passages.part(largest(folder), path, *SIZES[size]))


def largest(folder: Path) -> Path:
    """The folder of all passages, made if it is not there."""
    return made(folder / "all", lambda path: passages.write(path, passages.passages(), SIZES["1m"][1]))


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is whole or not there."""
    if not path.exists():
        new = path.with_name(f"{path.name}.new")
        new.mkdir(parents=True)
        make(new)
        new.rename(path)
    return path


def compare(source: Path, folder: Path, indexes: Sequence[str], repeats: int) -> dict[str, Run]:
    """Both sides on a corpus, a line each; the median of the runs."""
    sides = {PLAIN: ["plain_mining"], **{f"{OURS}, {name}": ["our_mining", "--index", name] for name in indexes}}
    taken: dict[str, list[Run]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, (module, *arguments) in sides.items():
            taken[side].append(measured(module, source, folder / f"{side}.parquet", *arguments))
    runs = {
        side: Run(*(statistics.median(values) for values in zip(*some, strict=True))) for side, some in taken.items()
    }
    passage_vectors, query_vectors = vectors(source)
    print(f"{len(passage_vectors):,} passages, {len(query_vectors):,} queries")
    tables = [pd.read_parquet(source / f"{name}.parquet") for name in TABLES[:2]]
    expected = of_plain(pd.read_parquet(folder / f"{PLAIN}.parquet"), *tables)
    show(PLAIN, runs[PLAIN], runs[PLAIN])
    for side in list(sides)[1:]:
        chosen = of_ours(pd.read_parquet(folder / f"{side}.parquet"), *tables)
        found = np.load(folder / f"{side}.npy")
        show(side, runs[side], runs[PLAIN], same(expected, chosen, *vectors(source)), recall(found, *vectors(source)))
    return runs


def measured(module: str, source: Path, out: Path, *arguments: str) -> Run:
    """Run a side."""
    run([sys.executable, "-m", f"benchmarks.{module}", str(source), str(out), *arguments], out.parent)
    return Run(**json.loads(out.with_suffix(".json").read_text(encoding="utf-8")))


def show(label: str, taken: Run, plain: Run, *shares: float) -> None:
    """A line of the table."""
    numbers = f"{taken.seconds:>8,.1f} {plain.seconds / taken.seconds:>6.2f} {taken.cpu:>8,.1f} {taken.peak:>7,.0f}"
    print(f"  {label:<40} {numbers}{''.join(f' {share:>7.4f}' for share in shares)}", flush=True)


def vectors(source: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the passages and of the queries."""
    found = [np.load(source / f"{name}.npy", mmap_mode="r") for name in ("passages", "queries")]
    return found[0], found[1]


def of_plain(rows: pd.DataFrame, texts: pd.DataFrame, queries: pd.DataFrame) -> NDArray[np.int64]:
    """Places of each query's negatives, -1 for none; shape (queries, negatives)."""
    rows = rows.drop_duplicates("query")
    chosen = np.full((len(queries), NEGATIVES), -1)
    columns = rows.filter(like="negative_").to_numpy()
    places = pd.Index(texts["text"]).get_indexer(columns.ravel()).reshape(columns.shape)
    chosen[pd.Index(queries["text"]).get_indexer(rows["query"])] = places
    return chosen


def of_ours(rows: pd.DataFrame, texts: pd.DataFrame, queries: pd.DataFrame) -> NDArray[np.int64]:
    """The same from the table of negatives."""
    rows = rows[rows["kind"] == "hard"]
    chosen = np.full((len(queries), NEGATIVES), -1)
    at = pd.Index(queries["query_id"]).get_indexer(rows["query_id"])
    chosen[at, rows.groupby("query_id").cumcount()] = pd.Index(texts["passage_id"]).get_indexer(rows["passage_id"])
    return chosen


def same(
    expected: NDArray[np.int64],
    chosen: NDArray[np.int64],
    passage_vectors: NDArray[np.float32],
    query_vectors: NDArray[np.float32],
) -> float:
    """Share of the queries with the same negatives at each rank, or ones of equal score."""
    differ = np.flatnonzero((expected != chosen).any(axis=1))
    left, right = (scores(places[differ], passage_vectors, query_vectors[differ]) for places in (expected, chosen))
    both = (expected[differ] >= 0).all(axis=1) & (chosen[differ] >= 0).all(axis=1)
    tied = both & (np.abs(left - right) < TIE).all(axis=1)
    return 1 - float((~tied).sum()) / len(expected)


def recall(found: NDArray[np.int64], passage_vectors: NDArray[np.float32], query_vectors: NDArray[np.float32]) -> float:
    """Share of the exact first passages that were found for the sampled queries; any of equal score will do."""
    queries = query_vectors[sample(len(query_vectors))]
    exact, _ = faiss.knn(queries, np.asarray(passage_vectors), DEPTH, metric=faiss.METRIC_INNER_PRODUCT)
    return float((scores(found, passage_vectors, queries) > exact[:, -1:] - TIE).mean())


def scores(
    places: NDArray[np.int64], passage_vectors: NDArray[np.float32], query_vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Of passages, a row for each query."""
    products: NDArray[np.float32] = np.einsum("qpd,qd->qp", passage_vectors[places], query_vectors)
    return products


def rescoring(source: Path, folder: Path) -> None:
    """Both sides score the candidates of some queries with a cross-encoder, all in float32."""
    model = made(folder / "cross_encoder", save_cross_encoder)
    few = made(folder / "few", lambda path: take(source, path))
    texts, queries = (pd.read_parquet(few / f"{name}.parquet") for name in TABLES[:2])
    runs = {
        side: measured(module, few, folder / f"{side}.parquet", "--rescorer", str(model), *arguments)
        for side, module, *arguments in ((PLAIN, "plain_mining"), (OURS, "our_mining", "--index", "flat"))
    }
    pairs = len(queries) * (DEPTH + 2)  # the candidates, one more for the right passage among them, the right passage
    print(f"{pairs:,} pairs scored by a cross-encoder")
    for side, taken in runs.items():
        show(f"{side}, {pairs / taken.seconds:.1f} pairs/s", taken, runs[PLAIN])
    rows = pd.read_parquet(folder / f"{PLAIN}.parquet").melt(["query", "scores"], value_name="text")
    rows["score"] = [row[place] for row, place in zip(rows["scores"], rows.groupby("query").cumcount(), strict=True)]
    rows = rows.merge(texts, on="text").merge(queries, left_on="query", right_on="text", suffixes=("", "_query"))
    ours = pd.read_parquet(folder / f"{OURS}.parquet").drop_duplicates(["query_id", "passage_id"])
    both = rows.merge(ours, on=["query_id", "passage_id"], suffixes=("", "_ours"))
    apart = (both["score"] - both["score_ours"]).abs().max()
    spread = both["score"].std()
    print(f"  {len(both):,} scores compared: {apart:.1e} apart at most, standard deviation {spread:.2f}", flush=True)


def save_cross_encoder(path: Path) -> None:
    """The default base model with an untrained output layer: it takes the time of a trained one."""
    torch.manual_seed(1)
    model = CrossEncoder(
        resolve("bundled/all-MiniLM-L6-v2"),
        num_labels=1,
        activation_fn=torch.nn.Identity(),
        model_kwargs={"dtype": torch.float32},
    )
    # as a trained layer spreads them: of scores that hardly differ, a difference would not be seen
    torch.nn.init.normal_(model[0].model.classifier.weight)
    model.save_pretrained(str(path))


def take(source: Path, path: Path) -> None:
    """A corpus with the first queries that have one right passage."""
    texts, queries, judgments = (pd.read_parquet(source / f"{name}.parquet") for name in TABLES)
    right = judgments.groupby("query_id")["passage_id"].transform("size")
    taken = queries["query_id"].isin(judgments.loc[right == 1, "query_id"])
    taken &= taken.cumsum() <= FEW
    texts.to_parquet(path / "passages.parquet", index=False)
    queries[taken].to_parquet(path / "queries.parquet", index=False)
    judgments[judgments["query_id"].isin(queries["query_id"][taken])].to_parquet(
        path / "judgments.parquet", index=False
    )
    passage_vectors, query_vectors = vectors(source)
    np.save(path / "passages.npy", passage_vectors)
    np.save(path / "queries.npy", query_vectors[taken.to_numpy()])


def growth(source: Path, folder: Path, index: str) -> None:
    """Both sides on corpora of growing size with the same queries."""
    grown: dict[int, Mapping[str, Run]] = {}
    for number in GROWTH:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            passages.part(source, Path(name), number, GROWTH_QUERIES)
            grown[number] = compare(Path(name), folder, [index], 1)
    sides = {
        side: pd.DataFrame([runs[side] for runs in grown.values()], index=pd.Index(GROWTH)) for side in grown[GROWTH[0]]
    }
    for side, runs in sides.items():
        print(f"  {side}: seconds grow with the passages to the power {exponent(runs['seconds']):.2f}")
    draw(sides, ROOT / "docs" / "mining.svg")


def exponent(seconds: pd.Series) -> float:
    """Slope of the logarithm of the seconds along that of the index."""
    return float(np.polyfit(np.log(seconds.index.to_numpy(float)), np.log(seconds), 1)[0])


def draw(sides: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Seconds and memory against the passages, both in logarithms."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for colour, (side, runs) in zip((LIGHT["muted"], LIGHT["accent"]), sides.items(), strict=True):
            label = f"{side}: exponent {exponent(runs['seconds']):.2f}"
            above.plot(runs.index, runs["seconds"], "o-", color=colour, label=label, markersize=4.5)
            below.plot(runs.index, runs["peak"], "o-", color=colour, markersize=4.5)
        above.set_title(f"Seconds to mine for {GROWTH_QUERIES:,} queries")
        below.set_title("Peak memory in MiB")
        below.set_xlabel("Passages")
        above.set_yscale("log")
        below.set_ylim(bottom=0)
        for axes in (above, below):
            axes.set_xscale("log")
            axes.grid()
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:,.9g}")
                axis.set_minor_formatter("")
        above.legend(frameon=False, loc="upper left")
        figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
