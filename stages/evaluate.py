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
from reranker.inference.fusion import fuse
from reranker.report.tables import BASELINE, SHIPPED, SYSTEM_COLUMNS, p_relation

CANDIDATE_SCORES = {"retriever": "score", "bm25": "bm25", "tuned_static": "static_score"}
"""Systems whose scores the table of candidates has, and their columns in it."""
KEYS = ["query_id", "passage_id"]
BASELINES = ("retriever", *SCORE_STAGE_SYSTEMS, "fusion_without_cross_encoder")
"""The systems that the reranker is compared with."""


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    tables = read_tables()
    candidates = read_table(PATHS.candidates, [*KEYS, "rank", "split", *CANDIDATE_SCORES.values(), "teacher_score"])
    pairs = candidates[candidates["split"] == "test"].reset_index(drop=True)
    test = set(pairs["query_id"])
    judgments = tables.judgments[tables.judgments["query_id"].isin(test)]

    pairs["retrieved"] = pairs["rank"] <= params.top_k
    scores = {system: pairs[column] for system, column in CANDIDATE_SCORES.items()}
    for system in SCORE_STAGE_SYSTEMS:
        scored = read_table(scored_file(system), [*KEYS, "score"])
        scores[system] = comparison.align(pairs, scored, system)
    features = pairs.assign(cross_encoder=scores["cross_encoder"])
    fusions = read_weights(PATHS.reranker / "fusion.json", SHIPPED, "fusion_without_cross_encoder")
    for system, weights in fusions.items():
        scores[system] = pd.Series(fuse(features, weights))
    for system in (*CANDIDATE_SCORES, *fusions):
        write_scored(pairs[KEYS].assign(score=scores[system]), pairs["retrieved"], system, PATHS.evaluated)
    write_qrels(judgments, PATHS.qrels)

    single = {system: [column] for system, column in scores.items()}
    values, _ = comparison.measure(pairs, judgments, single, label="evaluate")
    means = comparison.summarise(values, seed=params.evaluation.seed)
    gains = {
        other: comparison.differences(values, [SHIPPED], other, seed=params.evaluation.seed)[SHIPPED]
        for other in BASELINES
    }
    figures = comparison.flatten(means[["queries", *SYSTEM_COLUMNS]], gains, SHIPPED)
    sources = tables.queries.set_index("query_id")["source"]
    figures |= comparison.by_source(values, sources, SHIPPED, (BASELINE, "zero_shot"))

    write_csv(means[list(SYSTEM_COLUMNS)], PATHS.metrics / "systems.csv")
    write_csv(comparison.by_query(values), PATHS.metrics / "per_query.csv")
    write_json(figures, PATHS.metrics / "evaluate.json")
    record_time("evaluate", time.monotonic() - started)
    return (
        f"evaluate: NDCG@10 {figures['ndcg@10']:.3f} on {figures['queries']:,} test queries, "
        f"{figures['gain_vs_tuned_biencoder']:+.3f} ({p_relation(figures['p_vs_tuned_biencoder'])}) "
        f"against the tuned bi-encoder -> {PATHS.metrics / 'evaluate.json'}"
    )


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
