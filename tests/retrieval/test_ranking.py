import numpy as np
import pandas as pd
import pytest

from reranker.retrieval import index
from reranker.retrieval.ranking import Ranking, best_first, candidates, missed_positives
from reranker.retrieval.retrievers import Dense


@pytest.fixture
def vectors() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    return generator.normal(size=(50, 8)).astype("float32"), generator.normal(size=(6, 8)).astype("float32")


def dense(passages: np.ndarray, queries: np.ndarray) -> Dense:
    return Dense(passages, queries, index.build("flat", passages, queries=len(queries)))


def search(passages: np.ndarray, queries: np.ndarray, depth: int) -> Ranking:
    return dense(passages, queries).search(np.arange(len(queries)), depth, label="")


def test_search_finds_what_brute_force_finds(vectors):
    passages, queries = vectors
    ranking = search(passages, queries, 12)
    products = queries @ passages.T
    np.testing.assert_array_equal(ranking.positions, np.argsort(-products, axis=1)[:, :12])
    np.testing.assert_allclose(ranking.scores, -np.sort(-products, axis=1)[:, :12], rtol=1e-5)


def test_depth_beyond_the_corpus_returns_each_passage_once(vectors):
    passages, queries = vectors
    positions = search(passages, queries, 1000).positions
    assert positions.shape == (6, 50)
    assert (np.sort(positions, axis=1) == np.arange(50)).all()


def test_first_passages_do_not_depend_on_the_depth(vectors):
    passages, queries = vectors
    np.testing.assert_array_equal(
        search(passages, queries, 3).positions, search(passages, queries, 20).positions[:, :3]
    )


def test_best_come_first_and_of_equal_ones_the_last():
    positions = np.array([[7, 3, 5, -1, 4], [0, 1, 2, 3, 2**31]])
    scores = np.array([[-2.5, 0.0, -0.0, 9.0, 1e-30], [-1, -3, -2, -2, np.inf]], dtype="float32")
    ranking = best_first(positions, scores, 5)
    assert ranking.positions.tolist() == [[4, 5, 3, 7, -1], [2**31, 0, 3, 2, 1]]
    np.testing.assert_array_equal(ranking.scores[0], np.array([1e-30, 0, 0, -2.5, -np.inf], dtype="float32"))
    assert best_first(positions, scores, 2).positions.tolist() == [[4, 5], [2**31, 0]]


def test_candidates_are_sorted_by_query_and_rank_whatever_the_order_of_the_queries():
    ranking = Ranking(np.array([[2, 0], [1, 2]]), np.array([[0.9, 0.4], [0.8, 0.1]], dtype="float32"))
    table = candidates(ranking, pd.Series(["q2", "q1"]), pd.Series(["a", "b", "c"]))
    assert table.columns.tolist() == ["query_id", "passage_id", "rank", "score"]
    assert (table["query_id"] + table["passage_id"]).tolist() == ["q1b", "q1c", "q2c", "q2a"]
    assert table["rank"].tolist() == [1, 2, 1, 2]
    np.testing.assert_allclose(table["score"], [0.8, 0.1, 0.9, 0.4], rtol=1e-6)


def test_places_where_nothing_was_found_are_no_candidates():
    scores = np.array([[0.9, 0.4], [0.8, -np.inf], [-np.inf, -np.inf]], dtype="float32")
    ranking = Ranking(np.array([[2, 0], [1, -1], [-1, -1]]), scores)
    table = candidates(ranking, pd.Series(["q2", "q1", "q3"]), pd.Series(["a", "b", "c"]))
    assert (table["query_id"] + table["passage_id"]).tolist() == ["q1b", "q2c", "q2a"]
    assert table["rank"].tolist() == [1, 1, 2]


def test_equal_scores_are_ranked_by_passage_id_from_the_last():
    ranking = Ranking(np.array([[0, 1, 2, 3]]), np.array([[1.0, 0.5, 0.5, 0.5]], dtype="float32"))
    table = candidates(ranking, pd.Series(["q"]), pd.Series(["p0", "p1", "p10", "p2"]))
    assert table["passage_id"].tolist() == ["p0", "p2", "p10", "p1"]
    assert table["rank"].tolist() == [1, 2, 3, 4]


def test_missed_right_passages_get_their_rank_in_the_whole_corpus(vectors):
    passages, queries = vectors
    ids, query_ids = pd.Series([f"p{at:02}" for at in range(50)]), pd.Series([f"q{at}" for at in range(6)])
    complete = candidates(search(passages, queries, 50), query_ids, ids)
    top = complete[complete["rank"] <= 10]
    judgments = complete[complete["rank"].isin([1, 10, 11, 37])].assign(
        relevance=lambda t: (t["rank"] != 11).astype(int)
    )
    missed = missed_positives(top, judgments, dense(passages, queries), query_ids, ids)
    assert missed["rank"].tolist() == [37] * 6  # ranks 1 and 10 are candidates, and rank 11 is not relevant
    expected = complete[complete["rank"] == 37].reset_index(drop=True)
    pd.testing.assert_frame_equal(missed[["query_id", "passage_id"]], expected[["query_id", "passage_id"]])
    np.testing.assert_allclose(missed["score"], expected["score"], rtol=1e-5)


def test_nothing_is_missed_when_everything_was_retrieved(vectors):
    passages, queries = vectors
    ids, query_ids = pd.Series([f"p{at:02}" for at in range(50)]), pd.Series([f"q{at}" for at in range(6)])
    complete = candidates(search(passages, queries, 50), query_ids, ids)
    stage = dense(passages, queries)
    assert missed_positives(complete, complete.assign(relevance=1), stage, query_ids, ids).empty
