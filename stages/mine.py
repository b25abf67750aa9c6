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
    Tables,
    read_csv,
    read_tables,
    record_time,
    require,
    write_csv,
    write_json,
    write_table,
)
from reranker.common.errors import UserError
from reranker.common.params import Params, load_params
from reranker.data.sampling import set_aside, training_order
from reranker.inference.compute import Compute, choose_compute
from reranker.inference.loading import load_biencoder, load_static
from reranker.mining import audit, negatives, pipeline
from reranker.mining.embedding_cache import Cache
from reranker.mining.judgments import Places, judgment_matrices
from reranker.retrieval.ranking import FirstStage

DEPTH = 100
"""The lowest rank that the recall figures need."""


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    tables, num_marks = _read()
    compute = choose_compute(**dict(params.compute), engine=engine.start(params.execution.engine))
    cache = Cache(PATHS.vectors)
    # a retriever ranks the right passages of queries that it was tuned on too well, so the reranker gets the others
    _, unseen = set_aside(training_order(tables.queries, params.sources), params.retriever_share)
    order = pd.Index(tables.queries["query_id"]).get_indexer(unseen)
    first_stage, indexes, weights = pipeline.retriever(
        params.retriever,
        tables,
        cache,
        asked=np.concatenate([np.flatnonzero(tables.queries["split"] != "train"), order]),
        query_prompt=params.query_prompt,
        passage_prompt=params.passage_prompt,
        index_name=params.index.kind,
        compute=compute,
    )
    held_out = pipeline.rank_held_out(first_stage, tables, depth=max(DEPTH, params.top_k), top_k=params.top_k)
    result = _mine(params, tables, order, first_stage, compute, cache)

    rows = result.rows.assign(
        query_id=tables.queries["query_id"].to_numpy()[result.rows["query"]],
        passage_id=tables.passages["passage_id"].to_numpy()[result.rows["passage"]],
    )
    number = len(held_out.candidates)
    both = pd.concat([held_out.candidates, rows])
    static = pipeline.cosines(load_static(str(PATHS.static)), tables, compute.static(), cache)
    biencoder = load_biencoder(str(PATHS.biencoder), params.biencoder.max_length, compute)
    cosines = pipeline.cosines(biencoder, tables, compute, cache)
    both = pipeline.with_signals(both, tables, static, cosines)
    suspicious = audit.table(result, tables, cosines)
    dev = tables.queries.loc[tables.queries["split"] == "dev", "query_id"]
    judgments, rankings = (table[table["query_id"].isin(dev)] for table in (tables.judgments, held_out.rankings))
    retriever_figures = pipeline.retriever_figures(judgments, rankings)
    figures = {
        **retriever_figures,
        **pipeline.weight_figures(weights),
        **pipeline.figures(result),
        **pipeline.index_figures(indexes, held_out.queries, depth=params.top_k, min_recall=params.index.min_recall),
        "marked": num_marks,
    }
    write_table(both[:number].drop(columns=["kind", "query", "passage"]), PATHS.candidates)
    write_table(both[number:].drop(columns=["rank", "split", "query", "passage"]), PATHS.negatives)
    write_table(pipeline.bm25_run(tables, DEPTH), PATHS.bm25)
    write_json(weights, PATHS.retriever)
    write_csv(suspicious, PATHS.audit)
    write_json(figures, PATHS.metrics / "mine.json")
    record_time("mine", time.monotonic() - started)
    return (
        f"mine: {figures['negatives']:,} negatives for {figures['mined_queries']:,} queries, {number:,} candidates; "
        f"retriever on dev: NDCG@10 {retriever_figures['retriever_dev_ndcg@10']:.3f}, "
        f"recall@30 {retriever_figures['retriever_dev_recall@30']:.3f} -> {PATHS.candidates.parent}"
    )


def _read() -> tuple[Tables, int]:
    """The tables, with the marks of a person as judgments, and the number of these marks."""
    tables = read_tables()
    require(PATHS.static)
    require(PATHS.biencoder)
    marks = read_csv(PATHS.marked, ["query_id", "passage_id", "mark"], as_text=True)
    applied = audit.apply_marks(marks, tables, str(PATHS.marked))
    if applied.ignored_marks:
        print(
            f"mine: {PATHS.marked}: {applied.ignored_marks:,} marks are ignored: their query is not in train or their "
            "passage is not in the corpus"
        )
    return tables._replace(judgments=applied.judgments), applied.marks


def _mine(
    params: Params, tables: Tables, order: Places, first_stage: FirstStage, compute: Compute, cache: Cache
) -> negatives.MiningResult:
    """Hard negatives of training queries, which are taken in this order until there are enough."""
    judgments = judgment_matrices(tables)
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
    pool = negatives.retrieve(first_stage, order, judgments, filters, params.train_queries)
    score: negatives.ScorePairs = first_stage.scores
    if params.negatives.rescorer:
        score = pipeline.cross_encoder(params.negatives.rescorer, tables, compute)
        pool = negatives.rescore(pool, score)
    guards = pipeline.guards(
        tables.passages,
        cache,
        by_group=params.negatives.group_guard,
        similarity=params.negatives.duplicate_similarity,
        model_name=params.static.model,
        containment=params.negatives.containment,
        compute=compute,
    )
    result = negatives.mine(
        pool,
        score,
        judgments,
        filters,
        guards,
        random_share=params.negatives.random_share,
        id_hashes=(negatives.id_hashes(tables.queries["query_id"]), negatives.id_hashes(tables.passages["passage_id"])),
        seed=params.negatives.seed,
    )
    if result.rows.empty:
        raise UserError(
            "params.yaml: negatives: every candidate is refused; widen the range from range_min to range_max, or "
            "loosen the margins and scores"
        )
    if (found := result.rows["query"].nunique()) < params.train_queries:
        print(
            f"mine: {found:,} queries in place of train_queries {params.train_queries:,}: of the {len(order):,} that "
            "the first stage has not learned, the others have no right passage in the range; lower retriever_share"
        )
    return result


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
