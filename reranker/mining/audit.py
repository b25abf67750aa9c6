"""The most suspicious candidates of mining, for a person to look at, and what that person marked.

A candidate is suspicious when a model puts it near or above the right passage of its query: it may be a right answer
that nobody has labelled. Marks become judgments, so that what was judged once is neither mined nor asked again.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reranker.common.artifacts import Tables
from reranker.common.errors import UserError
from reranker.mining.negatives import REASONS, TAKEN, Mined, ScorePairs

SHOWN = 100
"""Candidates in the table, with examples of what was refused behind them."""
EXAMPLES = 3
"""Candidates of each reason for a refusal that the table has at least, where there are as many."""
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
    """The `SHOWN` most suspicious candidates, the most suspicious first, then the `EXAMPLES` of each reason.

    Columns `COLUMNS`; mark is empty. Each candidate is there once.

    Args:
        mined: what was chosen, and from what.
        tables: the data set.
        teacher: cosines of the tuned bi-encoder for pairs of places; it decides the order.
    """
    pool = mined.pool
    there = (mined.reasons != TAKEN) & np.isin(pool.queries, mined.rows["query"])[:, None]
    ahead = np.where(there, pool.scores - mined.positive_scores[:, None], -np.inf).ravel()
    order = np.argsort(-ahead, kind="stable")
    order = order[np.isfinite(ahead[order])]
    looked_at = _described(order[:LOOKED_AT], mined, tables, teacher)
    suspicion = looked_at["teacher_score"] - looked_at["teacher_score_of_right"]
    shown = suspicion.sort_values(ascending=False, kind="stable").index.to_numpy()[:SHOWN]
    reasons = mined.reasons.ravel()[order]
    examples = np.concatenate([order[reasons == reason][:EXAMPLES] for reason in range(1, len(REASONS) + 1)])
    examples = examples[~np.isin(examples, order[shown])]
    # scored by themselves: the last bits of the others' scores must not depend on them
    parts = [looked_at.loc[shown], _described(examples, mined, tables, teacher)]
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _described(places: NDArray[np.int64], mined: Mined, tables: Tables, teacher: ScorePairs) -> pd.DataFrame:
    """Candidates with their texts, scores and what became of them.

    Args:
        places: of candidates in the pool, as if its rows stood behind each other.
        mined: see `table`.
        tables: see `table`.
        teacher: see `table`.
    """
    pool, rows = mined.pool, mined.rows
    row, column = np.divmod(places, pool.positions.shape[1])
    queries, passages = pool.queries[row], pool.positions[row, column]
    right = rows[rows["kind"] == "positive"].set_index("query")["passage"].reindex(queries).to_numpy(np.int64)
    found, best = np.asarray(teacher(queries, passages), float), np.asarray(teacher(queries, right), float)
    kinds = rows.set_index(["query", "passage"])["kind"]
    drawn = kinds.reindex(pd.MultiIndex.from_arrays([queries, passages])).fillna("")
    verdict = [
        f"{kind} negative" if kind else f"refused: {REASONS[reason - 1]}" if reason > 0 else "not drawn"
        for kind, reason in zip(drawn, mined.reasons[row, column], strict=True)
    ]
    texts = tables.passages["text"].to_numpy()
    return pd.DataFrame(
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
    used, keys = marks[known], ["query_id", "passage_id"]
    earlier = tables.judgments.set_index(keys)["relevance"].reindex(pd.MultiIndex.from_frame(used[keys]), fill_value=0)
    # what was right already stays as right as it was
    relevance = np.where(used["mark"] == "right", np.maximum(earlier.to_numpy(), 1), 0)
    both = pd.concat([tables.judgments, used[keys].assign(relevance=relevance)]).drop_duplicates(keys, keep="last")
    return Marked(both.reset_index(drop=True), len(used), int((~known).sum()))
