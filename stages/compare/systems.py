"""systems: measure the systems that compare/params.yaml names on the same test candidates as the evaluate stage.

Scores are reused if their system, model, texts and code have not changed. If a system fails, the tables contain the
others, and the stage ends with an error.

python -m stages.compare.systems
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from reranker.common.progress import quiet_libraries, run_stage

quiet_libraries()

import pandas as pd

from reranker.common import engine
from reranker.common.artifacts import PATHS, read_table, read_tables, record_time, scored_file, write_csv
from reranker.common.errors import UserError, first_line, printable
from reranker.common.model_files import fingerprint
from reranker.common.params import load_params
from reranker.evaluation import comparison, experiment_models
from reranker.evaluation.compare_params import read_params
from reranker.evaluation.score_cache import cache_key, cached_scores, with_key
from reranker.evaluation.system_schema import (
    STANDARD_SYSTEMS,
    CrossEncoderSystem,
    ExperimentSystem,
    FusedSystem,
    RunSystem,
    System,
    in_order,
    kind,
    repeats,
)
from reranker.evaluation.systems import BM25, Settings, open_system, weighted_z_scores
from reranker.evaluation.trec import check_ids, read_run, scores_of, write_scored
from reranker.inference.compute import choose_compute
from reranker.inference.excerpts import in_words
from reranker.inference.export import read_about
from reranker.retrieval import bm25

KEYS = ["query_id", "passage_id"]


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    compare = read_params(PATHS.compare_params)
    tables = read_tables()
    candidates = read_table(PATHS.candidates, [*KEYS, "rank", "split", BM25])
    pairs = candidates[candidates["split"] == "test"].reset_index(drop=True)
    if pairs.empty:
        raise UserError(f"{PATHS.candidates}: has no test query to compare systems on; raise test_share in params.yaml")
    pairs = in_words(pairs, tables).assign(retrieved=pairs["rank"] <= params.top_k)
    judgments = tables.judgments[tables.judgments["query_id"].isin(pairs["query_id"])]
    ranked = read_table(PATHS.bm25, [*KEYS, "rank", "score"])
    runs = {BM25: ranked[ranked["rank"] <= params.top_k]}  # as deep as the others, for the sake of MAP
    scores = {BM25: [pairs[BM25]]}  # of the candidates, as a part of other systems
    for name in STANDARD_SYSTEMS:
        if name not in runs:
            scored = read_table(scored_file(name), [*KEYS, "score"])
            scores[name] = [comparison.align(pairs, scored, name)]
    compute = choose_compute(**dict(params.compute), engine=engine.start(params.execution.engine))
    settings = Settings(
        words=bm25.statistics(tables.passages["text"]),
        max_length=params.biencoder.max_length,
        query_prompt=params.query_prompt,
        passage_prompt=params.passage_prompt,
        compute=compute,
    )
    failures: dict[str, str] = {}
    written: set[str] = set()
    for name, system in in_order(compare.systems):
        try:
            repeated: list[pd.Series] = []
            for file, single in _files(name, repeats(system)):
                repeated.append(_scores(file, single, pairs, settings, scores, tables.passages["passage_id"]))
                written.add(file)
            scores[name] = repeated
        except Exception as error:  # libraries raise errors of any type for a model that they cannot load
            failures[name] = first_line(error)
            print(printable(f"error: systems.{name}: {failures[name]}"), file=sys.stderr, flush=True)
    PATHS.compared.mkdir(parents=True, exist_ok=True)
    for path in PATHS.compared.iterdir():
        if path.stem not in written:
            path.unlink()

    order = [*STANDARD_SYSTEMS, *(name for name in compare.systems if name not in failures)]
    ordered = {name: scores[name] for name in order if name not in runs}
    values, deviations = comparison.measure(
        pairs, judgments, ordered, label="compare", judged_only=compare.judged_only, runs=runs
    )
    kinds = {name: STANDARD_SYSTEMS.get(name) or kind(compare.systems[name]) for name in order}
    baseline = None if compare.baseline in failures else compare.baseline
    compared = comparison.compare(values, kinds, baseline, deviations, seed=params.evaluation.seed)
    write_csv(compared, PATHS.metrics / "comparison.csv")
    write_csv(comparison.by_query(values), PATHS.metrics / "comparison_per_query.csv")
    record_time("compare_systems", time.monotonic() - started)
    target = PATHS.metrics / "comparison.csv"
    if failures:
        raise UserError(
            f"systems: {len(failures)} of {len(compare.systems)} systems failed ({', '.join(failures)}) and the others "
            f"are in {target}; correct `systems` in {PATHS.compare_params} and run "
            "`dvc repro compare/dvc.yaml:systems`, which reuses their scores"
        )
    return f"systems: {len(order)} systems on {pairs['query_id'].nunique():,} test queries -> {target}"


def _files(name: str, systems: Sequence[System]) -> list[tuple[str, System]]:
    """The name of the file of each repeat of a system."""
    return [(name if len(systems) == 1 else f"{name}@{number}", each) for number, each in enumerate(systems, start=1)]


def _scores(
    file: str,
    system: System,
    pairs: pd.DataFrame,
    settings: Settings,
    scores: Mapping[str, Sequence[pd.Series]],
    passages: pd.Series,
) -> pd.Series:
    """The score of each pair: of an earlier run of the same system, models, texts and code, or computed and written."""
    table = None
    if not isinstance(system, FusedSystem | RunSystem):
        table = cached_scores(PATHS.compared / f"{file}.parquet", cache_key(system, settings, pairs))
    if table is None:
        table = _compute_scores(file, system, pairs, settings, scores, passages)
        write_scored(table, pairs["retrieved"], file, PATHS.compared)
    _warn_of_mismatch(system)
    return table["score"]


def _compute_scores(
    file: str,
    system: System,
    pairs: pd.DataFrame,
    settings: Settings,
    scores: Mapping[str, Sequence[pd.Series]],
    passages: pd.Series,
) -> pd.DataFrame:
    """Score the pairs: columns query_id, passage_id, score; scores that can be cached also have their key."""
    if isinstance(system, FusedSystem):
        for part in system.fused:
            if part not in scores:
                raise UserError(f"'{part}' has no scores, because it failed")
        parts = {part: scores[part][0].to_numpy(float) for part in system.fused}
        return pairs[KEYS].assign(score=weighted_z_scores(parts, system.fused, pairs))
    if isinstance(system, RunSystem):
        path = Path(system.run)
        run = read_run(path)
        check_ids(run, path, pairs["query_id"], passages)
        return pairs[KEYS].assign(score=scores_of(run, pairs))
    with open_system(system, settings, f"compare {file}") as loaded:
        return with_key(pairs[KEYS].assign(score=loaded.scores(pairs)), cache_key(system, settings, pairs))


def _warn_of_mismatch(system: System) -> None:
    """Warn if a model does not belong to the queries or the reranker of the workspace."""
    warnings = []
    if isinstance(system, ExperimentSystem):
        warnings = [
            f"experiment '{name}' has other queries or splits: it may have been trained on some of these test queries"
            for name in system.experiment
            if not experiment_models.same_queries(name)
        ]
    elif isinstance(system, CrossEncoderSystem):
        folder = Path(system.cross_encoder)
        if folder.is_relative_to(PATHS.export) and read_about(folder).origin != fingerprint(str(PATHS.reranker)):
            warnings = [f"{folder} was exported from another {PATHS.reranker}; run `dvc repro export/dvc.yaml`"]
    for warning in warnings:
        print(printable(f"compare: {warning}"), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
