from pathlib import Path

import ir_measures
import pandas as pd

from reranker.common.artifacts import PATHS, read_table
from reranker.evaluation.metrics import rank
from reranker.evaluation.trec import write_qrels, write_run, write_scored

SCORED = pd.DataFrame(
    [("r", "a", 1.0), ("q", "a", 2.0), ("q", "b", 2.0), ("q", "c", 0.1 + 0.2)],
    columns=["query_id", "passage_id", "score"],
)


def test_rank_counts_from_one_within_each_query_and_breaks_ties_by_id():
    before = SCORED.copy()
    ranked = rank(SCORED)
    assert [tuple(row) for row in ranked[["query_id", "passage_id", "rank"]].to_numpy()] == [
        ("q", "b", 1),
        ("q", "a", 2),
        ("q", "c", 3),
        ("r", "a", 1),
    ]
    pd.testing.assert_frame_equal(SCORED, before)


def test_run_has_the_lines_of_a_trec_run_with_scores_unrounded(tmp_path: Path):
    path = tmp_path / "run.trec"
    write_run(rank(SCORED), path, "bm25")
    assert path.read_text().splitlines() == [
        "q Q0 b 1 2.0 bm25",
        "q Q0 a 2 2.0 bm25",
        "q Q0 c 3 0.30000000000000004 bm25",
        "r Q0 a 1 1.0 bm25",
    ]


def test_scores_in_single_precision_are_written_as_plain_numbers(tmp_path: Path):
    path = tmp_path / "run.trec"
    write_run(rank(SCORED.astype({"score": "float32"})), path, "bm25")
    assert [float(line.split()[4]) for line in path.read_text().splitlines()][:2] == [2.0, 2.0]
    assert "float" not in path.read_text()


def test_scored_candidates_are_written_as_a_table_and_as_a_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_scored(SCORED, pd.Series([True, True, False, True]), "bm25")
    assert path == PATHS.scored / "bm25.parquet"
    pd.testing.assert_frame_equal(read_table(path, SCORED.columns), SCORED)
    lines = path.with_suffix(".trec").read_text().splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["q", "Q0", "a", "1"],
        ["q", "Q0", "c", "2"],
        ["r", "Q0", "a", "1"],
    ]


def test_judgments_are_written_as_trec_qrels_that_ir_measures_reads(tmp_path: Path):
    judgments = pd.DataFrame([("q", "a", 1), ("r", "b", 0)], columns=["query_id", "passage_id", "relevance"])
    write_qrels(judgments, tmp_path / "test.qrels")
    assert (tmp_path / "test.qrels").read_text() == "q 0 a 1\nr 0 b 0\n"
    read = [
        (found.query_id, found.doc_id, found.relevance)
        for found in ir_measures.read_trec_qrels(str(tmp_path / "test.qrels"))
    ]
    assert read == [("q", "a", 1), ("r", "b", 0)]
