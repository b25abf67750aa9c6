"""Write the mined negatives in a format of `sentence_transformers.util.mine_hard_negatives`, for other trainers.

python -m tools.negatives OUT.parquet [--output-format FORMAT] [--output-scores] [--include-positives]
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from reranker.common.artifacts import PATHS, read_table, read_tables, write_table
from reranker.common.errors import UserError
from reranker.common.progress import run_stage

ANCHOR, POSITIVE, DOCUMENT = "anchor", "positive", "document"


def with_texts(rows: pd.DataFrame, queries: pd.DataFrame, passages: pd.DataFrame) -> pd.DataFrame:
    """Mined rows with their texts.

    Args:
        rows: columns query_id, passage_id, score, relevance, a query's together.
        queries: columns query_id, text.
        passages: columns passage_id, text.

    Returns:
        Columns anchor, document, label (1 for right, 0 for wrong), score; in the order of the rows.
    """
    return pd.DataFrame(
        {
            ANCHOR: rows["query_id"].map(queries.set_index("query_id")["text"]),
            DOCUMENT: rows["passage_id"].map(passages.set_index("passage_id")["text"]),
            "label": (rows["relevance"] > 0).astype(int),
            "score": rows["score"],
        }
    )


def formatted(
    rows: pd.DataFrame, output_format: str, *, output_scores: bool = False, include_positives: bool = False
) -> pd.DataFrame:
    """Rows in one of the formats, with the column names of `mine_hard_negatives`.

    Args:
        rows: see `with_texts`; each query has a right passage and a wrong one at least.
        output_format: a key of `FORMATS`.
        output_scores: with the first stage's scores (or the rescorer's) of the pairs; in the place of the labels,
            where the format has some.
        include_positives: right passages stand among the wrong ones, by their scores, instead of before them: a
            ranking, for `labeled-pair` and `labeled-list`.

    Raises:
        UserError: the format cannot include positives, or a query has fewer negatives than others for n-tuple.
    """
    if include_positives:
        if output_format not in ("labeled-pair", "labeled-list"):
            raise UserError(f"--include-positives: {output_format} has no place for them; take labeled-list")
        rows = rows.assign(order=pd.factorize(rows[ANCHOR])[0])
        rows = rows.sort_values(["order", "score"], ascending=[True, False], kind="stable").drop(columns="order")
    return FORMATS[output_format](rows, output_scores)


def _triplets(rows: pd.DataFrame, output_scores: bool) -> pd.DataFrame:
    right = rows[rows["label"] == 1].rename(columns={DOCUMENT: POSITIVE, "score": "right"})
    wrong = rows[rows["label"] == 0].rename(columns={DOCUMENT: "negative", "score": "wrong"})
    both = right[[ANCHOR, POSITIVE, "right"]].merge(wrong[[ANCHOR, "negative", "wrong"]], on=ANCHOR)
    made = both[[ANCHOR, POSITIVE, "negative"]]
    return made.assign(scores=list(both[["right", "wrong"]].to_numpy())) if output_scores else made


def _tuples(rows: pd.DataFrame, output_scores: bool) -> pd.DataFrame:
    wrong = rows[rows["label"] == 0].groupby(ANCHOR, sort=False)
    numbers = wrong.size()
    if numbers.nunique() > 1:
        raise UserError(
            f"n-tuple: queries have from {numbers.min()} to {numbers.max()} negatives, and all must have as many; "
            "widen range_max, or take triplet"
        )
    negatives = pd.DataFrame(wrong[DOCUMENT].agg(list).tolist(), index=numbers.index)
    negatives.columns = pd.Index([f"negative_{number}" for number in range(1, numbers.iloc[0] + 1)])
    right = rows[rows["label"] == 1].rename(columns={DOCUMENT: POSITIVE})
    made = right[[ANCHOR, POSITIVE]].join(negatives, on=ANCHOR).reset_index(drop=True)
    if not output_scores:
        return made
    of_wrong = np.stack(wrong["score"].agg(np.array)[right[ANCHOR]].tolist())
    return made.assign(scores=list(np.column_stack([right["score"], of_wrong])))


def _pairs(rows: pd.DataFrame, output_scores: bool) -> pd.DataFrame:
    return rows[[ANCHOR, DOCUMENT, "score" if output_scores else "label"]].reset_index(drop=True)


def _lists(rows: pd.DataFrame, output_scores: bool) -> pd.DataFrame:
    number = "score" if output_scores else "label"
    lists = rows.groupby(ANCHOR, sort=False)[[DOCUMENT, number]].agg(list).reset_index()
    return lists.rename(columns={DOCUMENT: "documents", number: f"{number}s"})


FORMATS: dict[str, Callable[[pd.DataFrame, bool], pd.DataFrame]] = {
    "triplet": _triplets,
    "n-tuple": _tuples,
    "labeled-pair": _pairs,
    "labeled-list": _lists,
}
"""By the names of `output_format`."""


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
