"""evaluate: metrics of every system on the test queries, in both modes, with intervals and paired tests.

python -m stages.evaluate
"""

import sys
import time
from collections.abc import Sequence

import pandas as pd

from reranker.common.artifacts import (
    PATHS,
    SCORE_STAGE_SYSTEMS,
    SHIPPED,
    WITHOUT,
    read_table,
    read_tables,
    read_weights,
    record_time,
    scored_file,
    write_csv,
    write_json,
)
from reranker.common.params import load_params
from reranker.common.progress import run_stage
from reranker.evaluation import comparison
from reranker.evaluation.trec import write_qrels, write_scored
from reranker.inference.fusion import SIGNALS, fuse
from reranker.report.tables import BASELINE, SYSTEM_COLUMNS, verdict

KEYS = ["query_id", "passage_id"]
BASELINES = ("bm25", "retriever", "untouched_reranker", "tuned_biencoder", WITHOUT)
"""The systems that the shipped one is compared with."""


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    tables = read_tables()
    candidates = read_table(PATHS.candidates, [*KEYS, "rank", "split", "score", *SIGNALS])
    bm25 = read_table(PATHS.bm25, [*KEYS, "rank", "score"])
    run = bm25[bm25["rank"] <= params.top_k]  # as deep as the others, for the sake of MAP
    pairs = candidates[candidates["split"] == "test"].reset_index(drop=True)
    test = set(pairs["query_id"])
    judgments = tables.judgments[tables.judgments["query_id"].isin(test)]

    pairs["retrieved"] = pairs["rank"] <= params.top_k
    scores = {"retriever": pairs["score"], "tuned_biencoder": pairs["biencoder_score"]}
    for system in SCORE_STAGE_SYSTEMS:
        scores[system] = comparison.align(pairs, read_table(scored_file(system), [*KEYS, "score"]), system)
    features = pairs.assign(cross_encoder=scores["cross_encoder"])
    weights = read_weights(PATHS.reranker / "fusion.json", SHIPPED, WITHOUT)
    for system in (WITHOUT, SHIPPED):
        scores[system] = pd.Series(fuse(features, weights[system]))
    for system in ("retriever", "tuned_biencoder", WITHOUT, SHIPPED):
        write_scored(pairs[KEYS].assign(score=scores[system]), pairs["retrieved"], system, PATHS.evaluated)
    write_qrels(judgments, PATHS.qrels)

    single = {system: [column] for system, column in scores.items()}
    values, _ = comparison.measure(pairs, judgments, single, label="evaluate", runs={"bm25": run})
    means = comparison.summarise(values, seed=params.evaluation.seed)
    gains = {
        other: comparison.differences(values, [SHIPPED], other, seed=params.evaluation.seed)[SHIPPED]
        for other in BASELINES
    }
    tuned = comparison.differences(values, ["cross_encoder"], "untouched_reranker", seed=params.evaluation.seed)
    figures = comparison.flatten(means[["queries", *SYSTEM_COLUMNS]], gains, SHIPPED)
    figures |= comparison.tuning_figures(tuned["cross_encoder"])
    figures["ndcg@10_perfect"] = comparison.perfect_ndcg(pairs, judgments)
    sources = tables.queries.set_index("query_id")["source"]
    figures |= comparison.by_source(values, sources, SHIPPED, (BASELINE, "untouched_reranker"))

    write_csv(means[list(SYSTEM_COLUMNS)], PATHS.metrics / "systems.csv")
    write_csv(comparison.by_query(values), PATHS.metrics / "per_query.csv")
    write_json(figures, PATHS.metrics / "evaluate.json")
    record_time("evaluate", time.monotonic() - started)
    return f"evaluate: {verdict(figures)} -> {PATHS.metrics / 'evaluate.json'}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
