"""mine: rank the corpus for all queries to get the candidates of dev and test and the hard negatives of train.

python -m stages.mine
"""

import sys
import time
from collections.abc import Sequence

from reranker.common.progress import quiet_libraries, run_stage

quiet_libraries()

import numpy as np
import pandas as pd

from reranker.common import engine
from reranker.common.artifacts import (
    PATHS,
    read_csv,
    read_tables,
    record_time,
    require,
    write_csv,
    write_json,
    write_table,
)
from reranker.common.errors import UserError
from reranker.common.params import load_params
from reranker.data.sampling import training_order
from reranker.inference.compute import choose_compute
from reranker.inference.loading import load_biencoder, load_static
from reranker.inference.scoring import pair_cosines
from reranker.mining import audit, negatives, pipeline
from reranker.mining.embedding_cache import Cache
from reranker.mining.judgments import Places, judgment_matrices
from reranker.retrieval import ranking

DEPTH = 100
"""The lowest rank that the recall figures need."""


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    tables = read_tables()
    require(PATHS.biencoder)
    require(PATHS.static)
    marks = read_csv(PATHS.marked, ["query_id", "passage_id", "mark"], as_text=True)
    applied = audit.apply_marks(marks, tables, str(PATHS.marked))
    if applied.ignored_marks:
        print(
            f"mine: {PATHS.marked}: {applied.ignored_marks:,} marks are ignored: their query is not in train or their "
            "passage is not in the corpus"
        )
    judgments = applied.judgments
    query_text, passage_text = tables.queries["text"], tables.passages["text"]
    split = tables.queries.set_index("query_id")["split"]
    compute = choose_compute(
        params.compute.precision,
        params.compute.attention,
        params.compute.backend,
        engine.start(params.execution.engine),
    )
    cache = Cache(PATHS.vectors)

    first_stage, indexes = pipeline.retriever(
        params.retriever,
        tables,
        cache,
        query_prompt=params.query_prompt,
        passage_prompt=params.passage_prompt,
        index_name=params.index.kind,
        compute=compute,
    )
    held_out = np.flatnonzero(tables.queries["split"] != "train")
    rankings = ranking.candidates(
        first_stage.search(held_out, max(DEPTH, params.top_k), label="mine: dev and test"),
        tables.queries["query_id"].iloc[held_out],
        tables.passages["passage_id"],
    )
    split_of_judgment = judgments["query_id"].map(split)
    top = rankings[rankings["rank"] <= params.top_k]
    missed = ranking.missed_positives(
        top,
        judgments[split_of_judgment != "train"],
        first_stage,
        tables.queries["query_id"],
        tables.passages["passage_id"],
    )
    candidates = pd.concat([top, missed]).sort_values(["query_id", "rank", "passage_id"], ignore_index=True)
    candidates["split"] = candidates["query_id"].map(split)

    # the teachers have memorised the queries that they were trained on, so queries that are new to them come first
    train = training_order(tables.queries, params.sources, salt=params.biencoder.seed)
    memorised = max(params.biencoder.queries, params.static.queries)
    order = pd.Index(tables.queries["query_id"]).get_indexer(pd.concat([train[memorised:], train[:memorised]]))
    matrices = judgment_matrices(tables._replace(judgments=judgments))
    filters = negatives.Filters(
        num_negatives=params.num_negatives,
        range_min=params.negatives.range_min,
        range_max=params.negatives.range_max,
        sampling=params.negatives.sampling,
        absolute_margin=params.negatives.absolute_margin,
        relative_margin=params.negatives.relative_margin,
        max_score=params.negatives.max_score,
        min_score=params.negatives.min_score,
    )
    pool = negatives.retrieve(first_stage, order, matrices, filters, params.train_queries)
    biencoder = load_biencoder(str(PATHS.biencoder), params.biencoder.max_length, compute)

    def teacher(of: Places, at: Places) -> pipeline.Scores:
        texts = query_text.iloc[of].tolist(), passage_text.iloc[at].tolist()
        return pair_cosines(biencoder, *texts, label="mine: teacher", compute=compute, cache=cache)

    score: negatives.ScorePairs = first_stage.scores
    if params.negatives.rescorer:
        score = teacher
        if params.negatives.rescorer != "biencoder":
            score = pipeline.cross_encoder(params.negatives.rescorer, tables, compute)
        pool = negatives.rescore(pool, score)
    result = negatives.mine(
        pool,
        score,
        matrices,
        filters,
        pipeline.guards(
            tables.passages,
            cache,
            by_group=params.negatives.group_guard,
            similarity=params.negatives.duplicate_similarity,
            model_name=params.static.model,
            containment=params.negatives.containment,
            compute=compute,
        ),
        random_share=params.negatives.random_share,
        id_hashes=(negatives.id_hashes(tables.queries["query_id"]), negatives.id_hashes(tables.passages["passage_id"])),
        seed=params.negatives.seed,
    )
    number = result.rows["query"].nunique()
    if not number:
        raise UserError(
            "params.yaml: negatives: every candidate is refused; widen the range from range_min to range_max, or "
            "loosen the margins and scores"
        )

    rows = result.rows.assign(
        query_id=tables.queries["query_id"].to_numpy()[result.rows["query"]],
        passage_id=tables.passages["passage_id"].to_numpy()[result.rows["passage"]],
    )
    both = pipeline.with_signals(pd.concat([candidates, rows]), tables, load_static(str(PATHS.static)), teacher)
    suspicious = audit.table(result, tables, teacher)
    retriever_figures = pipeline.retriever_figures(
        judgments[split_of_judgment == "dev"], rankings[rankings["query_id"].map(split) == "dev"]
    )
    figures = {
        **retriever_figures,
        **pipeline.figures(result),
        **pipeline.index_figures(indexes, held_out, depth=params.top_k, min_recall=params.index.min_recall),
        "marked": applied.marks,
    }
    write_table(both[: len(candidates)].drop(columns=["kind", "query", "passage"]), PATHS.candidates)
    write_table(both[len(candidates) :].drop(columns=["rank", "split", "query", "passage"]), PATHS.negatives)
    write_csv(suspicious, PATHS.audit)
    write_json(figures, PATHS.metrics / "mine.json")
    record_time("mine", time.monotonic() - started)
    negative = int((result.rows["relevance"] == 0).sum())
    return (
        f"mine: {negative:,} negatives for {number:,} queries, {len(candidates):,} candidates; "
        f"retriever on dev: NDCG@10 {retriever_figures['retriever_dev_ndcg@10']:.3f}, "
        f"recall@30 {retriever_figures['retriever_dev_recall@30']:.3f} -> {PATHS.candidates.parent}"
    )


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
