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
    """Add the texts to the mined rows.

    Args:
        rows: columns query_id, passage_id, score, relevance; the rows of a query are together.
        queries: columns query_id, text.
        passages: columns passage_id, text.

    Returns:
        Columns anchor, document, label (1 for relevant, 0 for negative), score; in the order of the rows.
    """
    return pd.DataFrame(
        {
            ANCHOR: rows["query_id"].map(queries.set_index("query_id")["text"]),
            DOCUMENT: rows["passage_id"].map(passages.set_index("passage_id")["text"]),
            "label": (rows["relevance"] > 0).astype(int),
            "score": rows["score"],
        }
    )


def format_rows(
    rows: pd.DataFrame, output_format: str, *, output_scores: bool = False, include_positives: bool = False
) -> pd.DataFrame:
    """Put the rows into one of the formats, with the column names of `mine_hard_negatives`.

    Args:
        rows: see `with_texts`; each query has at least one relevant passage and one negative.
        output_format: a key of `FORMATS`.
        output_scores: whether to add the scores of the pairs by the first-stage retriever or the rescorer; they replace
            labels if the format has labels.
        include_positives: whether to sort relevant passages among the negatives by their scores instead of before
            them; this ranking is possible for `labeled-pair` and `labeled-list`.

    Raises:
        UserError: the format cannot include positives, or a query has fewer negatives than others for n-tuple.
    """
    if include_positives:
        if output_format not in ("labeled-pair", "labeled-list"):
            raise UserError(f"--include-positives: {output_format} cannot contain a ranking; use labeled-list")
        rows = rows.assign(order=pd.factorize(rows[ANCHOR])[0])
        rows = rows.sort_values(["order", "score"], ascending=[True, False], kind="stable").drop(columns="order")
    return FORMATS[output_format](rows, output_scores)


def _triplets(rows: pd.DataFrame, output_scores: bool) -> pd.DataFrame:
    positives = rows[rows["label"] == 1].rename(columns={DOCUMENT: POSITIVE, "score": "positive_score"})
    negatives = rows[rows["label"] == 0].rename(columns={DOCUMENT: "negative", "score": "negative_score"})
    both = positives[[ANCHOR, POSITIVE, "positive_score"]].merge(
        negatives[[ANCHOR, "negative", "negative_score"]], on=ANCHOR
    )
    triplets = both[[ANCHOR, POSITIVE, "negative"]]
    scores = list(both[["positive_score", "negative_score"]].to_numpy())
    return triplets.assign(scores=scores) if output_scores else triplets


def _tuples(rows: pd.DataFrame, output_scores: bool) -> pd.DataFrame:
    groups = rows[rows["label"] == 0].groupby(ANCHOR, sort=False)
    numbers = groups.size()
    if numbers.nunique() > 1:
        raise UserError(
            f"n-tuple: queries have from {numbers.min()} to {numbers.max()} negatives, but all must have the same "
            "number; raise range_max, or use triplet"
        )
    negatives = pd.DataFrame(groups[DOCUMENT].agg(list).tolist(), index=numbers.index)
    negatives.columns = pd.Index([f"negative_{number}" for number in range(1, numbers.iloc[0] + 1)])
    positives = rows[rows["label"] == 1].rename(columns={DOCUMENT: POSITIVE})
    tuples = positives[[ANCHOR, POSITIVE]].join(negatives, on=ANCHOR).reset_index(drop=True)
    if not output_scores:
        return tuples
    negative_scores = np.stack(groups["score"].agg(np.array)[positives[ANCHOR]].tolist())
    return tuples.assign(scores=list(np.column_stack([positives["score"], negative_scores])))


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
"""The function for each `output_format` of `mine_hard_negatives`."""


def main(arguments: Sequence[str]) -> str:
    """Read the mined negatives and write them in the format."""
    parser = argparse.ArgumentParser(prog="python -m tools.negatives", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a Parquet file, which pandas and datasets read")
    parser.add_argument("--output-format", choices=FORMATS, default="triplet", help="(default: %(default)s)")
    parser.add_argument("--output-scores", action="store_true", help="add the scores by which they were mined")
    parser.add_argument("--include-positives", action="store_true", help="sort relevant passages among them by score")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".parquet":
        raise UserError(f"{options.out}: name a file that ends in .parquet")
    tables = read_tables()
    rows = read_table(PATHS.negatives, ["query_id", "passage_id", "score", "relevance"])
    table = format_rows(
        with_texts(rows, tables.queries, tables.passages),
        options.output_format,
        output_scores=options.output_scores,
        include_positives=options.include_positives,
    )
    write_table(table, options.out)
    return f"{len(table):,} rows with the columns {', '.join(table)} -> {options.out}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
