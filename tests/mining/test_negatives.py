import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from reranker.common.artifacts import Tables
from reranker.common.errors import UserError
from reranker.data.sources import pydocs
from reranker.mining.false_negatives import Guards
from reranker.mining.judgments import by_place, contains, entries
from reranker.mining.negatives import REASONS, Filters, Mined, Pool, choose, lots, mine, rescore, retrieve
from reranker.retrieval import index
from reranker.retrieval.retrievers import Dense

OPEN = Filters(2, 0, 100, "top")
OFF = {"by_group": False, "similarity": None, "containment": None}


def tables(right: dict[str, dict[str, int] | list[str]], passages: int, groups: dict[str, str] | None = None) -> Tables:
    """Queries with their judged passages, grouped by the first that they share; each passage is three letters."""
    names = [f"p{at}" for at in range(passages)]
    found = {query: dict.fromkeys(told, 1) if isinstance(told, list) else told for query, told in right.items()}
    judgments = pd.DataFrame(
        [(query, passage, relevance) for query, told in found.items() for passage, relevance in told.items()],
        columns=["query_id", "passage_id", "relevance"],
    )
    group = [next(other for other in found if {*found[other]} & {*told}) for told in found.values()]
    return Tables(
        pd.DataFrame({"passage_id": names, "text": [chr(97 + at) * 3 for at in range(passages)], "group": names}),
        pd.DataFrame({"query_id": list(found), "text": list(found), "group": group, "split": "train"}),
        judgments,
    )


class Listed:
    """A first stage whose score of a pair is given: 1 less a tenth for each rank."""

    def __init__(self, data: Tables, ranked: dict[str, list[str]]) -> None:
        place = {name: at for at, name in enumerate(data.passages["passage_id"])}
        self._ranked = [[place[name] for name in ranked.get(query, [])] for query in data.queries["query_id"]]

    def search(self, queries: np.ndarray, depth: int, *, label: str) -> Pool:
        positions = np.full((len(queries), depth), -1, np.int64)
        for row, query in enumerate(queries):
            found = self._ranked[query][:depth]
            positions[row, : len(found)] = found
        scores = np.where(positions < 0, -np.inf, 1 - (np.arange(depth) + 1) / 10).astype(np.float32)
        return type("Found", (), {"positions": positions, "scores": scores})

    def scores(self, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        pairs = zip(queries, passages, strict=True)
        ranks = [(self._ranked[q].index(p) if p in self._ranked[q] else 19) + 1 for q, p in pairs]
        return 1 - np.array(ranks, float) / 10


def guards(data: Tables, **on: object) -> Guards:
    vectors = np.eye(len(data.passages), dtype=np.float32)
    groups = pd.factorize(data.passages["group"])[0].astype(np.int64)
    return Guards(groups, vectors, data.passages["text"].tolist(), **(OFF | on))


def mined(
    right: dict[str, dict[str, int] | list[str]],
    ranked: dict[str, list[str]],
    filters: Filters = OPEN,
    *,
    passages: int = 8,
    number: int = 9,
    random_share: float = 0.0,
    seed: int = 1,
    **on: object,
) -> Mined:
    data = tables(right, passages)
    stage, known = Listed(data, ranked), by_place(data)
    pool = retrieve(stage, np.arange(len(right)), known, filters, number)
    ids = lots(data.queries["query_id"]), lots(data.passages["passage_id"])
    return mine(
        pool,
        stage.scores,
        known,
        filters,
        guards(data, **on),
        random_share=random_share,
        lots=ids,
        seed=seed,
    )


def listed(result: Mined, query: int = 0) -> list[tuple[str, str]]:
    rows = result.rows[result.rows["query"] == query]
    return [(f"p{place}", kind) for place, kind in zip(rows["passage"], rows["kind"], strict=True)]


def hard(result: Mined) -> list[str]:
    return [passage for passage, kind in listed(result) if kind == "hard"]


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"absolute_margin": 0.15}, ["p4", "p5"]),  # the right passage has 0.7
        ({"absolute_margin": 0.0}, ["p3", "p4", "p5"]),
        ({"absolute_margin": -0.15}, ["p1", "p3", "p4", "p5"]),
        ({"relative_margin": 0.2}, ["p4", "p5"]),
        ({"relative_margin": 0.0}, ["p3", "p4", "p5"]),
        ({"max_score": 0.65}, ["p3", "p4", "p5"]),
        ({"min_score": 0.55}, ["p0", "p1", "p3"]),
    ],
    ids=str,
)
def test_filter_refuses_beyond_its_limit_and_is_counted(filters, kept):
    ranked = {"q": ["p0", "p1", "p2", "p3", "p4", "p5"]}
    result = mined({"q": ["p2"]}, ranked, OPEN._replace(num_negatives=9, **filters))
    assert hard(result) == kept
    [name] = filters
    assert result.refused() == dict.fromkeys(REASONS, 0) | {name: 5 - len(kept)}


