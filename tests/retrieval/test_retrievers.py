import numpy as np
import pytest

from reranker.common.errors import UserError
from reranker.retrieval import bm25, index, retrievers
from reranker.retrieval.ranking import FirstStage
from reranker.retrieval.retrievers import MANY, Dense, Lexical, WeightedSum

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


def dense(name: str = "flat", seed: int = 1) -> Dense:
    passages, queries = embed_letters(PASSAGES, seed), embed_letters(QUERIES, seed)
    return Dense(passages, queries, index.build(name, passages, queries=len(queries)))


def line(*values: float) -> Dense:
    """A retriever of one query that ranks the passages by these values."""
    passages = np.array(values, dtype="float32")[:, None]
    return Dense(passages, np.ones((1, 1), dtype="float32"), index.build("flat", passages, queries=1))


SUMS: dict[str, tuple[list[FirstStage], list[float], int]] = {
    "sum": ([dense(), Lexical(PASSAGES, QUERIES)], [2.0, 0.3], 1000),
    "sum of few": ([Lexical(PASSAGES, QUERIES), dense(seed=2), dense()], [0.3, 0.7, 1.5], 5),
}
"""The parts of a sum, their weights, and how many passages of each are looked at."""
STAGES: dict[str, FirstStage] = {
    "dense": dense(),
    "lexical": Lexical(PASSAGES, QUERIES),
    **{name: WeightedSum(parts, weights, first) for name, (parts, weights, first) in SUMS.items()},
}


def all_scores(stage: FirstStage) -> np.ndarray:
    """The scores of all pairs; shape (queries, passages)."""
    pairs = np.repeat(ALL, len(CORPUS)), np.tile(CORPUS, len(ALL))
    return stage.scores(*pairs).reshape(len(ALL), len(CORPUS))


def found(name: str) -> np.ndarray:
    """Which passages a stage can find at all; shape (queries, passages)."""
    if name not in SUMS:
        return all_scores(STAGES[name]) != 0
    parts, _, first = SUMS[name]
    mask = np.zeros((len(ALL), len(CORPUS)), dtype=bool)
    for part in parts:
        positions = part.search(ALL, first, label="test").positions
        row, column = np.nonzero(positions >= 0)
        mask[row, positions[row, column]] = True
    return mask


@pytest.mark.parametrize("name", STAGES)
def test_search_scores_and_ranks_agree_to_the_bit(name):
    stage, scores = STAGES[name], all_scores(STAGES[name])
    seen = np.where(found(name), scores, -np.inf)
    for depth in (1, 10, 500):
        ranking = stage.search(ALL, depth, label="test")
        there = ranking.positions >= 0
        row = np.nonzero(there)[0]
        np.testing.assert_array_equal(ranking.scores[there], scores[row, ranking.positions[there]])
        assert np.isneginf(ranking.scores[~there]).all()
        np.testing.assert_array_equal(there.sum(axis=1), np.minimum(depth, np.isfinite(seen).sum(axis=1)))
        # no passage that was left out is better than the last one of the ranking
        left_out = seen.copy()
        left_out[row, ranking.positions[there]] = -np.inf
        full = there.all(axis=1)
        assert (left_out[full].max(axis=1) <= ranking.scores[full, -1]).all()
        assert (np.diff(np.where(there, ranking.scores, -1e9), axis=1) <= 0).all()
    ranks = stage.ranks(np.repeat(ALL, len(CORPUS)), np.tile(CORPUS, len(ALL))).reshape(scores.shape)
    np.testing.assert_array_equal(ranks, (seen[:, None, :] > scores[:, :, None]).sum(axis=2) + 1)


@pytest.mark.parametrize("name", STAGES)
def test_queries_may_come_in_any_order_again_and_not_at_all(name, monkeypatch):
    monkeypatch.setattr(retrievers, "QUERIES", 3)
    monkeypatch.setattr(retrievers, "SUMMED_QUERIES", 2)
    stage = STAGES[name]
    whole = stage.search(ALL, 8, label="test")
    some = np.array([5, 0, 0, 6, 2])
    part = stage.search(some, 8, label="test")
    np.testing.assert_array_equal(part.positions, whole.positions[some])
    np.testing.assert_array_equal(part.scores, whole.scores[some])
    np.testing.assert_array_equal(stage.scores(some, some), all_scores(stage)[some, some])
    each = [stage.ranks(np.array([query]), np.array([query])).item() for query in some]
    assert stage.ranks(some, some).tolist() == each
    none = np.empty(0, dtype=np.int64)
    assert stage.search(none, 8, label="test").positions.shape == (0, 8)
    assert stage.scores(none, none).shape == stage.ranks(none, none).shape == (0,)


