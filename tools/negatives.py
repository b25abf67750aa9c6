"""Write the mined negatives in a format of mine_hard_negatives, for another trainer.

python -m tools.negatives OUT.parquet [--output-format FORMAT] [--output-scores] [--include-positives]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reranker.errors import UserError
from reranker.formats import FORMATS, formatted, with_texts
from reranker.progress import run_stage
from reranker.records import PATHS, read_table, read_tables, write_table


def main(arguments: Sequence[str]) -> str:
    """Read, write."""
    parser = argparse.ArgumentParser(prog="python -m tools.negatives", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a Parquet file, which pandas and datasets read")
    parser.add_argument("--output-format", choices=FORMATS, default="triplet", help="(default: %(default)s)")
    parser.add_argument("--output-scores", action="store_true", help="with the scores that they were mined by")
    parser.add_argument("--include-positives", action="store_true", help="right passages at their place by score")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".parquet":
        raise UserError(f"{options.out}: name a file that ends in .parquet")
    tables = read_tables()
    rows = read_table(PATHS.negatives, ["query_id", "passage_id", "score", "relevance"])
    made = formatted(
        with_texts(rows, tables.queries, tables.passages),
        options.output_format,
        output_scores=options.output_scores,
        include_positives=options.include_positives,
    )
    write_table(made, options.out)
    return f"{len(made):,} rows with the columns {', '.join(made)} -> {options.out}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
