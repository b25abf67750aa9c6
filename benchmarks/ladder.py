"""What each part of the search is worth: a step at a time, from BM25 to the shipped sum, end to end on test queries.

The steps up to the first stage rank the whole corpus; sums have weights that are fitted on dev. The later steps order
the first stage's candidates, and their NDCG@10 is that of the project's own run. `ms` is the median time of one query:
its vectors, the search and the scores, with the passages' vectors ready. `train s` is the time of the training steps.

    python -m benchmarks.ladder PROJECT [--queries 40]

A PROJECT is a copy of this repository after `dvc repro`, in whose folder the vectors are cached.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from reranker.common.artifacts import PATHS, Tables, read_tables
from reranker.common.model_files import resolve
from reranker.common.params import load_params
from reranker.evaluation import metrics
from reranker.inference.compute import Compute, choose_compute
from reranker.inference.excerpts import excerpts
from reranker.inference.loading import load_cross_encoder, load_retriever, untouched_reranker
from reranker.inference.reranker import Reranker
from reranker.inference.scoring import embed, score_pairs
from reranker.mining import pipeline
from reranker.mining.embedding_cache import Cache
from reranker.retrieval import bm25, ranking

BM25, UNTUNED = "bm25", "bundled/static-256"
STATIC, BIENCODER = str(PATHS.static), str(PATHS.biencoder)
FIRST_STAGES = {
    "BM25": [BM25],
    "hybrid: BM25 + untuned static": [BM25, UNTUNED],
    "tuned static alone": [STATIC],
    "tuned bi-encoder alone": [BIENCODER],
    "BM25 + tuned static": [BM25, STATIC],
    "BM25 + tuned static + bi-encoder": [BM25, STATIC, BIENCODER],
}
TRAINED = {STATIC: "static_training_seconds", BIENCODER: "biencoder_training_seconds"}
MEASURES = ("nDCG@10", "R@30", "R@100")


def main() -> None:
    """Print a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--queries", type=int, default=40, help="that are timed, one at a time")
    options = parser.parse_args()
    os.chdir(options.project)
    params, tables, compute = load_params(PATHS.params), read_tables(), choose_compute()
    seconds = json.loads(PATHS.timing.read_text(encoding="utf-8"))
    evaluation = json.loads((PATHS.metrics / "evaluate.json").read_text(encoding="utf-8"))
    test = np.flatnonzero(tables.queries["split"] == "test")
    timed = test[: options.queries]
    print(f"{len(test)} test queries, {len(tables.passages):,} passages")
    print(f"{'':<44} {'train s':>8} {'ms':>7} {'NDCG@10':>8} {'R@30':>7} {'R@100':>7}")
    milliseconds = 0.0
    for label, names in FIRST_STAGES.items():
        found, milliseconds = _first_stage(names, tables, compute, test, timed)
        _line(label, sum(seconds[TRAINED[name]] for name in names if name in TRAINED), milliseconds, *found)
    tuned = sum(seconds[key] for key in TRAINED.values())
    for label, key, took, rank in _rerankers(params.base_model, params.max_length, tables, compute):
        extra = _median(rank, tables.queries["text"].iloc[timed].tolist(), _some_candidates(tables, timed))
        trained = tuned + took * seconds["train_training_seconds"]
        _line(label, trained, milliseconds + extra, evaluation[key], evaluation["recall@30"])
    _line("perfect order of the candidates", 0, 0, evaluation["ndcg@10_perfect"], evaluation["recall@30"])


def _first_stage(
    names: Sequence[str], tables: Tables, compute: Compute, test: np.ndarray, timed: np.ndarray
) -> tuple[list[float], float]:
    """The measures of a first stage over the test queries, and the median milliseconds of a query."""
    stage = pipeline.retriever(
        names,
        tables,
        Cache(PATHS.vectors),
        asked=np.flatnonzero(tables.queries["split"] != "train"),
        query_prompt=None,
        passage_prompt=None,
        index_name="auto",
        compute=compute,
    ).stage
    ids = tables.queries["query_id"].iloc[test]
    run = ranking.candidates(stage.search(test, 100, label="search"), ids, tables.passages["passage_id"])
    judgments = tables.judgments[tables.judgments["query_id"].isin(ids)]
    found = metrics.per_query(judgments, run, list(MEASURES)).mean()
    models = [load_retriever(name, compute) for name in names if name != BM25]
    taken = []
    for place in timed:
        started = time.monotonic()
        for model in models:
            embed(model, [tables.queries["text"].iloc[place]], label="query", compute=compute)
        stage.search(np.array([place]), 30, label="search")
        taken.append(1000 * (time.monotonic() - started))
    return found.tolist(), statistics.median(taken)


Rank = Callable[[str, Sequence[str]], object]


def _rerankers(base: str, max_length: int, tables: Tables, compute: Compute) -> list[tuple[str, str, int, Rank]]:
    """Label, key of evaluate.json, whether the cross-encoder is trained, and a function that ranks."""
    statistics_ = bm25.statistics(tables.passages["text"])

    def alone(name: str) -> Rank:
        model = load_cross_encoder(name, compute=compute)
        model.max_seq_length = max_length

        def rank(query: str, passages: Sequence[str]) -> object:
            queries = [query] * len(passages)
            texts = excerpts(model.tokenizer, max_length, statistics_, queries, passages)
            return score_pairs(model, queries, texts, label="rerank", compute=compute)

        return rank

    shipped = Reranker(PATHS.reranker, compute)
    return [
        ("+ published reranker, untouched, alone", "ndcg@10_untouched_reranker", 0, alone(untouched_reranker(base))),
        ("+ fine-tuned, alone", "ndcg@10_cross_encoder", 1, alone(resolve(str(PATHS.reranker)))),
        ("+ fused with the first stage (shipped)", "ndcg@10", 1, shipped.rank),
    ]


def _some_candidates(tables: Tables, timed: np.ndarray) -> list[list[str]]:
    """The first 30 candidates of some queries."""
    candidates = pd.read_parquet(PATHS.candidates, columns=["query_id", "passage_id", "rank"])
    texts = tables.passages.set_index("passage_id")["text"]
    first = candidates[candidates["rank"] <= 30].sort_values("rank").groupby("query_id")["passage_id"]
    passages = {query: texts.loc[ids].tolist() for query, ids in first}
    return [passages[query] for query in tables.queries["query_id"].iloc[timed]]


def _median(rank: Rank, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> float:
    taken = []
    for query, some in zip(queries, passages, strict=True):
        started = time.monotonic()
        rank(query, some)
        taken.append(1000 * (time.monotonic() - started))
    return statistics.median(taken)


def _line(label: str, seconds: float, milliseconds: float, *figures: float) -> None:
    shown = " ".join(f"{figure:>7.3f}" for figure in figures[1:])
    print(f"{label:<44} {seconds:>8.0f} {milliseconds:>7.1f} {figures[0]:>8.3f} {shown}", flush=True)


if __name__ == "__main__":
    main()
