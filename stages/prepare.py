"""prepare: what the sources hold becomes passages, queries and judgments.

python -m stages.prepare
"""

import sys
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from reranker.common.artifacts import (
    PATHS,
    SPLITS,
    first_texts,
    record_time,
    write_csv,
    write_json,
    write_parts,
    write_table,
)
from reranker.common.errors import UserError, printable
from reranker.common.model_files import tokenizer_file
from reranker.common.params import Params, load_params
from reranker.common.progress import progress, run_stage
from reranker.common.source_schema import Source
from reranker.data import dataset, leakage
from reranker.data.cleaning import SPLIT_NAMES, Cleaner, Limits
from reranker.data.sources import readers
from reranker.data.text_statistics import histogram, percentiles, token_lengths
from reranker.data.text_store import Spool

TEXTS = {"query": PATHS.queries, "passage": PATHS.passages}
COUNTED = 30_000
"""Texts whose tokens are counted: those with the smallest ids, which are hashes."""


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    limits = Limits(params.prepare.min_query_words, params.prepare.max_query_words, params.prepare.min_passage_chars)
    with Spool(PATHS.spool) as spool:
        cleaner = Cleaner(limits, params.sources, spool)
        number = sum(_read(name, source, cleaner) for name, source in params.sources.items())
        rows, dropped, dropped_rows = cleaner.finish()
        if rows.empty:
            reasons = ", ".join(f"{count:,} as {reason}" for reason, count in dropped.items() if count)
            raise UserError(
                f"params.yaml: sources: no rows left of {number:,} after cleaning; dropped {reasons or 'none'}"
            )
        leaks = _find_leaks(rows, spool, allowed=params.prepare.allow_leakage)
        plan = dataset.build(
            rows,
            spool,
            near_duplicates=params.prepare.near_duplicates,
            dev_share=params.prepare.dev_share,
            test_share=params.prepare.test_share,
        )
        sizes = _split_sizes(plan)
        across = leakage.across_splits(plan.queries)
        _tell_of(plan, across)
        write_parts(dataset.passages_table(plan, spool), PATHS.passages)
        write_parts(dataset.queries_table(plan, spool, params.sources), PATHS.queries)
    write_parts(dataset.judgments_table(plan), PATHS.judgments)
    write_table(dropped_rows, PATHS.dropped)
    write_table(leakage.table(leaks), PATHS.leaks)
    tokens, lengths = _token_counts(params)
    write_csv(lengths, PATHS.metrics / "lengths.csv")
    write_json(
        {
            "rows": number,
            "passages": len(plan.passages),
            "passage_groups": int(plan.passages["group"].nunique()),
            "judgments": len(plan.judgments),
            **{f"queries_{split}": size for split, size in sizes.items()},
            "queries_with_groups_across_splits": across,
            **{f"dropped_{reason}": count for reason, count in dropped.items()},
            "leaked_equal_queries": leaks.equal,
            "leaked_near_queries": leaks.near,
            "merged_passages": len(rows) - len(plan.passages),
            "merged_queries": int((rows["query"] != 0).sum()) - len(plan.queries),
            "near_duplicates_looked_for": plan.num_compared,
            **tokens,
        },
        PATHS.metrics / "prepare.json",
    )
    record_time("prepare", time.monotonic() - started)
    split_sizes = ", ".join(f"{size:,} {split}" for split, size in sizes.items())
    most, count = max(dropped.items(), key=lambda reason: reason[1])
    return (
        f"prepare: {len(plan.passages):,} passages, {len(plan.queries):,} queries ({split_sizes}), "
        f"{sum(dropped.values()):,} of {number:,} rows dropped"
        + (f", {count:,} of them as {most}" if count else "")
        + f" -> {PATHS.passages.parent}"
    )


def _find_leaks(rows: pd.DataFrame, spool: Spool, *, allowed: bool) -> leakage.Leaks:
    """The queries that the sources give to two splits; an error where there are some and that is not allowed."""
    leaks = leakage.find(rows, spool)
    if leaks.examples:
        if not allowed:
            raise UserError(
                f"params.yaml: sources: {leakage.describe(leaks)}; take them out, or set prepare.allow_leakage: true, "
                f"with which {PATHS.leaks} lists them"
            )
        _tell(leakage.describe(leaks))
    for bound in leaks.bounds:
        _tell(leakage.describe_bound(bound))
    return leaks


def _split_sizes(plan: dataset.Plan) -> dict[str, int]:
    """The number of queries of each split, of which none may be empty."""
    queries = np.bincount(plan.queries["split"], minlength=len(SPLIT_NAMES))
    sizes = {split: int(queries[SPLIT_NAMES.index(split)]) for split in SPLITS}
    for split, size in sizes.items():
        if not size:
            raise UserError(f"params.yaml: the {split} split has no queries; add text or raise its share")
    return sizes


def _read(name: str, source: Source, cleaner: Cleaner) -> int:
    """Hand a source's rows to the cleaner and tell which columns nobody uses; the number of its rows."""
    number = 0
    unused: dict[str, None] = {}
    with progress(f"prepare: {name}", 100, "%") as shown:
        for part in readers.read(source):
            number += len(part.examples)
            for example in part.examples:
                cleaner.add(example._replace(source=name))
            unused |= dict.fromkeys(part.unused)
            shown.reach(round(100 * part.share))
    if unused:
        _tell(f"{name}: unused columns: {', '.join(unused)}")
    return number


def _tell_of(plan: dataset.Plan, across: int) -> None:
    """Say where groups stand on two sides of a given split, and where a bound leaves texts out."""
    if across:
        _tell(
            f"{across:,} of the queries of dev or test share a group (a right passage, or nearly the same text) "
            "with a query of an earlier split, as the sources give the splits"
        )
    if 0 < plan.num_compared < len(plan.passages):
        _tell(
            f"near-duplicates were looked for among {plan.num_compared:,} of {len(plan.passages):,} passages; "
            "of the others those with the same letters were found"
        )
    for kind, size in (("queries", len(plan.queries)), ("passages", len(plan.passages))):
        if size > COUNTED:
            _tell(f"lengths in tokens are of {COUNTED:,} of {size:,} {kind}")


def _tell(line: str) -> None:
    print(printable(f"prepare: {line}"))


def _token_counts(params: Params) -> tuple[dict[str, float], pd.DataFrame]:
    """Lengths in tokens of the base model, what share of the passages is longer than it reads, and a histogram."""
    file = tokenizer_file(params.base_model)
    if not file:
        return {}, histogram({})
    tokenizer = Tokenizer.from_file(str(file))
    lengths = {name: token_lengths(tokenizer, first_texts(path, COUNTED)) for name, path in TEXTS.items()}
    return {
        **percentiles(lengths["query"], "query_tokens"),
        **percentiles(lengths["passage"], "passage_tokens"),
        "passages_beyond_max_length": float((lengths["passage"] > params.max_length).mean()),
    }, histogram(lengths)


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
