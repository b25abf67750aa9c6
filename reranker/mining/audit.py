"""The table of the most suspicious candidates of mining, which a person can mark, and the use of these marks.

A candidate is suspicious when a model scores it near or above the relevant passage of its query: it may be relevant
without a label. Marks become judgments, so that a marked passage is neither mined nor listed again.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reranker.common.artifacts import Tables
from reranker.common.errors import UserError
from reranker.mining.negatives import NO_CANDIDATE, REASONS, MiningResult, ScorePairs

SUSPICIOUS = 100
"""The largest number of suspicious candidates in the table; examples of refused candidates follow them."""
EXAMPLES = 3
"""Examples of each reason for a refusal that follow, where there are as many."""
RESCORED = 400
"""Candidates that the bi-encoder scores: those whose score in mining is highest beside the relevant passage's."""
MARKS = ("right", "wrong")
COLUMNS = (
    "query_id", "passage_id", "mark", "verdict", "rank", "score", "score_of_right", "biencoder_score",
    "biencoder_score_of_right", "query", "passage", "right_passage",
)  # fmt: skip


class AppliedMarks(NamedTuple):
    """The judgments, with the marks applied."""

    judgments: pd.DataFrame
    """Columns query_id, passage_id, relevance."""
    marks: int
    """The number of marks that became judgments."""
    ignored_marks: int
    """The number of marks whose query is not in train or whose passage is no longer in the corpus."""


def table(result: MiningResult, tables: Tables, biencoder: ScorePairs) -> pd.DataFrame:
    """List the most suspicious candidates, the most suspicious first, then examples of each reason for a refusal.

    Columns are `COLUMNS`; mark is empty. Each candidate is listed once.

    Args:
        result: the result of mining.
        tables: the data set.
        biencoder: scores pairs by the cosine of the tuned bi-encoder, which decides the order.
    """
    pool = result.pool
    is_candidate = (result.reasons != NO_CANDIDATE) & np.isin(pool.queries, result.rows["query"])[:, None]
    lead = np.where(is_candidate, pool.scores - result.positive_scores[:, None], -np.inf).ravel()
    order = np.argsort(-lead, kind="stable")
    order = order[np.isfinite(lead[order])]
    rescored = _describe(order[:RESCORED], result, tables, biencoder)
    suspicion = rescored["biencoder_score"] - rescored["biencoder_score_of_right"]
    first = suspicion.sort_values(ascending=False, kind="stable").index.to_numpy()[:SUSPICIOUS]
    reasons = result.reasons.ravel()[order]
    examples = np.concatenate([order[reasons == reason][:EXAMPLES] for reason in range(1, len(REASONS) + 1)])
    examples = examples[~np.isin(examples, order[first])]
    # examples are scored separately, because the last bits of a score depend on the texts in the same batch
    parts = [rescored.loc[first], _describe(examples, result, tables, biencoder)]
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _describe(places: NDArray[np.int64], result: MiningResult, tables: Tables, biencoder: ScorePairs) -> pd.DataFrame:
    """List candidates with their texts, their scores and what mining decided.

    Args:
        places: indices of candidates in the flattened pool.
        result: see `table`.
        tables: see `table`.
        biencoder: see `table`.
    """
    pool, rows = result.pool, result.rows
    row, column = np.divmod(places, pool.positions.shape[1])
    queries, passages = pool.queries[row], pool.positions[row, column]
    positives = rows[rows["kind"] == "positive"].set_index("query")["passage"].reindex(queries).to_numpy(np.int64)
    scores = np.asarray(biencoder(queries, passages), float)
    positive_scores = np.asarray(biencoder(queries, positives), float)
    kinds = rows.set_index(["query", "passage"])["kind"]
    kinds = kinds.reindex(pd.MultiIndex.from_arrays([queries, passages])).fillna("")
    verdict = [
        f"{kind} negative" if kind else f"refused: {REASONS[reason - 1]}" if reason > 0 else "not drawn"
        for kind, reason in zip(kinds, result.reasons[row, column], strict=True)
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
            "score_of_right": result.positive_scores[row],
            "biencoder_score": scores,
            "biencoder_score_of_right": positive_scores,
            "query": _escape_formulas(tables.queries["text"].to_numpy()[queries]),
            "passage": _escape_formulas(texts[passages]),
            "right_passage": _escape_formulas(texts[positives]),
        },
        columns=list(COLUMNS),
    )


def _escape_formulas(texts: NDArray[np.object_]) -> list[str]:
    """Put an apostrophe before texts that begin like a formula, so that a spreadsheet does not run them."""
    return [f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text for text in texts]


def apply_marks(marks: pd.DataFrame, tables: Tables, origin: str) -> AppliedMarks:
    """Add the marks to the judgments; a mark replaces an earlier judgment of the same pair.

    Args:
        marks: columns query_id, passage_id, mark (right, wrong or empty).
        tables: the data set.
        origin: the file of the marks, for messages.

    Raises:
        UserError: a mark has another value, or one pair is marked both right and wrong.
    """
    marks = marks.fillna("")
    for place, mark in enumerate(marks["mark"], start=1):
        if mark not in (*MARKS, ""):
            raise UserError(f"{origin}: row {place}: column mark: '{mark}' must be {', '.join(MARKS)} or empty")
    marks = marks[marks["mark"] != ""].drop_duplicates()
    for row in marks[marks.duplicated(["query_id", "passage_id"])].itertuples():
        raise UserError(
            f"{origin}: query '{row.query_id}' and passage '{row.passage_id}' are marked both right and wrong; "
            "keep one row"
        )
    train = tables.queries.loc[tables.queries["split"] == "train", "query_id"]
    usable = marks["query_id"].isin(train) & marks["passage_id"].isin(tables.passages["passage_id"])
    new, keys = marks[usable], ["query_id", "passage_id"]
    earlier = tables.judgments.set_index(keys)["relevance"].reindex(pd.MultiIndex.from_frame(new[keys]), fill_value=0)
    # a passage that already is relevant keeps its grade
    relevance = np.where(new["mark"] == "right", np.maximum(earlier.to_numpy(), 1), 0)
    both = pd.concat([tables.judgments, new[keys].assign(relevance=relevance)]).drop_duplicates(keys, keep="last")
    return AppliedMarks(both.reset_index(drop=True), len(new), int((~usable).sum()))