def test_depth_beyond_the_corpus_finds_each_passage_once():
    assert (np.sort(dense().search(ALL, 1000, label="test").positions, axis=1) == CORPUS).all()
    for name, stage in STAGES.items():
        for row, can in zip(stage.search(ALL, 1000, label="test").positions, found(name), strict=True):
            assert sorted(row[row >= 0]) == np.flatnonzero(can).tolist()


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


def test_words_score_the_same_bits_for_few_and_for_many_passages_of_a_query():
    stage = Lexical(PASSAGES, QUERIES)
    assert len(PASSAGES) >= MANY
    many = all_scores(stage)
    for first in range(0, len(CORPUS), MANY // 4):
        some = CORPUS[first : first + MANY // 4]
        few = stage.scores(np.repeat(ALL, len(some)), np.tile(some, len(ALL)))
        np.testing.assert_array_equal(few, many[:, some].ravel())
    mixed = np.concatenate([np.zeros(len(CORPUS), np.int64), ALL]), np.concatenate([CORPUS, ALL])
    np.testing.assert_array_equal(stage.scores(*mixed), many[mixed])


def test_sum_orders_all_passages_by_the_weighted_scores_of_its_parts():
    parts, (weight, other), _ = SUMS["sum"]
    expected = weight * all_scores(parts[0]).astype(float) + other * all_scores(parts[1]).astype(float)
    ranking = STAGES["sum"].search(ALL, len(CORPUS), label="test")
    np.testing.assert_allclose(ranking.scores, -np.sort(-expected, axis=1), rtol=1e-5)
    np.testing.assert_allclose(ranking.scores, np.take_along_axis(expected, ranking.positions, axis=1), rtol=1e-5)
    alone = parts[0].search(ALL, len(CORPUS), label="test").positions
    assert (ranking.positions[:, 0] != alone[:, 0]).any()


def test_weight_of_zero_leaves_a_retriever_out():
    words, vectors = Lexical(PASSAGES, QUERIES), dense()
    expected, result = (
        stage.search(ALL, 30, label="test") for stage in (vectors, WeightedSum([words, vectors], [0, 1]))
    )
    np.testing.assert_array_equal(result.positions, expected.positions)
    np.testing.assert_array_equal(result.scores, expected.scores)
    expected, result = (stage.search(ALL, 30, label="test") for stage in (words, WeightedSum([words, vectors], [1, 0])))
    there = expected.positions >= 0
    np.testing.assert_array_equal(result.positions[there], expected.positions[there])
    assert (result.scores[~there] == 0).all()  # passages without a word of the query come last


def test_passage_that_one_retriever_finds_gets_the_scores_of_all():
    stage = WeightedSum([line(5, 4, 3, 2, 1), line(1, 2, 4, 0, 8)], [1, 2], first=1)
    ranking = stage.search(np.array([0]), 4, label="test")
    assert ranking.positions.tolist() == [[4, 0]]  # no more than all of them find
    assert ranking.scores.tolist() == [[17, 7]]
    pairs = np.zeros(5, dtype=np.int64), np.arange(5)
    assert stage.scores(*pairs).tolist() == [7, 8, 11, 2, 17]
    assert stage.ranks(*pairs).tolist() == [2, 2, 2, 3, 1]  # among the two that are looked at


def test_equal_sums_come_by_position_from_the_last_and_share_a_rank():
    stage = WeightedSum([line(3, 1, 2, 2, 0), line(0, 2, 1, 1, 0)], [1, 1])
    ranking = stage.search(np.array([0]), 9, label="test")
    assert ranking.positions[0, :5].tolist() == [3, 2, 1, 0, 4]
    assert ranking.scores[0, :5].tolist() == [3, 3, 3, 3, 0]
    assert (ranking.positions[0, 5:] == -1).all()
    assert stage.ranks(np.zeros(5, dtype=np.int64), np.arange(5)).tolist() == [1, 1, 1, 1, 5]


def test_vectors_of_two_models_are_an_error_of_one_line():
    passages = embed_letters(PASSAGES)
    with pytest.raises(UserError, match="passages have 12 dimensions and those of the queries 5; embed both"):
        Dense(passages, embed_letters(QUERIES)[:, :5], index.build("flat", passages, queries=7))


def test_query_vector_that_is_no_vector_is_an_error_that_names_its_row():
    passages, queries = embed_letters(PASSAGES), embed_letters(QUERIES)
    queries[4, 2] = np.nan
    with pytest.raises(UserError, match="vectors of the queries: row 4 "):
        Dense(passages, queries, index.build("flat", passages, queries=7))
