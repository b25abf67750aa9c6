"""costs: the size of each system and its time for one query at a time. Times vary, so `dvc metrics diff` omits them.

python -m stages.costs
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
from reranker.common.system_schema import (
    STANDARD_SYSTEMS,
    BiencoderSystem,
    CrossEncoderSystem,
    FusedSystem,
    RetrieverSystem,
    RunSystem,
    StaticSystem,
    System,
    in_order,
    repeats,
)
from reranker.evaluation import costs
from reranker.evaluation.systems import Loaded, Settings, open_system, shipped
from reranker.inference.compute import choose_compute
from reranker.inference.excerpts import in_words
from reranker.retrieval import bm25


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    tables = read_tables()
    candidates = read_table(PATHS.candidates, ["query_id", "passage_id", "rank", "split"])
    for path in (PATHS.static, PATHS.control, PATHS.reranker):
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
    evaluated: dict[str, System] = {
        "retriever": RetrieverSystem(retriever=params.retriever),
        "bm25": RetrieverSystem(retriever=["bm25"]),
        "tuned_static": StaticSystem(static=str(PATHS.static)),
        "zero_shot": BiencoderSystem(biencoder=params.base_model, query_prompt="", passage_prompt=""),
        "tuned_biencoder": BiencoderSystem(biencoder=str(PATHS.control), query_prompt="", passage_prompt=""),
        "cross_encoder": CrossEncoderSystem(cross_encoder=str(PATHS.reranker)),
        # it uses the bi-encoder models/biencoder, which has the same size and speed as tuned_biencoder
        "fusion_without_cross_encoder": FusedSystem(fused={"bm25": 1, "tuned_static": 1, "tuned_biencoder": 1}),
    }
    system_costs = {"reranker": _cost(shipped(PATHS.reranker, settings), queries)}
    failures: dict[str, str] = {}
    for name, system in [*evaluated.items(), *in_order(params.systems)]:
        try:
            if isinstance(system, FusedSystem):
                if {*system.fused} <= {*system_costs}:  # a run has no cost, so a sum with a run has none
                    system_costs[name] = costs.sum_costs([system_costs[part] for part in system.fused])
            elif not isinstance(system, RunSystem):
                first, *_ = repeats(system)
                with open_system(first, settings, f"costs {name}") as loaded:
                    system_costs[name] = _cost(loaded, queries)
        except Exception as error:  # libraries raise errors of any type for a model that they cannot load
            failures[name] = first_line(error)
            print(printable(f"error: systems.{name}: {failures[name]}"), file=sys.stderr, flush=True)

    order = [name for name in [*STANDARD_SYSTEMS, *params.systems] if name in system_costs]
    sizes = {width: [len(table) for table in sample] for width, sample in queries.items()}
    table = costs.table(
        {name: system_costs[name] for name in order}, sizes, usd_per_hour=params.evaluation.usd_per_hour
    )
    target = PATHS.metrics / "costs.csv"
    write_csv(table, target)
    record_time("costs", time.monotonic() - started)
    if failures:
        raise UserError(
            f"costs: {len(failures)} systems failed ({', '.join(failures)}) and the others are in {target}; correct "
            "`systems` in params.yaml and run `dvc repro costs` again"
        )
    return f"costs: {len(order)} systems, at most {len(queries[costs.WIDTHS[0]])} queries each -> {target}"


def _cost(system: Loaded, queries: Mapping[int, Sequence[pd.DataFrame]]) -> costs.Cost:
    return costs.Cost(system.parameters, system.megabytes, costs.measure(system.scores, queries))


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
