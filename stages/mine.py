"""mine: rank the corpus for the queries; candidates for dev and test, hard negatives for train.

python -m stages.mine
"""

import sys
import time
from collections.abc import Sequence

from reranker.progress import quiet_libraries, run_stage

quiet_libraries()

import pandas as pd

from reranker import lexical, metrics, negatives, retrieval
from reranker.errors import UserError
from reranker.params import load_params
from reranker.records import PATHS, read_tables, record_time, require, write_json, write_table
from reranker.rows import training_order
from reranker.scoring import choose_precision, embed, load_biencoder, load_retriever, load_static, pair_cosines

DEPTH = 100
"""Ranks kept for the recall figures."""


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    tables = read_tables()
    require(PATHS.biencoder)
    require(PATHS.static)
    split = tables.queries.set_index("query_id")["split"]
    query_text = tables.queries.set_index("query_id")["text"]
    passage_text = tables.passages.set_index("passage_id")["text"]

    retriever = load_retriever(params.retriever_model)
    passages = embed(retriever, tables.passages["text"].tolist(), label="mine: passages")
    queries = embed(retriever, tables.queries["text"].tolist(), label="mine: queries")

    def ranking(wanted: pd.Series, depth: int) -> pd.DataFrame:
        found = retrieval.search(passages, queries[wanted.to_numpy()], depth)
        return retrieval.candidates(found, tables.queries.loc[wanted, "query_id"], tables.passages["passage_id"])

    in_train = tables.queries["split"] == "train"
    held_out = ranking(~in_train, max(DEPTH, params.top_k))
    judged = tables.judgments.assign(split=tables.judgments["query_id"].map(split))
    top = held_out[held_out["rank"] <= params.top_k]
    missed = retrieval.missed_positives(
        top,
        judged[judged["split"] != "train"],
        passages,
        queries,
        tables.queries["query_id"],
        tables.passages["passage_id"],
    )
    candidates = pd.concat([top, missed]).sort_values(["query_id", "rank", "passage_id"], ignore_index=True)
    candidates["split"] = candidates["query_id"].map(split)

    # the teachers have learned their own queries by heart: their scores of others teach more, so those come first
    train = training_order(tables.queries, params.sources, salt=params.warm_seed)
    seen = max(params.warm_queries, params.static_queries)
    train = pd.concat([train[seen:], train[:seen]])
    filters = negatives.Filters(
        num_negatives=params.num_negatives,
        range_min=params.range_min,
        range_max=params.range_max,
        sampling=params.sampling,
        absolute_margin=params.absolute_margin,
        relative_margin=params.relative_margin,
        max_score=params.max_score,
        min_score=params.min_score,
    )
    mined = negatives.mine(
        # the range counts passages that are not judged, so as many more are needed
        ranking(in_train, params.range_max + int(judged.groupby("query_id").size().max())),
        train,
        tables,
        passages,
        queries,
        filters,
        number=params.train_queries,
        random_negatives=params.random_negatives,
        duplicate_similarity=params.duplicate_similarity,
        seed=params.mining_seed,
    )

    found = int((mined.rows["kind"] != "positive").sum())
    if not found:
        raise UserError(
            "params.yaml: no hard negative is left; widen range_min to range_max or loosen the margins and scores"
        )

    counted = lexical.statistics(tables.passages["text"])
    both = pd.concat([candidates, mined.rows])
    texts = both["query_id"].map(query_text).tolist(), both["passage_id"].map(passage_text).tolist()
    both["bm25"] = lexical.bm25(counted, *texts)
    both["static_score"] = pair_cosines(load_static(str(PATHS.static)), *texts, label="mine: static")
    both["teacher_score"] = pair_cosines(
        load_biencoder(str(PATHS.biencoder), params.biencoder_max_length),
        *texts,
        label="mine: teacher",
        precision=choose_precision(params.precision),
    )
    write_table(both[: len(candidates)].drop(columns="kind"), PATHS.candidates)
    write_table(both[len(candidates) :].drop(columns=["rank", "split"]), PATHS.negatives)

    dev = metrics.per_query(
        judged.loc[judged["split"] == "dev", ["query_id", "passage_id", "relevance"]],
        held_out[held_out["query_id"].map(split) == "dev"],
        ["nDCG@10", "R@10", "R@30", "R@100"],
    ).mean()
    number = mined.rows["query_id"].nunique()
    write_json(
        {
            "retriever_dev_ndcg@10": dev["nDCG@10"],
            **{f"retriever_dev_recall@{k}": dev[f"R@{k}"] for k in (10, 30, 100)},
            "mined_queries": number,
            "negatives": found,
            "judged_negatives": int((mined.rows["kind"] == "judged").sum()),
            "negatives_per_query": found / max(number, 1),
            **{f"refused_{guard}": count for guard, count in mined.refused.items()},
        },
        PATHS.metrics / "mine.json",
    )
    record_time("mine", time.monotonic() - started)
    return (
        f"mine: {found:,} negatives for {number:,} queries, {len(candidates):,} candidates; "
        f"retriever on dev: NDCG@10 {dev['nDCG@10']:.3f}, recall@30 {dev['R@30']:.3f} -> {PATHS.candidates.parent}"
    )


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
