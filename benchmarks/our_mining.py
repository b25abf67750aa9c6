"""Hard negatives of a folder of tables and vectors as the mine stage chooses them, without guards.

With a cross-encoder, all candidates and right passages are scored and written, so that the scores can be compared.

    python -m benchmarks.our_mining FOLDER OUT.parquet [--index auto] [--rescorer CROSS_ENCODER]
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sentence_transformers import CrossEncoder

from benchmarks.measured import DEPTH, NEGATIVES, TABLES, note, now, sample
from reranker.common.artifacts import Tables, write_table
from reranker.inference.backends import use_backend
from reranker.inference.scoring import score_pairs
from reranker.mining import negatives
from reranker.mining.false_negatives import Guards
from reranker.mining.judgments import JudgmentMatrices, judgment_matrices
from reranker.retrieval import index
from reranker.retrieval.retrievers import Dense

LOADED = now()


def main() -> None:
    """Read, mine, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--index", default="auto")
    parser.add_argument("--rescorer", type=Path)
    options = parser.parse_args()
    tables = Tables(*(pd.read_parquet(options.folder / f"{name}.parquet") for name in TABLES))
    passages, queries = (np.load(options.folder / f"{name}.npy", mmap_mode="r") for name in ("passages", "queries"))
    first_stage = Dense(passages, queries, index.build(options.index, passages, queries=len(queries)))
    matrices = judgment_matrices(tables)
    places = np.arange(len(queries))
    # as many candidates as the range has, and room for the right passages among them
    found = first_stage.search(places, DEPTH + int(np.diff(matrices.relevant.indptr).max()), label="search")
    pool = negatives.Pool(places, found.positions, found.scores)
    mined = (
        rescored(pool, matrices, tables, options.rescorer)
        if options.rescorer
        else mine(pool, first_stage, matrices, tables)
    )
    write_table(
        pd.DataFrame(
            {
                "query_id": tables.queries["query_id"].to_numpy()[mined["query"]],
                "passage_id": tables.passages["passage_id"].to_numpy()[mined["passage"]],
                "score": mined["score"],
                "kind": mined["kind"],
            }
        ),
        options.out,
    )
    note(options.out, LOADED)
    np.save(options.out.with_suffix(".npy"), found.positions[sample(len(places)), :DEPTH])


def mine(pool: negatives.Pool, first_stage: Dense, matrices: JudgmentMatrices, tables: Tables) -> pd.DataFrame:
    """Columns query, passage (places), score, kind."""
    number = len(tables.passages)
    return negatives.mine(
        pool,
        first_stage.scores,
        matrices,
        negatives.Filters(num_negatives=NEGATIVES, range_min=0, range_max=DEPTH, sampling="top"),
        Guards(np.arange(number), np.empty((number, 0), np.float32), [], by_group=False),
        random_share=0.0,
        id_hashes=(negatives.id_hashes(tables.queries["query_id"]), negatives.id_hashes(tables.passages["passage_id"])),
        seed=1,
    ).rows


def rescored(pool: negatives.Pool, matrices: JudgmentMatrices, tables: Tables, path: Path) -> pd.DataFrame:
    """Columns query, passage (places), score, kind: every candidate and every right passage."""
    right = matrices.relevant.tocoo()
    of = np.concatenate([np.repeat(pool.queries, pool.positions.shape[1]), right.row])
    at = np.concatenate([pool.positions.ravel(), right.col])
    texts = tables.queries["text"].iloc[of].tolist(), tables.passages["text"].iloc[at].tolist()
    model = CrossEncoder(str(path))
    use_backend(model, "auto", "float32")
    scores = score_pairs(model, *texts, label="rescoring")
    return pd.DataFrame({"query": of, "passage": at, "score": scores, "kind": "scored"})


if __name__ == "__main__":
    main()