def test_candidate_above_its_right_passage_is_taken_without_filters():
    assert hard(mined({"q": ["p1"]}, {"q": ["p0", "p1", "p2"]})) == ["p0", "p2"]


def test_margin_is_kept_from_the_lowest_score_of_a_right_passage():
    ranked = {"q": ["p0", "p1", "p2", "p3", "p4"]}
    assert hard(mined({"q": ["p0", "p3"]}, ranked, OPEN._replace(absolute_margin=0.0))) == ["p4"]


def test_each_guard_refuses_its_own_candidate_and_the_first_reason_counts():
    right = {"q": ["p0"], "r": ["p0", "p1"]}
    data = tables(right, 6)
    data.passages.loc[2, "group"] = "p0"
    texts = ["one two three four five", "", "", "", "see one two three four", "something else entirely here now"]
    known = by_place(data)
    ranked = {"q": ["p0", "p1", "p2", "p3", "p4", "p5"], "r": []}
    stage = Listed(data, ranked)
    vectors = np.eye(6, dtype=np.float32)
    vectors[3] = vectors[0]
    on = Guards(pd.factorize(data.passages["group"])[0].astype(np.int64), vectors, texts, True, 0.95, 0.6)
    pool = retrieve(stage, np.array([0]), known, OPEN, 1)
    filters = OPEN._replace(max_score=0.45)
    ids = np.zeros(2, np.uint64), np.zeros(6, np.uint64)
    result = mine(pool, stage.scores, known, filters, on, random_share=0.0, lots=ids, seed=1)
    assert hard(result) == ["p5"]
    expected = {"group_positive": 1, "near_duplicate": 1, "similar": 1, "contained": 1}
    assert result.refused() == dict.fromkeys(REASONS, 0) | expected
    off = on._replace(**OFF)
    assert hard(mine(pool, stage.scores, known, OPEN, off, random_share=0.0, lots=ids, seed=1)) == ["p1", "p2"]


def chosen(usable: list[int], filters: Filters, queries: int = 1, seed: int = 0) -> list[list[int]]:
    """Columns that are taken of each row."""
    matrix = np.tile(np.array(usable, bool), (queries, 1))
    drawn = np.random.default_rng(seed).random(matrix.shape)
    return [np.flatnonzero(row).tolist() for row in choose(matrix, filters, drawn)]


@pytest.mark.parametrize("sampling", ["top", "random", "buckets"])
def test_range_counts_what_nothing_refuses(sampling):
    filters = OPEN._replace(num_negatives=3, range_min=1, range_max=4, sampling=sampling)
    assert chosen([0, 1, 0, 1, 1, 1, 1], filters) == [[3, 4, 5]]


def test_top_takes_the_first():
    assert chosen([0, 1, 0, 1, 1, 1], OPEN) == [[1, 3]]


@pytest.mark.parametrize("sampling", ["top", "random", "buckets"])
def test_query_without_enough_candidates_gets_those_there_are(sampling):
    assert chosen([0, 0, 1], OPEN._replace(sampling=sampling, num_negatives=2)) == [[2]]
    assert chosen([0, 0, 0], OPEN._replace(sampling=sampling, num_negatives=2)) == [[]]


def test_random_choice_reaches_every_candidate_about_equally():
    filters = OPEN._replace(sampling="random")
    counts = np.bincount(np.concatenate(chosen([1] * 5, filters, queries=500)))
    assert counts.sum() == 1000
    assert ((counts > 150) & (counts < 250)).all()


def test_buckets_give_one_of_each_part_of_the_range():
    filters = OPEN._replace(sampling="buckets", num_negatives=3, range_min=1, range_max=10)
    for row in chosen([1] * 20, filters, queries=50):
        first, second, third = row
        assert 1 <= first <= 3 < second <= 6 < third <= 9
    seen = {place for row in chosen([1] * 20, filters, queries=200) for place in row}
    assert seen == set(range(1, 10))


RANKED = {f"q{at}": [f"p{(at + step) % 8}" for step in range(8)] for at in range(8)}
RIGHT = {f"q{at}": [f"p{at}"] for at in range(8)}
RANDOM = OPEN._replace(sampling="random", num_negatives=3)


