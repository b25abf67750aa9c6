"""The documentation's whole recipe for a reranker on a text that `prepare` made, for some minutes.

Negatives are mined by a static embedding, five for each right pair of the training queries; then a cross-encoder is
trained with binary cross-entropy on batches of 64. Both count as the minutes; a few steps before them, on a copy, say
how many will fit. The test candidates are scored afterwards. Pairs of 512 tokens with dropout take some 10 GiB.

python -m benchmarks.plain_recipe PROJECT OUT.parquet --minutes 10 [--max-length 72]
"""

import argparse
import copy
import json
import time
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.util import mine_hard_negatives

from benchmarks.plain_train import train
from reranker.common.artifacts import PATHS
from reranker.common.model_files import resolve
from reranker.common.params import load_params
from reranker.inference.compute import Compute, choose_precision
from reranker.inference.loading import load_retriever
from reranker.inference.scoring import score_pairs

NEGATIVES, BATCH, PROBE = 5, 64, 2


def main() -> None:
    """Read, mine, train, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--max-length", type=int, help="tokens of a pair; what the model can read where it is left out")
    parser.add_argument("--queries", type=int, help="of test that are scored; all where it is left out")
    parser.add_argument("--seed", type=int, default=12)
    options = parser.parse_args()
    params = load_params(options.project / PATHS.params)
    precision = choose_precision(params.compute.precision)
    torch.manual_seed(options.seed)
    model = CrossEncoder(resolve(params.base_model), num_labels=1, max_length=options.max_length)

    started = time.monotonic()
    data = mined(options.project, params.static.model)
    mining = time.monotonic() - started
    how = {"batch_size": BATCH, "precision": precision, "seed": options.seed}
    a_step = train(copy.deepcopy(model), data, steps=PROBE, **how).clock / PROBE
    steps = max(1, int((options.minutes * 60 - mining) / a_step))
    seconds = mining + train(model, data, steps=steps, **how).clock

    found = test_pairs(options.project, params.top_k, options.queries)
    found["score"] = score_pairs(
        model, found["query"].tolist(), found["text"].tolist(), label="test", compute=Compute(precision)
    )
    found.to_parquet(options.out, index=False)
    told = {"seconds": seconds, "mining": mining, "pairs": steps * BATCH, "of": len(data)}
    options.out.with_suffix(".json").write_text(json.dumps(told), encoding="utf-8")


def mined(project: Path, retriever: str) -> Dataset:
    """Columns query, passage, label: the right pairs of the training queries, each with its negatives."""
    passages, queries, judgments = (
        pd.read_parquet(project / path) for path in (PATHS.passages, PATHS.queries, PATHS.judgments)
    )
    right = judgments[judgments["relevance"] > 0].merge(queries[queries["split"] == "train"], on="query_id")
    right = right.merge(passages, on="passage_id", suffixes=("", "_passage"))
    return mine_hard_negatives(
        Dataset.from_dict({"query": right["text"].tolist(), "passage": right["text_passage"].tolist()}),
        load_retriever(retriever),
        corpus=passages["text"].tolist(),
        num_negatives=NEGATIVES,
        range_min=0,
        range_max=100,
        absolute_margin=0,
        sampling_strategy="top",
        batch_size=4096,
        output_format="labeled-pair",
        use_faiss=True,
        verbose=False,
    )


def test_pairs(project: Path, top_k: int, number: int | None) -> pd.DataFrame:
    """Columns query_id, passage_id, query, text: what the pipeline reranks for the test queries, whole passages."""
    candidates = pd.read_parquet(project / PATHS.candidates, columns=["query_id", "passage_id", "rank", "split"])
    candidates = candidates[(candidates["split"] == "test") & (candidates["rank"] <= top_k)]
    some = candidates["query_id"].drop_duplicates()[:number]
    return with_texts(project, candidates[candidates["query_id"].isin(some)][["query_id", "passage_id"]])


def with_texts(project: Path, pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs of ids with columns query and text."""
    queries = pd.read_parquet(project / PATHS.queries).set_index("query_id")["text"]
    passages = pd.read_parquet(project / PATHS.passages).set_index("passage_id")["text"]
    return pairs.assign(query=pairs["query_id"].map(queries), text=pairs["passage_id"].map(passages))


if __name__ == "__main__":
    main()
