from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
import torch

from reranker.common.errors import UserError
from reranker.retrieval import exact_search
from reranker.retrieval.exact_search import Exact, inner_products, rescored
from reranker.retrieval.index import Flat, build, choose, measured_recall
from reranker.retrieval.ranking import Ranking

NAMES = ["flat", "hnsw", "ivf_flat", "ivf_pq", "auto"]


def vectors(number: int, dimensions: int, seed: int) -> np.ndarray:
    """Vectors of length 1 in 20 clusters, as embeddings of texts are, with every tenth one there twice."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(20, dimensions))
    drawn = generator.normal(size=(number, dimensions)) + centres[generator.integers(20, size=number)]
    drawn[::10] = drawn[1::10][: len(drawn[::10])] if number > 10 else drawn[::10]
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype("float32")


def brute_force(passages: np.ndarray, queries: np.ndarray, depth: int) -> Ranking:
    """Every pair scored on its own; equal scores by position, from the last to the first."""
    places = np.arange(len(passages))
    scores = np.stack(
        [inner_products(queries, np.full_like(places, row), passages, places) for row in range(len(queries))]
    )
    best = np.lexsort((np.broadcast_to(-places, scores.shape), -scores), axis=1)[:, :depth]
    return Ranking(best, np.take_along_axis(scores, best, axis=1))


def assert_same(found: Ranking, expected: Ranking) -> None:
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("search", [Exact, Flat])
@pytest.mark.parametrize(
    ("number", "dimensions", "depth"),
    [(1, 3, 1), (50, 8, 12), (50, 8, 50), (999, 5, 31), (3000, 64, 130), (900, 4, 899)],
)
def test_exact_search_finds_what_brute_force_finds(search, number, dimensions, depth):
    passages, queries = vectors(number, dimensions, 2), vectors(37, dimensions, 3)
    assert_same(search(passages).search(queries, depth), brute_force(passages, queries, depth))


def test_exact_search_looks_at_every_part_of_a_large_corpus(monkeypatch):
    monkeypatch.setattr(exact_search, "WIDTH", 64)
    passages, queries = vectors(1000, 16, 2), vectors(20, 16, 3)
    for depth in (5, 64, 300):
        assert_same(Exact(passages).search(queries, depth), brute_force(passages, queries, depth))


def test_exact_search_ranks_negative_products_and_vectors_of_any_length():
    generator = np.random.default_rng(4)
    passages = (-np.abs(vectors(500, 16, 2)) * generator.uniform(0.01, 100, size=(500, 1))).astype("float32")
    queries = np.abs(vectors(30, 16, 3)) * 7
    assert_same(Exact(passages).search(queries, 40), brute_force(passages, queries, 40))


def test_products_that_bfloat16_cannot_tell_apart_are_still_ranked_exactly():
    generator = np.random.default_rng(5)
    passages = (1 + generator.uniform(-1e-4, 1e-4, size=(2000, 32))).astype("float32")
    queries = vectors(20, 32, 3)
    assert len(np.unique((queries @ passages.T).astype(np.float16))) < 500
    assert_same(Exact(passages).search(queries, 10), brute_force(passages, queries, 10))


def test_query_without_direction_finds_the_last_passages_and_spoils_no_other(monkeypatch):
    sizes = []

    def watched(positions: np.ndarray, *others: object) -> Ranking:
        sizes.append(positions.size)
        return rescored(positions, *others)

    def watched_too(grouped: torch.Tensor, reach: np.ndarray, *others: object) -> object:
        sizes.append(reach.sum() * grouped.shape[1] * (len(reach) > 1))
        return reaching(grouped, reach, *others)

    reaching = exact_search._reaching
    monkeypatch.setattr(exact_search, "_reaching", watched_too)
    monkeypatch.setattr(exact_search, "CONTENDERS", 3000)  # two queries that tie with all passages are too many at once
    monkeypatch.setattr(exact_search, "rescored", watched)
    passages, queries = vectors(2000, 16, 2), vectors(40, 16, 3)
    queries[[3, 20]] = 0
    found = Exact(passages).search(queries, 7)
    assert_same(found, brute_force(passages, queries, 7))
    assert found.positions[3].tolist() == [1999, 1998, 1997, 1996, 1995, 1994, 1993]
    assert max(sizes) <= 3000


def test_exact_search_agrees_with_faiss():
    passages, queries = vectors(5000, 256, 2)[1::10], vectors(60, 256, 3)
    lookup = faiss.IndexFlatIP(256)
    lookup.add(passages)
    scores, positions = lookup.search(queries, 31)
    found = Exact(passages).search(queries, 31)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    assert (found.positions == positions).mean() > 0.999


def test_number_of_threads_stays_what_it_was():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Exact(vectors(50, 8, 2)).search(vectors(3, 8, 3), 4)
        with ThreadPoolExecutor(1) as pool:
            assert [torch.get_num_threads(), pool.submit(torch.get_num_threads).result()] == [2, 2]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["hnsw", "ivf_flat", "ivf_pq"])
def test_same_passages_give_the_same_index_to_the_byte(name):
    passages = vectors(4000, 32, 2)
    first, second = (faiss.serialize_index(build(name, passages, queries=1)._index) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_index_returns_exact_scores_best_first(name):
    passages, queries = vectors(4000, 32, 2), vectors(50, 32, 3)
    found = build(name, passages, queries=50).search(queries, 20)
    row = np.repeat(np.arange(50), 20)
    np.testing.assert_array_equal(found.scores.ravel(), inner_products(queries, row, passages, found.positions.ravel()))
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert all(len(set(positions)) == 20 for positions in found.positions.tolist())


@pytest.mark.parametrize("name", NAMES)
def test_index_finds_most_of_the_exact_first_passages(name):
    passages, queries = vectors(6000, 32, 2), vectors(100, 32, 3)
    assert measured_recall(build(name, passages, queries=100), passages, queries, 100, sample=100) >= 0.95


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [1, 5, 1200])
def test_index_of_any_size_can_return_the_whole_corpus(name, number):
    found = build(name, vectors(number, 8, 2), queries=3).search(vectors(3, 8, 3), number)
    assert found.positions.shape == found.scores.shape == (3, number)
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() > 0.9 * number for row in found.positions)
    np.testing.assert_array_equal(found.positions < 0, np.isneginf(found.scores))


@pytest.mark.parametrize("name", NAMES)
def test_index_takes_no_queries(name):
    assert build(name, vectors(1200, 8, 2), queries=0).search(vectors(3, 8, 3)[:0], 5).positions.shape == (0, 5)


@pytest.mark.parametrize("name", NAMES)
def test_index_reads_vectors_from_a_file(name, tmp_path):
    passages, queries = vectors(1500, 8, 2), vectors(40, 8, 3)
    for file, content in (("passages.npy", passages), ("queries.npy", queries)):
        np.save(tmp_path / file, content)
    mapped = [np.load(tmp_path / file, mmap_mode="r") for file in ("passages.npy", "queries.npy")]
    found = build(name, mapped[0], queries=40).search(mapped[1], 6)
    assert_same(found, build(name, passages, queries=40).search(queries, 6))


def test_index_says_what_it_is():
    passages = vectors(2500, 8, 2)
    assert build("auto", passages, queries=10).name == "flat"
    assert build("hnsw", passages, queries=10).name == "hnsw"
    lists = build("ivf_pq", passages, queries=10)
    assert (lists.name, lists.settings) == ("ivf_pq", {"nlist": 100, "nprobe": 25, "M": 8, "refined": 4})
    assert build("ivf_flat", passages[:999], queries=10).name == "flat"


def test_auto_is_exact_until_exact_search_takes_long():
    assert choose(20_661, 256, queries=18_782) == "flat"
    assert choose(200_000, 256, queries=50_000) == "flat"
    assert choose(1_000_000, 256, queries=100_000) == "ivf_pq"
    assert choose(100_000, 256, queries=100_000_000) == "flat"


def test_measured_recall_is_the_share_of_the_exact_first_passages():
    class Half:
        """Finds every other one."""

        name, settings = "half", {}

        def search(self, queries: np.ndarray, depth: int) -> Ranking:
            found = Exact(passages).search(queries, depth)
            return rescored(np.where(np.arange(depth) % 2, found.positions, -1), queries, passages, depth)

    passages, queries = vectors(300, 8, 2)[:30], vectors(50, 8, 3)
    assert measured_recall(Half(), passages, queries, 10, sample=20) == 0.5
    assert measured_recall(Exact(passages), passages, queries, 1000, sample=500) == 1.0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_vector_that_is_no_vector_is_an_error_that_names_its_row(wrong):
    passages = vectors(1500, 8, 2)
    passages[1203, 5] = wrong
    with pytest.raises(UserError, match=r"vectors of the passages: row 1203 has a value that is no finite number"):
        build("ivf_pq", passages, queries=3)


def test_score_of_a_pair_does_not_depend_on_the_others():
    for dimensions in (3, 64, 256, 300):
        passages, queries = vectors(200, dimensions, 2), vectors(11, dimensions, 3)
        together = rescored(np.tile(np.arange(200), (11, 1)), queries, passages, 200)
        alone = [
            inner_products(queries[row : row + 1].copy(), np.zeros(1, int), passages, together.positions[row, :1])[0]
            for row in range(11)
        ]
        np.testing.assert_array_equal(together.scores[:, 0], np.array(alone))
