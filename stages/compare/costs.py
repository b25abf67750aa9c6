"""costs: the size of each system and its time for one query at a time. Times vary, so `dvc metrics diff` omits them.

python -m stages.compare.costs
"""

import sys
import time
from collections.abc import Mapping, Sequence

from reranker.common.progress import quiet_libraries, run_stage

quiet_libraries()

import pandas as pd

from reranker.common.artifacts import PATHS, read_table, read_tables, record_time, require, write_csv
from reranker.common.errors import UserError, first_line, printable
from reranker.common.params import load_params
from reranker.evaluation import costs
from reranker.evaluation.compare_params import read_params
from reranker.evaluation.system_schema import (
    STANDARD_SYSTEMS,
    CrossEncoderSystem,
    FusedSystem,
    RetrieverSystem,
    RunSystem,
    System,
    in_order,
    repeats,
)
from reranker.evaluation.systems import BM25, Loaded, Settings, open_system, shipped
from reranker.inference.compute import choose_compute
from reranker.inference.excerpts import in_words
from reranker.inference.loading import untouched_reranker
from reranker.retrieval import bm25

Queries = Mapping[int, Sequence[pd.DataFrame]]
"""The sampled queries by the number of their passages."""


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    compare = read_params(PATHS.compare_params)
    tables = read_tables()
    candidates = read_table(PATHS.candidates, ["query_id", "passage_id", "rank", "split"])
    for path in (PATHS.static, PATHS.biencoder, PATHS.reranker):
        require(path)
    pairs = candidates[(candidates["split"] == "test") & (candidates["rank"] <= params.top_k)]
    if pairs.empty:
        raise UserError(f"{PATHS.candidates}: has no test query to time systems on; raise test_share in params.yaml")
    pairs = in_words(pairs, tables)
    queries = {
        width: costs.sample_queries(pairs, tables.passages, width, seed=params.evaluation.seed)
        for width in costs.WIDTHS
    }
    compute = choose_compute(**dict(params.compute))
    settings = Settings(
        words=bm25.statistics(tables.passages["text"]),
        max_length=params.biencoder.max_length,
        query_prompt=params.query_prompt,
        passage_prompt=params.passage_prompt,
        compute=compute,
    )
    static, biencoder = str(PATHS.static), str(PATHS.biencoder)
    parts = {
        name: _cost(RetrieverSystem(retriever=[name]), settings, queries, f"costs {name}")
        for name in dict.fromkeys([BM25, static, biencoder, *params.retriever])
    }
    system_costs = {
        BM25: parts[BM25],
        "tuned_biencoder": parts[biencoder],
        "retriever": costs.sum_costs([parts[name] for name in params.retriever]),
        "fusion_without_cross_encoder": costs.sum_costs([parts[BM25], parts[static], parts[biencoder]]),
        "reranker": _measure(shipped(PATHS.reranker, settings), queries),
    }
    untouched = CrossEncoderSystem(cross_encoder=untouched_reranker(params.base_model), max_length=params.max_length)
    tuned = CrossEncoderSystem(cross_encoder=str(PATHS.reranker))
    failures: dict[str, str] = {}
    for name, system in [("untouched_reranker", untouched), ("cross_encoder", tuned), *in_order(compare.systems)]:
        try:
            if isinstance(system, FusedSystem):
                if {*system.fused} <= {*system_costs}:  # a run has no cost, so a sum with a run has none
                    system_costs[name] = costs.sum_costs([system_costs[part] for part in system.fused])
            elif not isinstance(system, RunSystem):
                first, *_ = repeats(system)
                system_costs[name] = _cost(first, settings, queries, f"costs {name}")
        except Exception as error:  # libraries raise errors of any type for a model that they cannot load
            failures[name] = first_line(error)
            print(printable(f"error: systems.{name}: {failures[name]}"), file=sys.stderr, flush=True)

    order = [name for name in [*STANDARD_SYSTEMS, *compare.systems] if name in system_costs]
    sizes = {width: [len(table) for table in sample] for width, sample in queries.items()}
    table = costs.table({name: system_costs[name] for name in order}, sizes, usd_per_hour=compare.usd_per_hour)
    target = PATHS.metrics / "costs.csv"
    write_csv(table, target)
    record_time("compare_costs", time.monotonic() - started)
    if failures:
        raise UserError(
            f"costs: {len(failures)} systems failed ({', '.join(failures)}) and the others are in {target}; correct "
            f"`systems` in {PATHS.compare_params} and run `dvc repro compare/dvc.yaml:costs` again"
        )
    return f"costs: {len(order)} systems, at most {len(queries[costs.WIDTHS[0]])} queries each -> {target}"


def _cost(system: System, settings: Settings, queries: Queries, label: str) -> costs.Cost:
    with open_system(system, settings, label) as loaded:
        return _measure(loaded, queries)


def _measure(system: Loaded, queries: Queries) -> costs.Cost:
    return costs.Cost(system.parameters, system.megabytes, costs.measure(system.scores, queries))


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
