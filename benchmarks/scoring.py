"""How fast the test pairs are scored in both modes, beside `CrossEncoderRerankingEvaluator` of Sentence Transformers.

    python -m benchmarks.scoring PROJECT [--queries 100] [--repeats 3] [--split test] [--sides openvino-int8 ...]

A PROJECT is a copy of this repository after `dvc repro`. Both sides score the same excerpts by the same cross-encoder
in one process, in turn and warm; what is timed is the scores and NDCG@10 of both modes. `seconds` are medians of the
repeats, `times` the medians of the ratios to the evaluator's seconds.

The evaluator is called twice, for `always_rerank_positives` decides which documents it scores: with False those that
were retrieved, with True the missed right passages before them. We score all pairs once; which of them the retriever
found decides their modes.

Its NDCG@10 is another than ours, whose definition is trec_eval's:

- With `always_rerank_positives=False` its ideal ranking has only the right passages that were retrieved, so a query
  whose retriever missed half of them may still reach 1. Ours has all of them. Queries of which no right passage was
  retrieved count 0 on both sides.
- Documents of one score share the mean of their places (scikit-learn's `ndcg_score`); ours are ordered by passage id.
- A document is right if its text is that of a right passage, so two passages of one text are both right. Ours are told
  apart by their ids.
- Every right passage counts 1; ours counts its relevance.

The last two columns count our scores as the evaluator does, so that the difference left is that of the scores.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sklearn.metrics import ndcg_score

from reranker.common.artifacts import PATHS, Tables
from reranker.common.params import load_params
from reranker.evaluation import metrics
from reranker.inference.backends import use_backend
from reranker.inference.compute import Compute
from reranker.inference.excerpts import with_texts
from reranker.inference.scoring import score_pairs
from reranker.retrieval import bm25

PEER = "evaluator, called twice"
SIDES = {
    "torch float32": ("torch", "float32"),
    "torch bfloat16": ("torch", "bfloat16"),
    "openvino float32": ("openvino", "float32"),
    "openvino bfloat16": ("openvino", "bfloat16"),
    "openvino-int8": ("openvino-int8", "float32"),
    "openvino-int8, rest in bfloat16": ("openvino-int8", "bfloat16"),
    "onnx-int8": ("onnx-int8", "float32"),
}
"""Backend and precision by side."""
MODES = ("retrieved", "all_positives")


class Pairs(NamedTuple):
    """What is scored."""

    table: pd.DataFrame
    """Columns query_id, passage_id, retrieved, right, query, text (an excerpt); by query and rank."""
    judgments: pd.DataFrame
    """Of the same queries."""


class Found(NamedTuple):
    """What a side finds, by mode."""

    ndcg: Mapping[str, float]
    """As trec_eval counts; nothing of the evaluator."""
    evaluators: Mapping[str, float]
    """As the evaluator counts."""


def main() -> None:
    """Run all sides; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--queries", type=int, help="the first so many; all if none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    options = parser.parse_args()
    folder = options.project / PATHS.reranker
    counted = bm25.load(folder / "words.json")
    model = CrossEncoder(str(folder), device="cpu")
    tables = read_tables(options.project)
    pairs = read_pairs(options.project, tables, model, counted, options.split, options.queries)
    sides: dict[str, Callable[[], Found]] = {PEER: lambda: by_evaluator(model, samples(pairs))}
    for side in options.sides:
        backend, precision = SIDES[side]
        own = CrossEncoder(str(folder), device="cpu")
        use_backend(own, backend, precision)
        sides[side] = lambda own=own, precision=precision: by_us(own, pairs, precision)  # type: ignore[misc]
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; "
        f"{len(pairs.table):,} pairs of {pairs.table['query_id'].nunique():,} queries of {options.split}, "
        f"{model.max_seq_length} tokens at most; median of {options.repeats}"
    )
    show(*measured(sides, options.repeats), len(pairs.table))


def read_tables(project: Path) -> Tables:
    """The tables of a project."""
    return Tables(*(pd.read_parquet(project / path) for path in (PATHS.passages, PATHS.queries, PATHS.judgments)))


