"""The most suspicious candidates of mining, for a person to look at, and what that person marked.

A candidate is suspicious when a model puts it near or above the right passage of its query: it may be a right answer
that nobody has labelled. Marks become judgments, so that what was judged once is neither mined nor asked again.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reranker.errors import UserError
from reranker.negatives import REASONS, TAKEN, Mined, ScorePairs
from reranker.records import Tables

SHOWN = 100
"""Candidates in the table."""
LOOKED_AT = 400
"""Candidates that the teacher scores: those nearest to the right passage by the score that mining went by."""
MARKS = ("right", "wrong")
COLUMNS = (
    "query_id", "passage_id", "mark", "verdict", "rank", "score", "score_of_right", "teacher_score",
    "teacher_score_of_right", "query", "passage", "right_passage",
)  # fmt: skip


class Marked(NamedTuple):
    """The judgments with the marks among them."""

    judgments: pd.DataFrame
    """Columns query_id, passage_id, relevance."""
    used: int
    """Marks that became judgments."""
    unknown: int
    """Marks of queries that are not in train, or of passages that are not there any more."""


def table(mined: Mined, tables: Tables, teacher: ScorePairs) -> pd.DataFrame:
    """The `SHOWN` most suspicious candidates, columns `COLUMNS`, the most suspicious first; mark is empty.

    Args:
        mined: what was chosen, and from what.
        tables: the data set.
        teacher: cosines of the tuned bi-encoder for pairs of places; it decides the order.
    """
    pool = mined.pool
    ahead = np.where(mined.reasons == TAKEN, -np.inf, pool.scores - mined.positive_scores[:, None])
    row, column = (axis.ravel() for axis in np.indices(ahead.shape))
    order = np.lexsort((column, row, -ahead.ravel()))[:LOOKED_AT]
    order = order[np.isfinite(ahead.ravel()[order])]
    row, column = row[order], column[order]
    queries, passages = pool.queries[row], pool.positions[row, column]

    rows = mined.rows
    positive = rows[rows["kind"] == "positive"].set_index("query")["passage"].reindex(pool.queries)
    there = positive.notna().to_numpy()[row]
    row, column, queries, passages = (array[there] for array in (row, column, queries, passages))
    right = positive.to_numpy()[row].astype(np.int64)
    found, best = np.asarray(teacher(queries, passages), float), np.asarray(teacher(queries, right), float)
    chosen = pd.MultiIndex.from_frame(rows.loc[rows["kind"] == "hard", ["query", "passage"]])
    is_chosen = pd.MultiIndex.from_arrays([queries, passages]).isin(chosen)
    reasons = mined.reasons[row, column]
    verdict = [
        "hard negative" if taken else f"refused: {REASONS[reason - 1]}" if reason > 0 else "not drawn"
        for taken, reason in zip(is_chosen, reasons, strict=True)
    ]
    texts = tables.passages["text"].to_numpy()
    shown = pd.DataFrame(
        {
            "query_id": tables.queries["query_id"].to_numpy()[queries],
            "passage_id": tables.passages["passage_id"].to_numpy()[passages],
            "mark": "",
            "verdict": verdict,
            "rank": column + 1,
            "score": pool.scores[row, column].astype(float),
            "score_of_right": mined.positive_scores[row],
            "teacher_score": found,
            "teacher_score_of_right": best,
            "query": _harmless(tables.queries["text"].to_numpy()[queries]),
            "passage": _harmless(texts[passages]),
            "right_passage": _harmless(texts[right]),
        },
        columns=list(COLUMNS),
    )
    suspicion = shown["teacher_score"] - shown["teacher_score_of_right"]
    return shown.loc[suspicion.sort_values(ascending=False, kind="stable").index[:SHOWN]].reset_index(drop=True)


def _harmless(texts: NDArray[np.object_]) -> list[str]:
    """A spreadsheet would run a text that begins like a formula; it shows one behind an apostrophe."""
    return [f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text for text in texts]


def apply_marks(marks: pd.DataFrame, tables: Tables, origin: str) -> Marked:
    """Put the marks among the judgments; they count more than what was there.

    Args:
        marks: columns query_id, passage_id, mark (right, wrong or empty).
        tables: the data set.
        origin: the file, for messages.

    Raises:
        UserError: a mark is none of these, or one pair is marked both.
    """
    marks = marks.fillna("")
    for place, mark in enumerate(marks["mark"], start=1):
        if mark not in (*MARKS, ""):
            raise UserError(f"{origin}: row {place}: column mark: '{mark}' is none of {', '.join(MARKS)} or empty")
    marks = marks[marks["mark"] != ""].drop_duplicates()
    for row in marks[marks.duplicated(["query_id", "passage_id"])].itertuples():
        raise UserError(
            f"{origin}: query '{row.query_id}' and passage '{row.passage_id}' are marked right and wrong; keep one row"
        )
    train = tables.queries.loc[tables.queries["split"] == "train", "query_id"]
    known = marks["query_id"].isin(train) & marks["passage_id"].isin(tables.passages["passage_id"])
    used = marks[known]
    told = used[["query_id", "passage_id"]].assign(relevance=(used["mark"] == "right").astype(int))
    both = pd.concat([tables.judgments, told]).drop_duplicates(["query_id", "passage_id"], keep="last")
    return Marked(both.reset_index(drop=True), len(used), int((~known).sum()))
