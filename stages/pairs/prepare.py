"""prepare: turn files of labelled pairs into one table, split without leaks.

python -m stages.pairs.prepare
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from reranker.common.artifacts import PATHS, SPLITS, record_time, write_json, write_table
from reranker.common.errors import UserError, printable
from reranker.common.model_files import tokenizer_file
from reranker.common.progress import run_stage
from reranker.data.sources import files
from reranker.data.text_statistics import percentiles, token_lengths
from reranker.pairs import data
from reranker.pairs.params import PairParams, PairSource, read_params

EXAMPLES = 3
"""The largest number of rows that a message names."""


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = read_params(PATHS.pair_params)
    task = params.task
    cleaned = data.clean(_read(params), task)
    rows = len(cleaned.pairs) + sum(cleaned.dropped.values())
    if not cleaned.pairs:
        reasons = ", ".join(f"{count:,} as {reason}" for reason, count in cleaned.dropped.items() if count)
        raise UserError(f"{PATHS.pair_params}: source: no pairs are left of {rows:,} rows; dropped {reasons or 'none'}")
    leaks = data.find_leaks(cleaned.pairs, task)
    if leaks:
        places = ", ".join([pair.origin for pair in leaks[:EXAMPLES]] + ["…"] * (len(leaks) > EXAMPLES))
        message = (
            f"{len(leaks):,} of the pairs of dev or test are also in an earlier split, such as "
            f"'{leaks[0].first}' and '{leaks[0].second}' ({places})"
        )
        if not params.allow_leakage:
            raise UserError(f"{PATHS.pair_params}: source: {message}; remove them, or set allow_leakage: true")
        print(printable(f"prepare: {message}"))
    pairs, across = data.split_pairs(cleaned.pairs, params.dev_share, params.test_share)
    sizes = {split: int((pairs["split"] == split).sum()) for split in SPLITS}
    for split, size in sizes.items():
        of_split = pairs[pairs["split"] == split]
        if size < 2 or of_split["label"].nunique() < 2:
            raise UserError(
                f"{PATHS.pair_params}: the {split} split has {size:,} pairs and {of_split['label'].nunique()} "
                "different labels, but needs at least two of both; add pairs or raise its share"
            )
    write_table(pairs, PATHS.pairs)
    write_table(cleaned.examples, PATHS.pairs_dropped)
    figures: dict[str, float] = {}
    if file := tokenizer_file(params.base_model):
        tokenizer = Tokenizer.from_file(str(file))
        first, second = (token_lengths(tokenizer, pairs[column].tolist()) for column in ("first", "second"))
        lengths = first + second - 1  # a pair has only one token that begins a text
        figures |= percentiles(lengths, "tokens")
        figures["beyond_max_length"] = float((lengths > params.max_length).mean())
    write_json(
        {
            "pairs": {
                "rows": rows,
                **sizes,
                **{f"dropped_{reason}": count for reason, count in cleaned.dropped.items()},
                "dropped_across_splits": len(across),
                "leaked": len(leaks),
                **figures,
            }
        },
        PATHS.pair_metrics / "prepare.json",
    )
    record_time("pairs_prepare", time.monotonic() - started)
    listed = ", ".join(f"{size:,} {split}" for split, size in sizes.items())
    return f"prepare: {len(pairs):,} of {rows:,} pairs kept ({listed}) -> {PATHS.pairs.parent}"


def _read(params: PairParams) -> Iterator[data.Pair]:
    columns = params.source.columns
    unused: dict[str, None] = {}
    for split, path in _find(params.source):
        table = files.read(path, columns.names(), params.source.header, params.source.quoted)
        yield from data.read(
            table,
            columns,
            params.task,
            lowest=params.lowest_score,
            highest=params.highest_score,
            skip={str(label) for label in params.skip_labels},
            split=split,
        )
        unused |= dict.fromkeys(name for name in table.names if name not in columns.names())
    if unused:
        print(printable(f"prepare: source: unused columns: {', '.join(unused)}"))


def _find(source: PairSource) -> list[tuple[str, Path]]:
    try:
        return [(split, path) for split, named in source.files.items() for path in files.find(named)]
    except UserError as error:
        message = str(error).removeprefix(f"{PATHS.params}: ")
        raise UserError(
            f"{PATHS.pair_params}: source: {message}; docs/how-to/pairs.md says how to use your own files"
        ) from None


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
