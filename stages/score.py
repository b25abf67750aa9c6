"""score: score the candidates of the test queries with one system, both the retrieved and the added candidates.

python -m stages.score SYSTEM
"""

import sys
import time
from collections.abc import Sequence

from reranker.common.progress import first_process, quiet_libraries, run_stage

quiet_libraries()

from torch.nn import Identity

from reranker.common import engine
from reranker.common.artifacts import PATHS, SCORE_STAGE_SYSTEMS, read_table, read_tables, record_time, require
from reranker.common.errors import UserError
from reranker.common.params import load_params
from reranker.common.processes import OnProcesses, processes
from reranker.evaluation.trec import write_scored
from reranker.inference.compute import choose_compute
from reranker.inference.excerpts import excerpts, in_words
from reranker.inference.loading import load_cross_encoder, untouched_reranker
from reranker.inference.scoring import score_pairs
from reranker.retrieval import bm25


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    if len(arguments) != 1 or arguments[0] not in SCORE_STAGE_SYSTEMS:
        raise UserError(f"python -m stages.score: name one of the systems {', '.join(SCORE_STAGE_SYSTEMS)}")
    (system,) = arguments
    params = load_params(PATHS.params)
    on_cluster = params.execution.engine == "ray"
    if on_cluster and not first_process():
        return "score: the first process hands the work to the cluster"
    tables = read_tables()
    candidates = read_table(PATHS.candidates, ["query_id", "passage_id", "rank", "split"])
    test = in_words(candidates[candidates["split"] == "test"], tables)
    queries, passages = test["query"].tolist(), test["passage"].tolist()

    runner = engine.start(params.execution.engine) if on_cluster or processes() == 1 else OnProcesses()
    compute = choose_compute(**dict(params.compute), engine=runner)
    if system == "cross_encoder":
        require(PATHS.reranker)
        name = str(PATHS.reranker)
    else:
        name = untouched_reranker(params.base_model)
        if name != params.base_model and first_process():
            print(f"score: '{params.base_model}' has no trained ranking head: {name} is the untouched reranker")
    model = load_cross_encoder(name, "params.yaml: base_model:", compute)
    model.activation_fn = Identity()  # logits, also of a model that comes with a sigmoid, which saturates
    model.max_seq_length = params.max_length
    statistics = bm25.statistics(tables.passages["text"])
    texts = excerpts(model.tokenizer, params.max_length, statistics, queries, passages)
    scores = score_pairs(model, queries, texts, label=f"score {system}", compute=compute)
    if not first_process():
        return "score: the first process writes the result"

    scored = test[["query_id", "passage_id"]].assign(score=scores)
    path = write_scored(scored, test["rank"] <= params.top_k, system)
    record_time(f"score_{system}", time.monotonic() - started)
    return f"score: {system} scored {len(test):,} pairs in {time.monotonic() - started:,.0f} s -> {path}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
