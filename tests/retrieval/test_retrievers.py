import numpy as np
import pytest

from reranker.common.errors import UserError
from reranker.retrieval import bm25, index, retrievers
from reranker.retrieval.ranking import FirstStage
from reranker.retrieval.retrievers import Dense, Lexical, ReciprocalRankFusion

PASSAGES = [str(getattr(str, name).__doc__) for name in sorted(dir(str))]  # some of them are equal
QUERIES = [
    "split a string at whitespace",
    "the the the case",
    "True if all characters are digits",
    "ünïcode",
    "remove remove PREFIX",
    "",
    "Return True if the string is a digit string, False otherwise.",
]
CORPUS, ALL = np.arange(len(PASSAGES)), np.arange(len(QUERIES))


def embed_letters(texts: list[str], seed: int = 1) -> np.ndarray:
    """Random projections of the counts of letters, normalised to length 1. Equal texts have equal vectors."""
    letters = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz "] for text in texts])
    vectors = letters @ np.random.default_rng(seed).normal(size=(27, 12)) + 1e-3
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")


def dense(name: str = "flat") -> Dense:
    passages, queries = embed_letters(PASSAGES), embed_letters(QUERIES)
    return Dense(passages, queries, index.build(name, passages, queries=len(queries)))


def line(*values: float) -> Dense:
    """A retriever of one query that ranks the passages by these values."""
    passages = np.array(values, dtype="float32")[:, None]
    return Dense(passages, np.ones((1, 1), dtype="float32"), index.build("flat", passages, queries=1))


def stages() -> list[FirstStage]:
    words = Lexical(PASSAGES, QUERIES)
    return [
        dense(),
        words,
        ReciprocalRankFusion([dense(), words]),
        ReciprocalRankFusion([words, dense(), words], first=5),
    ]


def all_scores(stage: FirstStage) -> np.ndarray:
    """The scores of all pairs; shape (queries, passages)."""
    pairs = np.repeat(ALL, len(CORPUS)), np.tile(CORPUS, len(ALL))
    return stage.scores(*pairs).reshape(len(ALL), len(CORPUS))


@pytest.mark.parametrize("stage", stages(), ids=["dense", "lexical", "reciprocal_rank_fusion", "three"])
def test_search_scores_and_ranks_agree_to_the_bit(stage):
    scores = all_scores(stage)
    for depth in (1, 10, 500):
        ranking = stage.search(ALL, depth, label="test")
        there = ranking.positions >= 0
        row = np.nonzero(there)[0]
        np.testing.assert_array_equal(ranking.scores[there], scores[row, ranking.positions[there]])
        assert np.isneginf(ranking.scores[~there]).all()
        np.testing.assert_array_equal(there.sum(axis=1), np.minimum(depth, (scores != 0).sum(axis=1)))
        # no passage that was left out is better than the last one of the ranking
        left_out = scores.copy()
        left_out[row, ranking.positions[there]] = -np.inf
        full = there.all(axis=1)
        assert (left_out[full].max(axis=1) <= ranking.scores[full, -1]).all()
        assert (np.diff(np.where(there, ranking.scores, -1e9), axis=1) <= 0).all()
    ranks = stage.ranks(np.repeat(ALL, len(CORPUS)), np.tile(CORPUS, len(ALL))).reshape(scores.shape)
    np.testing.assert_array_equal(ranks, (scores[:, None, :] > scores[:, :, None]).sum(axis=2) + 1)


@pytest.mark.parametrize("stage", stages(), ids=["dense", "lexical", "reciprocal_rank_fusion", "three"])
def test_queries_may_come_in_any_order_again_and_not_at_all(stage, monkeypatch):
    monkeypatch.setattr(retrievers, "QUERIES", 3)
    monkeypatch.setattr(retrievers, "RRF_QUERIES", 2)
    whole = stage.search(ALL, 8, label="test")
    some = np.array([5, 0, 0, 6, 2])
    part = stage.search(some, 8, label="test")
    np.testing.assert_array_equal(part.positions, whole.positions[some])
    np.testing.assert_array_equal(part.scores, whole.scores[some])
    np.testing.assert_array_equal(stage.scores(some, some), all_scores(stage)[some, some])
    none = np.empty(0, dtype=np.int64)
    assert stage.search(none, 8, label="test").positions.shape == (0, 8)
    assert stage.scores(none, none).shape == stage.ranks(none, none).shape == (0,)


