"""prepare: what the sources hold becomes passages, queries and judgments.

python -m stages.prepare
"""

import sys
import time
from collections.abc import Sequence

from tokenizers import Tokenizer

from reranker import dataset, leaks
from reranker.errors import UserError, printable
from reranker.models import tokenizer_file
from reranker.params import load_params
from reranker.progress import progress, run_stage
from reranker.records import PATHS, SPLITS, Example, record_time, write_json, write_table
from reranker.sources import reading


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    examples: list[Example] = []
    for name, source in params.sources.items():
        unused: dict[str, None] = {}
        with progress(f"prepare: {name}", 100, "%") as shown:
            for part in reading.read(source):
                examples += (example._replace(source=name) for example in part.examples)
                unused |= dict.fromkeys(part.unused)
                shown.reach(round(100 * part.share))
        if unused:
            print(printable(f"prepare: {name}: unused columns: {', '.join(unused)}"))
    limits = dataset.Limits(params.min_query_words, params.max_query_words, params.min_passage_chars)
    rows, dropped, dropped_rows = dataset.clean(examples, limits)
    if rows.empty:
        reasons = ", ".join(f"{number:,} as {reason}" for reason, number in dropped.items() if number)
        raise UserError(
            f"params.yaml: sources: no rows left of {len(examples):,} after cleaning; dropped {reasons or 'none'}"
        )
    if leaked := leaks.find(rows):
        if not params.allow_leakage:
            raise UserError(
                f"params.yaml: sources: {leaks.describe(leaked)}; take them out, or set allow_leakage: true"
            )
        print(printable(f"prepare: {leaks.describe(leaked)}"))
    tables = dataset.build(rows, dev_share=params.dev_share, test_share=params.test_share)
    sizes = tables.queries["split"].value_counts()
    for split in SPLITS:
        if split not in sizes:
            raise UserError(f"params.yaml: the {split} split has no queries; add text or raise its share")

    tokens: dict[str, int] = {}
    if file := tokenizer_file(params.base_model):
        tokenizer = Tokenizer.from_file(str(file))
        tokens |= dataset.token_percentiles(tokenizer, tables.queries["text"], "query_tokens")
        tokens |= dataset.token_percentiles(tokenizer, tables.passages["text"], "passage_tokens")

    write_table(tables.passages, PATHS.passages)
    write_table(tables.queries, PATHS.queries)
    write_table(tables.judgments, PATHS.judgments)
    write_table(dropped_rows, PATHS.dropped)
    write_json(
        {
            "rows": len(examples),
            "passages": len(tables.passages),
            "judgments": len(tables.judgments),
            **{f"queries_{split}": int(sizes[split]) for split in SPLITS},
            **{f"dropped_{reason}": number for reason, number in dropped.items()},
            "leaked_equal_queries": sum(leak.equal for leak in leaked),
            "leaked_near_queries": sum(not leak.equal for leak in leaked),
            "merged_passages": len(rows) - len(tables.passages),
            "merged_queries": int(rows["query"].notna().sum()) - len(tables.queries),
            **tokens,
        },
        PATHS.metrics / "prepare.json",
    )
    record_time("prepare", time.monotonic() - started)
    split_sizes = ", ".join(f"{sizes[split]:,} {split}" for split in SPLITS)
    most, number = max(dropped.items(), key=lambda count: count[1])
    return (
        f"prepare: {len(tables.passages):,} passages, {len(tables.queries):,} queries ({split_sizes}), "
        f"{sum(dropped.values()):,} of {len(examples):,} rows dropped"
        + (f", {number:,} of them as {most}" if number else "")
        + f" -> {PATHS.passages.parent}"
    )


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