def read_pairs(
    project: Path, tables: Tables, model: CrossEncoder, counted: bm25.Statistics, split: str, queries: int | None
) -> Pairs:
    """The candidates of a split and the right passages that the retriever missed, as the score stage shows them."""
    table = pd.read_parquet(project / PATHS.candidates, columns=["query_id", "passage_id", "rank", "split"])
    table = table[table["split"] == split].sort_values(["query_id", "rank", "passage_id"], ignore_index=True)
    table = table[table["query_id"].isin(table["query_id"].drop_duplicates()[:queries])]
    table = with_texts(table, tables, model.tokenizer, model.max_seq_length, counted)
    judgments = tables.judgments[tables.judgments["query_id"].isin(table["query_id"])]
    right = pd.MultiIndex.from_frame(judgments.loc[judgments["relevance"] > 0, ["query_id", "passage_id"]])
    table = table.assign(
        retrieved=table["rank"] <= load_params(project / PATHS.params).top_k,
        right=pd.MultiIndex.from_frame(table[["query_id", "passage_id"]]).isin(right),
    )
    return Pairs(table, judgments)


def samples(pairs: Pairs) -> list[dict[str, str | list[str]]]:
    """The pairs as the evaluator wants them."""
    return [
        {
            "query": part["query"].iloc[0],
            "positive": part.loc[part["right"], "text"].tolist(),
            "documents": part.loc[part["retrieved"], "text"].tolist(),
        }
        for _, part in pairs.table.groupby("query_id")
    ]


def by_evaluator(model: CrossEncoder, given: list[dict[str, str | list[str]]]) -> Found:
    """Both modes by the evaluator of Sentence Transformers as it comes."""
    ndcg = {}
    for mode, added in zip(MODES, (False, True), strict=True):
        evaluator = CrossEncoderRerankingEvaluator(given, always_rerank_positives=added, write_csv=False)
        ndcg[mode] = float(evaluator(model)[evaluator.primary_metric])
    return Found({}, ndcg)


def by_us(model: CrossEncoder, pairs: Pairs, precision: str) -> Found:
    """Both modes of one pass."""
    table = pairs.table
    scores = score_pairs(
        model, table["query"].tolist(), table["text"].tolist(), label="scoring", compute=Compute(precision)
    )
    ndcg, counted = {}, {}
    for mode, used in zip(MODES, (table["retrieved"].to_numpy(), np.ones(len(table), bool)), strict=True):
        ndcg[mode] = metrics.mean_ndcg(pairs.judgments, table[used], scores[used])
        counted[mode] = as_evaluator_counts(table, scores, mode)
    return Found(ndcg, counted)


def as_evaluator_counts(table: pd.DataFrame, scores: NDArray[np.float64], mode: str) -> float:
    """Mean NDCG@10 as `CrossEncoderRerankingEvaluator` computes it, see above.

    Args:
        table: columns query_id, retrieved, right, text.
        scores: of its rows.
        mode: one of `MODES`.
    """
    values = []
    for _, part in table.assign(score=scores).groupby("query_id"):
        right = part["text"].isin(part.loc[part["right"], "text"])
        # where the right passages are added, other documents of their texts are left out
        used = part["retrieved"] if mode == "retrieved" else part["right"] | ~right
        values.append(ndcg_score([right[used]], [part["score"][used]], k=10) if right[used].any() else 0.0)
    return float(np.mean(values))


def measured(sides: Mapping[str, Callable[[], Found]], repeats: int) -> tuple[dict[str, Found], dict[str, list[float]]]:
    """What each side finds and its seconds: the first, cold run is not counted, then all in turn."""
    found = {side: run() for side, run in sides.items()}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            started = time.monotonic()
            run()
            seconds[side].append(time.monotonic() - started)
    return found, seconds


def show(found: Mapping[str, Found], seconds: Mapping[str, Sequence[float]], pairs: int) -> None:
    """A line for each side."""
    heads = [f"NDCG@10 {mode}" for mode in MODES] + [f"as evaluator: {mode}" for mode in MODES]
    print(f"{'':<32} {'seconds':>8} {'pairs/s':>8} {'times':>6} " + " ".join(f"{head:>28}" for head in heads))
    for side, own in found.items():
        times = statistics.median(peer / us for peer, us in zip(seconds[PEER], seconds[side], strict=True))
        taken = statistics.median(seconds[side])
        cells = [f"{own.ndcg[mode]:.4f}" if own.ndcg else "" for mode in MODES]
        cells += [
            f"{own.evaluators[mode]:.5f} ({own.evaluators[mode] - found[PEER].evaluators[mode]:+.5f})" for mode in MODES
        ]
        print(
            f"{side:<32} {taken:>8.2f} {pairs / taken:>8.1f} {times:>6.2f} "
            + " ".join(f"{cell:>28}" for cell in cells),
            flush=True,
        )


if __name__ == "__main__":
    main()
