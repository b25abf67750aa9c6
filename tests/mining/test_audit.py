import numpy as np
import pandas as pd
import pytest

from reranker.common.artifacts import Tables
from reranker.common.errors import UserError
from reranker.mining import audit
from reranker.mining.audit import COLUMNS, SUSPICIOUS, apply_marks, table
from reranker.mining.negatives import NO_CANDIDATE, NOT_REFUSED, REASONS, MiningResult, Pool

PASSAGES = ["right", "=2+3", "<b>bold</b>", "plain", "other"]


def tables(split: str = "train") -> Tables:
    return Tables(
        pd.DataFrame({"passage_id": [f"p{at}" for at in range(5)], "text": PASSAGES, "group": PASSAGES}),
        pd.DataFrame({"query_id": ["q", "r"], "text": ["ask", "-x"], "group": ["q", "r"], "split": [split, "train"]}),
        pd.DataFrame({"query_id": ["q", "r"], "passage_id": ["p0", "p4"], "relevance": [1, 1]}),
    )


def result() -> MiningResult:
    pool = Pool(
        np.array([0, 1]),
        np.array([[1, 0, 2, 3], [2, 4, 3, -1]]),
        np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, -np.inf]], np.float32),
    )
    reasons = np.array(
        [[1, NO_CANDIDATE, NOT_REFUSED, NOT_REFUSED], [NOT_REFUSED, NO_CANDIDATE, NOT_REFUSED, NO_CANDIDATE]], np.int8
    )
    rows = pd.DataFrame(
        [(0, 0, 0.8, "positive"), (0, 2, 0.7, "hard"), (1, 4, 0.4, "positive"), (1, 3, 0.3, "hard")],
        columns=["query", "passage", "score", "kind"],
    )
    return MiningResult(rows, pool, reasons, np.array([0.8, 0.4]))


def cosines(queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
    return np.array([[0.5, 0.1, 0.9, 0.2, 0.0], [0.0, 0.0, 0.3, 0.1, 0.6]])[queries, passages]


def test_candidates_nearest_to_the_relevant_passage_come_first_with_their_verdict():
    listed = table(result(), tables(), cosines)
    assert listed.columns.tolist() == list(COLUMNS)
    assert list(zip(listed["query_id"], listed["passage_id"], listed["verdict"], listed["rank"], strict=True)) == [
        ("q", "p2", "hard negative", 3),
        ("r", "p2", "not drawn", 1),
        ("q", "p3", "not drawn", 4),
        ("q", "p1", f"refused: {REASONS[0]}", 1),
        ("r", "p3", "hard negative", 3),
    ]
    first = listed.iloc[0]
    assert first[["score", "score_of_right", "biencoder_score", "biencoder_score_of_right"]].tolist() == pytest.approx(
        [0.7, 0.8, 0.9, 0.5]
    )
    assert first[["mark", "query", "passage", "right_passage"]].tolist() == ["", "ask", "<b>bold</b>", "right"]


def test_examples_of_each_reason_follow_the_most_suspicious_and_no_candidate_is_listed_twice(monkeypatch):
    monkeypatch.setattr(audit, "SUSPICIOUS", 1)
    monkeypatch.setattr(audit, "RESCORED", 2)
    monkeypatch.setattr(audit, "EXAMPLES", 2)
    pool = Pool(np.array([0]), np.array([[1, 2, 3, 4, 0]]), np.linspace(0.9, 0.5, 5, dtype=np.float32)[None])
    one = result()._replace(
        pool=pool, reasons=np.array([[NOT_REFUSED, 3, 1, 3, 3]], np.int8), positive_scores=np.array([0.8])
    )
    listed = table(one._replace(rows=one.rows[:1]), tables(), lambda queries, passages: -passages)
    assert list(zip(listed["rank"], listed["verdict"], strict=True)) == [
        (1, "not drawn"),
        (3, f"refused: {REASONS[0]}"),
        (2, f"refused: {REASONS[2]}"),
        (4, f"refused: {REASONS[2]}"),
    ]


def test_candidate_that_was_drawn_as_a_random_negative_has_that_verdict():
    one = result()
    rows = pd.concat([one.rows, pd.DataFrame([(1, 2, 0.5, "random")], columns=one.rows.columns)])
    listed = table(one._replace(rows=rows), tables(), cosines).set_index(["query_id", "passage_id"])["verdict"]
    assert listed["r", "p2"] == "random negative"
    assert listed["q", "p2"] == "hard negative"


def test_text_that_a_spreadsheet_would_run_stands_behind_an_apostrophe():
    listed = table(result(), tables(), cosines)
    assert listed.loc[listed["passage_id"] == "p1", "passage"].tolist() == ["'=2+3"]
    assert set(listed.loc[listed["query_id"] == "r", "query"]) == {"'-x"}


def test_table_has_a_bound_and_is_empty_where_nothing_was_result():
    one = result()
    many = MiningResult(
        pd.concat([one.rows[one.rows["query"] == 0]]),
        Pool(np.zeros(1, np.int64), np.tile([2, 3], 100)[None, :], np.full((1, 200), 0.5, np.float32)),
        np.zeros((1, 200), np.int8),
        np.array([0.8]),
    )
    assert len(table(many, tables(), cosines)) == SUSPICIOUS
    none = Pool(np.empty(0, np.int64), np.empty((0, 3), np.int64), np.empty((0, 3), np.float32))
    assert table(MiningResult(one.rows.head(0), none, np.empty((0, 3), np.int8), np.empty(0)), tables(), cosines).empty


def marks(*rows: tuple[str, str, str | None]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["query_id", "passage_id", "mark"])


def test_marks_become_judgments_and_replace_earlier_ones():
    applied = apply_marks(marks(("q", "p2", "right"), ("q", "p0", "wrong"), ("r", "p1", None)), tables(), "file")
    assert sorted(applied.judgments.itertuples(index=False, name=None)) == [
        ("q", "p0", 0),
        ("q", "p2", 1),
        ("r", "p4", 1),
    ]
    assert (applied.marks, applied.ignored_marks) == (2, 0)


def test_mark_of_a_graded_relevant_passage_keeps_its_grade():
    judgments = pd.DataFrame({"query_id": ["q", "q"], "passage_id": ["p0", "p2"], "relevance": [3, 0]})
    applied = apply_marks(
        marks(("q", "p0", "right"), ("q", "p2", "right")), tables()._replace(judgments=judgments), "f"
    )
    assert sorted(applied.judgments.itertuples(index=False, name=None)) == [("q", "p0", 3), ("q", "p2", 1)]


def test_marks_outside_of_train_and_of_removed_passages_are_counted_and_ignored():
    some = marks(("q", "p2", "right"), ("r", "gone", "right"), ("gone", "p1", "wrong"))
    applied = apply_marks(some, tables("test"), "file")
    assert (applied.marks, applied.ignored_marks) == (0, 3)
    pd.testing.assert_frame_equal(applied.judgments, tables().judgments, check_dtype=False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("q", "p1", "yes")], "file: row 1: column mark: 'yes' must be right, wrong or empty"),
        (
            [("q", "p1", "right"), ("q", "p1", "wrong")],
            "file: query 'q' and passage 'p1' are marked both right and wrong",
        ),
    ],
)
def test_unusable_mark_is_an_error_that_names_it(rows, message):
    with pytest.raises(UserError, match=message):
        apply_marks(marks(*rows), tables(), "file")
