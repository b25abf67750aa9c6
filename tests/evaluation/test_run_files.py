from pathlib import Path

import pandas as pd
import pytest

from reranker.common.errors import UserError
from reranker.evaluation.metrics import rank
from reranker.evaluation.trec import check_ids, read_run, scores_of

KEYS = ["query_id", "passage_id"]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "runs").mkdir(parents=True)
    return Path("data/runs")


def test_scores_are_read_and_ranks_and_names_are_left_out(raw):
    (raw / "a.trec").write_text("q1 Q0 b 9 1.5 x\nq1\tQ0\ta 1 -2e-1 x\nq2 Q0 a 1 7 y\n")
    assert read_run(raw / "a.trec").to_dict("list") == {
        "query_id": ["q1", "q1", "q2"],
        "passage_id": ["b", "a", "a"],
        "score": [1.5, -0.2, 7.0],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 Q0 a 1 2.0 x\nq1 Q0 b 2 1.0\n", "line 2: 5 columns in place of 6: query_id Q0 passage_id rank score name"),
        ("q1 Q0 a 1 2.0 x y\n", "line 1: 7 columns in place of 6: query_id Q0 passage_id rank score name"),
        ("q1 Q0 a 1 2.0 x\n\nq1 Q0 b 2 1 x\n", "line 2: 0 columns in place of 6: query_id Q0 passage_id rank score"),
        ("q1 Q0 a 1 nan x\n", "line 1: the score 'nan' is not a finite number"),
        ("q1 Q0 a 1 inf x\n", "line 1: the score 'inf' is not a finite number"),
        ("q1 Q0 a 1 1,5 x\n", "line 1: the score '1,5' is not a finite number"),
        ("q1 Q0 a 1 2 x\nq2 Q0 a 1 2 x\nq1 Q0 a 2 1 x\n", "line 3: passage 'a' of query 'q1' is in line 1 already"),
        ("", "is empty"),
    ],
)
def test_line_that_is_wrong_is_named(raw, text, message):
    (raw / "a.trec").write_text(text)
    with pytest.raises(UserError) as caught:
        read_run(raw / "a.trec")
    assert str(caught.value).startswith(f"data/runs/a.trec: {message}")


def test_file_that_cannot_be_read_is_named(raw, tmp_path):
    with pytest.raises(UserError, match=r"data/runs/none\.trec does not exist"):
        read_run(raw / "none.trec")
    with pytest.raises(UserError, match="data/runs: could not be read"):
        read_run(raw)
    (tmp_path / "a.trec").write_text("q1 Q0 a 1 2.0 x\n")
    with pytest.raises(UserError, match="is not in data/runs/; move it there"):
        read_run(Path("a.trec"))
    (raw / "a.trec").write_bytes(b"q1 Q0 \xff 1 2.0 x\n")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_run(raw / "a.trec")


def test_unknown_ids_are_named_and_counted():
    run = pd.DataFrame({"query_id": ["q1", "q9"], "passage_id": ["a", "b"], "score": [1.0, 1.0]})
    check_ids(run, Path("r"), ["q1", "q9", "q2"], ["a", "b", "c"])
    with pytest.raises(UserError, match=r"^r: column query_id: 1 ids are none of the test queries: 'q9'$"):
        check_ids(run, Path("r"), ["q1"], ["a", "b"])
    many = pd.DataFrame({"query_id": "q1", "passage_id": list("edcba"), "score": 1.0})
    with pytest.raises(UserError) as caught:
        check_ids(many, Path("r"), ["q1"], ["a"])
    assert str(caught.value) == "r: column passage_id: 4 ids are none of the passages: 'b', 'c', 'd', …"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_missing_candidates_come_last_in_the_order_of_their_ids_whatever_the_scale(scale):
    run = pd.DataFrame({"query_id": ["q1"] * 3, "passage_id": ["b", "a", "x"], "score": [5.0 * scale, 7.0 * scale, 0]})
    pairs = pd.DataFrame([("q1", "d"), ("q1", "b"), ("q1", "c"), ("q1", "a"), ("q2", "b"), ("q2", "a")], columns=KEYS)
    scored = pairs.assign(score=scores_of(run, pairs))
    assert scored["score"].tolist()[1] == 5.0 * scale
    ordered = rank(scored.assign(score=scored["score"].astype("float32")))
    assert ordered["passage_id"].tolist() == ["a", "b", "c", "d", "a", "b"]
    assert ordered.groupby("query_id")["score"].nunique().tolist() == [4, 2]