def test_depth_beyond_the_corpus_finds_each_passage_once():
    assert (np.sort(dense().search(ALL, 1000, label="test").positions, axis=1) == CORPUS).all()
    for stage in stages()[1:]:
        for row in stage.search(ALL, 1000, label="test").positions:
            assert len(set(row[row >= 0])) == (row >= 0).sum()


def test_ranks_of_vectors_that_rounding_can_hardly_tell_apart(monkeypatch):
    monkeypatch.setattr(retrievers, "WIDTH", 64)
    monkeypatch.setattr(retrievers, "CELLS", 256)
    generator = np.random.default_rng(3)
    passages = (1 + generator.integers(-3, 4, size=(300, 64)) * 2.0**-23).astype("float32")
    queries = generator.normal(size=(9, 64)).astype("float32")
    stage = Dense(passages, queries, index.build("flat", passages, queries=9))
    pairs = np.repeat(np.arange(9), 300), np.tile(np.arange(300), 9)
    scores = stage.scores(*pairs).reshape(9, 300)
    assert 2 < len(np.unique(scores[0])) < 300
    expected = (scores[:, None, :] > scores[:, :, None]).sum(axis=2) + 1
    np.testing.assert_array_equal(stage.ranks(*pairs).reshape(9, 300), expected)


def test_words_score_as_bm25_of_single_pairs():
    counted = bm25.statistics(PASSAGES)
    expected = [bm25.bm25(counted, [query] * len(PASSAGES), PASSAGES) for query in QUERIES]
    scores = all_scores(Lexical(PASSAGES, QUERIES))
    np.testing.assert_allclose(scores, expected, rtol=2e-6, atol=1e-12)
    assert (scores > 0).sum() > 100


def test_only_passages_that_share_a_word_are_found():
    stage = Lexical(["read a csv file", "sort a list", "", "read, READ the_table!"], ["read", "sort_list", "none", ""])
    ranking = stage.search(np.arange(4), 3, label="test")
    assert ranking.positions.tolist() == [[3, 0, -1], [1, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert stage.ranks(np.array([0, 0, 2]), np.array([0, 1, 1])).tolist() == [2, 3, 1]


@pytest.mark.parametrize("passages", [[], [""], ["", "!", "_"]])
def test_corpus_without_words_finds_nothing(passages):
    stage = Lexical(passages, ["read", ""])
    assert (stage.search(np.array([0, 1]), 5, label="test").positions == -1).all()
    if passages:
        assert stage.scores(np.array([0]), np.array([0])).tolist() == [0]
        assert stage.ranks(np.array([0]), np.array([0])).tolist() == [1]


def test_reciprocal_rank_fusion_adds_the_shares_of_the_ranks():
    stage = ReciprocalRankFusion([line(4, 3, 2, 1), line(1, 2, 4, 3)])
    ranking = stage.search(np.array([0]), 4, label="test")
    shares = {0: 1 / 61 + 1 / 64, 1: 1 / 62 + 1 / 63, 2: 1 / 63 + 1 / 61, 3: 1 / 64 + 1 / 62}
    assert ranking.positions.tolist() == [sorted(shares, key=lambda place: -shares[place])]
    np.testing.assert_allclose(ranking.scores[0], sorted(shares.values(), reverse=True), rtol=1e-6)


def test_passage_that_no_retriever_finds_has_no_score_and_the_rank_after_the_last():
    stage = ReciprocalRankFusion([line(5, 4, 3, 2, 1), line(4, 5, 3, 2, 1)], first=2)
    ranking = stage.search(np.array([0]), 4, label="test")
    assert ranking.positions.tolist() == [[1, 0, -1, -1]]  # equal scores by position, from the last
    pairs = np.zeros(3, dtype=np.int64), np.array([0, 1, 4])
    np.testing.assert_allclose(stage.scores(*pairs), [1 / 61 + 1 / 62, 1 / 61 + 1 / 62, 0], rtol=1e-6)
    assert stage.ranks(*pairs).tolist() == [1, 1, 3]


def test_vectors_of_two_models_are_an_error_of_one_line():
    passages = embed_letters(PASSAGES)
    with pytest.raises(UserError, match="passages have 12 dimensions and those of the queries 5; embed both"):
        Dense(passages, embed_letters(QUERIES)[:, :5], index.build("flat", passages, queries=7))


def test_query_vector_that_is_no_vector_is_an_error_that_names_its_row():
    passages, queries = embed_letters(PASSAGES), embed_letters(QUERIES)
    queries[4, 2] = np.nan
    with pytest.raises(UserError, match="vectors of the queries: row 4 "):
        Dense(passages, queries, index.build("flat", passages, queries=7))