def test_random_choice_repeats_with_its_seed_and_changes_with_it():
    first, again, other = (mined(RIGHT, RANKED, RANDOM, seed=seed).rows for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


@pytest.mark.parametrize("random_share", [0.0, 0.4, 1.0])
def test_choice_for_a_query_does_not_depend_on_the_others(random_share):
    together = mined(RIGHT, RANKED, RANDOM, random_share=random_share)
    alone = mined({"q3": RIGHT["q3"]}, RANKED, RANDOM, random_share=random_share)
    assert listed(together, 3) == listed(alone)


def test_random_negatives_take_their_share_and_hit_neither_right_nor_hard_ones():
    filters = OPEN._replace(num_negatives=4)
    result = mined(RIGHT, RANKED, filters, random_share=0.5, passages=30)
    for query in range(8):
        kinds = [kind for _, kind in listed(result, query)]
        assert kinds == ["positive", "hard", "hard", "random", "random"]
    assert not result.rows.duplicated(["query", "passage"]).any()
    only = mined(RIGHT, RANKED, filters, random_share=1.0, passages=30)
    assert set(only.rows["kind"]) == {"positive", "random"}


def test_random_negatives_are_guarded_too():
    right = {"q": ["p0"], "r": ["p0", *[f"p{at}" for at in range(1, 7)]]}
    result = mined(right, {"q": ["p0"]}, OPEN._replace(num_negatives=8), random_share=1.0, by_group=True)
    assert {passage for passage, kind in listed(result) if kind == "random"} <= {"p7"}


def test_query_whose_candidates_are_all_refused_gets_random_ones():
    result = mined({"q": ["p0"]}, {"q": ["p0", "p1", "p2"]}, OPEN._replace(max_score=0.1))
    assert [kind for _, kind in listed(result)] == ["positive", "random", "random"]


def test_query_whose_right_passage_was_not_retrieved_is_left_out_and_the_next_one_taken():
    ranked = {"q": ["p1", "p2"], "r": ["p0", "p3"], "s": ["p4", "p0"]}
    result = mined({"q": ["p0"], "r": ["p3"], "s": ["p4"]}, ranked, number=1)
    assert result.rows["query"].unique().tolist() == [1]


def test_right_passage_behind_the_range_counts_as_not_retrieved():
    ranked = {"q": ["p1", "p2", "p0"], "r": ["p1", "p3"]}
    result = mined({"q": ["p0"], "r": ["p3"]}, ranked, OPEN._replace(num_negatives=1, range_max=2))
    assert result.rows["query"].unique().tolist() == [1]


def test_query_that_brings_wrong_passages_is_taken_wherever_its_right_one_is():
    result = mined({"q": {"p0": 1, "p6": 0}}, {"q": ["p1", "p2"]})
    assert listed(result) == [("p0", "positive"), ("p6", "judged"), ("p1", "hard")]


def test_query_without_a_right_passage_is_left_out():
    assert mined({"q": {"p1": 0}, "r": ["p2"]}, {"q": ["p1"], "r": ["p2", "p3"]}).rows["query"].unique().tolist() == [1]


@pytest.mark.parametrize("right", [{"q": {"p1": 0}, "r": {"p3": 0}}, {"q": ["p7"], "r": ["p6"]}], ids=["none", "far"])
def test_no_query_with_a_right_passage_in_the_range_is_an_error_of_one_line(right):
    with pytest.raises(UserError, match=r"^params.yaml: range_max: no training query has a right passage among the "):
        mined(right, {"q": ["p1", "p2"], "r": ["p3"]})


def test_right_passage_is_the_most_relevant_and_then_the_one_with_the_highest_score():
    ranked = {"q": ["p0", "p1", "p2", "p3", "p4"]}
    result = mined({"q": {"p1": 1, "p2": 2, "p3": 2}}, ranked)
    assert listed(result) == [("p2", "positive"), ("p1", "graded"), ("p0", "hard"), ("p4", "hard")]
    assert result.rows["relevance"].tolist() == [2, 1, 0, 0]


def test_passages_judged_to_be_wrong_come_first_whatever_their_rank_and_the_guards():
    right = {"q": {"p0": 1, "p3": 0, "p6": 0, "p1": 0}}
    result = mined(right, {"q": ["p0", "p1", "p2", "p3"]}, OPEN._replace(num_negatives=4, max_score=0.0))
    assert listed(result) == [("p0", "positive"), ("p1", "judged"), ("p3", "judged"), ("p6", "judged")]


def test_contains_and_entries_agree_with_the_dense_matrix():
    generator = np.random.default_rng(3)
    dense = generator.random((20, 30)) < 0.1
    matrix = csr_array(dense.astype(np.int32))
    rows = generator.integers(0, 20, 50)
    columns = generator.integers(-1, 30, (50, 7))
    expected = dense[rows[:, None], columns] & (columns >= 0)
    assert (contains(matrix, rows, columns) == expected).all()
    of, at = entries(matrix, rows)
    assert list(zip(of, at, strict=True)) == list(zip(*np.nonzero(dense[rows]), strict=True))
    empty = csr_array((20, 30), dtype=np.int32)
    assert not contains(empty, rows, columns).any()


def test_new_scores_put_the_candidates_into_another_order():
    pool = Pool(np.array([4, 5]), np.array([[0, 1, 2], [2, 1, -1]]), np.array([[3, 2, 1], [3, 2, -np.inf]], "f4"))
    new = rescore(pool, lambda of, at: of * 10.0 + at)
    assert new.positions.tolist() == [[2, 1, 0], [2, 1, -1]]
    assert new.scores.tolist() == [[42, 41, 40], [52, 51, -np.inf]]


@pytest.fixture(scope="module")
def docstrings() -> tuple[Tables, np.ndarray, np.ndarray]:
    """Real queries, some of them with several right passages, and their vectors."""
    from reranker.inference.loading import load_retriever

    examples = [example for part in pydocs.read(["networkx"]) for example in part.examples][:400]
    texts = sorted({example.passage for example in examples})
    asked = sorted({example.query for example in examples})[:300]
    names = {text: f"p{at:03}" for at, text in enumerate(texts)}
    pairs = sorted({(e.query, names[e.passage]) for e in examples if e.query in asked})
    judgments = pd.DataFrame(pairs, columns=["query_id", "passage_id"]).assign(relevance=1)
    more = judgments[:100].assign(passage_id=judgments["passage_id"][100:200].to_numpy())
    judgments = pd.concat([judgments, more]).drop_duplicates(["query_id", "passage_id"], ignore_index=True)
    data = Tables(
        pd.DataFrame({"passage_id": list(names.values()), "text": texts, "group": list(names.values())}),
        pd.DataFrame({"query_id": asked, "text": asked, "group": asked, "split": "train"}),
        judgments,
    )
    model = load_retriever("bundled/static-256")
    return data, *(model.encode(part, normalize_embeddings=True, show_progress_bar=False) for part in (texts, asked))


@pytest.mark.slow
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"absolute_margin": 0.05},
        {"relative_margin": 0.1},
        {"max_score": 0.6},
        {"min_score": 0.5},
        {"range_min": 3, "range_max": 9},
        {"range_min": 2, "absolute_margin": 0.0, "max_score": 0.7, "min_score": 0.3},
    ],
    ids=str,
)
def test_negatives_are_those_of_mine_hard_negatives_row_for_row(docstrings, filters):
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    from reranker.inference.loading import load_retriever

    data, passages, queries = docstrings
    filters = {"num_negatives": 3, "range_max": 20} | filters
    names = data.passages.set_index("passage_id")["text"]
    pairs = Dataset.from_dict(
        {"query": data.judgments["query_id"].tolist(), "answer": data.judgments["passage_id"].map(names).tolist()}
    )
    found = mine_hard_negatives(
        pairs,
        load_retriever("bundled/static-256"),
        corpus=names.tolist(),
        output_format="labeled-pair",
        use_faiss=True,
        verbose=False,
        **filters,
    )
    expected = {(row["query"], row["answer"]) for row in found if row["label"] == 0}

    stage = Dense(passages, queries, index.build("flat", passages, queries=len(queries)))
    known = by_place(data)
    wanted = OPEN._replace(**filters)
    most = int(np.diff(known.right.indptr).max())
    everything = np.arange(len(queries))
    ranking = stage.search(everything, wanted.range_max + most, label="")
    pool = Pool(everything, ranking.positions, ranking.scores)
    ids = lots(data.queries["query_id"]), lots(data.passages["passage_id"])
    result = mine(pool, stage.scores, known, wanted, guards(data), random_share=0.0, lots=ids, seed=1)
    ours = result.rows[result.rows["kind"] == "hard"]
    texts, asked = data.passages["text"], data.queries["text"]
    assert {(asked[q], texts[p]) for q, p in zip(ours["query"], ours["passage"], strict=True)} == expected
    assert len(expected) > 100
