import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from reranker.common.artifacts import Tables
from reranker.common.errors import UserError
from reranker.data.sources import pydocs
from reranker.mining.false_negatives import Guards
from reranker.mining.judgments import contains, entries, judgment_matrices
from reranker.mining.negatives import REASONS, Filters, MiningResult, Pool, choose, id_hashes, mine, rescore, retrieve
from reranker.retrieval import index
from reranker.retrieval.ranking import Ranking
from reranker.retrieval.retrievers import Dense

OPEN = Filters(2, 0, 100, "top")
OFF = {"by_group": False, "similarity": None, "containment": None}


def tables(qrels: dict[str, dict[str, int] | list[str]], passages: int) -> Tables:
    """A data set of queries with these judgments; queries that share a judged passage are one group."""
    names = [f"p{at}" for at in range(passages)]
    graded = {query: dict.fromkeys(own, 1) if isinstance(own, list) else own for query, own in qrels.items()}
    judgments = pd.DataFrame(
        [(query, passage, relevance) for query, own in graded.items() for passage, relevance in own.items()],
        columns=["query_id", "passage_id", "relevance"],
    )
    group = [next(other for other in graded if {*graded[other]} & {*own}) for own in graded.values()]
    return Tables(
        pd.DataFrame({"passage_id": names, "text": [chr(97 + at) * 3 for at in range(passages)], "group": names}),
        pd.DataFrame({"query_id": list(graded), "text": list(graded), "group": group, "split": "train"}),
        judgments,
    )


class FixedRetriever:
    """A first-stage retriever with fixed rankings; the score at a rank is 1 - rank / 10."""

    def __init__(self, data: Tables, ranked: dict[str, list[str]]) -> None:
        place = {name: at for at, name in enumerate(data.passages["passage_id"])}
        self._ranked = [[place[name] for name in ranked.get(query, [])] for query in data.queries["query_id"]]

    def search(self, queries: np.ndarray, depth: int, *, label: str) -> Ranking:
        positions = np.full((len(queries), depth), -1, np.int64)
        for row, query in enumerate(queries):
            ranking = self._ranked[query][:depth]
            positions[row, : len(ranking)] = ranking
        scores = np.where(positions < 0, -np.inf, 1 - (np.arange(depth) + 1) / 10).astype(np.float32)
        return Ranking(positions, scores)

    def scores(self, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        pairs = zip(queries, passages, strict=True)
        ranks = [(self._ranked[q].index(p) if p in self._ranked[q] else 19) + 1 for q, p in pairs]
        return 1 - np.array(ranks, float) / 10


def guards(data: Tables, **on: object) -> Guards:
    vectors = np.eye(len(data.passages), dtype=np.float32)
    groups = pd.factorize(data.passages["group"])[0].astype(np.int64)
    return Guards(groups, vectors, data.passages["text"].tolist(), **(OFF | on))


def mine_all(
    qrels: dict[str, dict[str, int] | list[str]],
    ranked: dict[str, list[str]],
    filters: Filters = OPEN,
    *,
    passages: int = 8,
    number: int = 9,
    random_share: float = 0.0,
    seed: int = 1,
    **on: object,
) -> MiningResult:
    data = tables(qrels, passages)
    stage, judgments = FixedRetriever(data, ranked), judgment_matrices(data)
    pool = retrieve(stage, np.arange(len(qrels)), judgments, filters, number)
    ids = id_hashes(data.queries["query_id"]), id_hashes(data.passages["passage_id"])
    on_guards = guards(data, **on)
    return mine(pool, stage.scores, judgments, filters, on_guards, random_share=random_share, id_hashes=ids, seed=seed)


def group(result: MiningResult, query: int = 0) -> list[tuple[str, str]]:
    rows = result.rows[result.rows["query"] == query]
    return [(f"p{place}", kind) for place, kind in zip(rows["passage"], rows["kind"], strict=True)]


def hard(result: MiningResult) -> list[str]:
    return [passage for passage, kind in group(result) if kind == "hard"]


@pytest.mark.parametrize(
    ("filters", "negatives"),
    [
        ({"absolute_margin": 0.15}, ["p4", "p5"]),  # the relevant passage has 0.7
        ({"absolute_margin": 0.0}, ["p3", "p4", "p5"]),
        ({"absolute_margin": -0.15}, ["p1", "p3", "p4", "p5"]),
        ({"relative_margin": 0.2}, ["p4", "p5"]),
        ({"relative_margin": 0.0}, ["p3", "p4", "p5"]),
        ({"max_score": 0.65}, ["p3", "p4", "p5"]),
        ({"min_score": 0.55}, ["p0", "p1", "p3"]),
    ],
    ids=str,
)
def test_filter_refuses_beyond_its_limit_and_is_counted(filters, negatives):
    ranked = {"q": ["p0", "p1", "p2", "p3", "p4", "p5"]}
    result = mine_all({"q": ["p2"]}, ranked, OPEN._replace(num_negatives=9, **filters))
    assert hard(result) == negatives
    [name] = filters
    assert result.refusal_counts() == dict.fromkeys(REASONS, 0) | {name: 5 - len(negatives)}


def test_candidate_above_the_relevant_passage_is_a_negative_without_filters():
    assert hard(mine_all({"q": ["p1"]}, {"q": ["p0", "p1", "p2"]})) == ["p0", "p2"]


def test_margin_is_measured_from_the_lowest_score_of_a_relevant_passage():
    ranked = {"q": ["p0", "p1", "p2", "p3", "p4"]}
    assert hard(mine_all({"q": ["p0", "p3"]}, ranked, OPEN._replace(absolute_margin=0.0))) == ["p4"]


def test_each_guard_refuses_its_own_candidate_and_the_first_reason_counts():
    data = tables({"q": ["p0"], "r": ["p0", "p1"]}, 6)
    data.passages.loc[2, "group"] = "p0"
    texts = ["one two three four five", "", "", "", "see one two three four", "something else entirely here now"]
    judgments = judgment_matrices(data)
    ranked = {"q": ["p0", "p1", "p2", "p3", "p4", "p5"], "r": []}
    stage = FixedRetriever(data, ranked)
    vectors = np.eye(6, dtype=np.float32)
    vectors[3] = vectors[0]
    on = Guards(pd.factorize(data.passages["group"])[0].astype(np.int64), vectors, texts, True, 0.95, 0.6)
    pool = retrieve(stage, np.array([0]), judgments, OPEN, 1)
    filters = OPEN._replace(max_score=0.45)
    ids = np.zeros(2, np.uint64), np.zeros(6, np.uint64)
    result = mine(pool, stage.scores, judgments, filters, on, random_share=0.0, id_hashes=ids, seed=1)
    assert hard(result) == ["p5"]
    expected = {"group_positive": 1, "near_duplicate": 1, "similar": 1, "contained": 1}
    assert result.refusal_counts() == dict.fromkeys(REASONS, 0) | expected
    off = on._replace(**OFF)
    assert hard(mine(pool, stage.scores, judgments, OPEN, off, random_share=0.0, id_hashes=ids, seed=1)) == ["p1", "p2"]


def columns(usable: list[int], filters: Filters, queries: int = 1, seed: int = 0) -> list[list[int]]:
    """The columns that `choose` takes of each row."""
    matrix = np.tile(np.array(usable, bool), (queries, 1))
    draws = np.random.default_rng(seed).random(matrix.shape)
    return [np.flatnonzero(row).tolist() for row in choose(matrix, filters, draws)]


@pytest.mark.parametrize("sampling", ["top", "random", "buckets"])
def test_range_counts_candidates_that_nothing_refuses(sampling):
    filters = OPEN._replace(num_negatives=3, range_min=1, range_max=4, sampling=sampling)
    assert columns([0, 1, 0, 1, 1, 1, 1], filters) == [[3, 4, 5]]


def test_top_takes_the_first():
    assert columns([0, 1, 0, 1, 1, 1], OPEN) == [[1, 3]]


@pytest.mark.parametrize("sampling", ["top", "random", "buckets"])
def test_query_with_few_candidates_gets_all_of_them(sampling):
    assert columns([0, 0, 1], OPEN._replace(sampling=sampling, num_negatives=2)) == [[2]]
    assert columns([0, 0, 0], OPEN._replace(sampling=sampling, num_negatives=2)) == [[]]


def test_random_choice_reaches_every_candidate_about_equally():
    filters = OPEN._replace(sampling="random")
    counts = np.bincount(np.concatenate(columns([1] * 5, filters, queries=500)))
    assert counts.sum() == 1000
    assert ((counts > 150) & (counts < 250)).all()


def test_buckets_give_one_of_each_part_of_the_range():
    filters = OPEN._replace(sampling="buckets", num_negatives=3, range_min=1, range_max=10)
    for row in columns([1] * 20, filters, queries=50):
        first, second, third = row
        assert 1 <= first <= 3 < second <= 6 < third <= 9
    seen = {place for row in columns([1] * 20, filters, queries=200) for place in row}
    assert seen == set(range(1, 10))


RANKED = {f"q{at}": [f"p{(at + step) % 8}" for step in range(8)] for at in range(8)}
RIGHT = {f"q{at}": [f"p{at}"] for at in range(8)}
RANDOM = OPEN._replace(sampling="random", num_negatives=3)


def test_random_choice_repeats_with_its_seed_and_changes_with_it():
    first, again, other = (mine_all(RIGHT, RANKED, RANDOM, seed=seed).rows for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


@pytest.mark.parametrize("random_share", [0.0, 0.4, 1.0])
def test_choice_for_a_query_does_not_depend_on_the_others(random_share):
    together = mine_all(RIGHT, RANKED, RANDOM, random_share=random_share)
    alone = mine_all({"q3": RIGHT["q3"]}, RANKED, RANDOM, random_share=random_share)
    assert group(together, 3) == group(alone)


def test_random_negatives_have_their_share_and_are_neither_relevant_nor_hard():
    filters = OPEN._replace(num_negatives=4)
    result = mine_all(RIGHT, RANKED, filters, random_share=0.5, passages=30)
    for query in range(8):
        kinds = [kind for _, kind in group(result, query)]
        assert kinds == ["positive", "hard", "hard", "random", "random"]
    assert not result.rows.duplicated(["query", "passage"]).any()
    only = mine_all(RIGHT, RANKED, filters, random_share=1.0, passages=30)
    assert set(only.rows["kind"]) == {"positive", "random"}


def test_random_negatives_are_guarded_too():
    qrels = {"q": ["p0"], "r": ["p0", *[f"p{at}" for at in range(1, 7)]]}
    result = mine_all(qrels, {"q": ["p0"]}, OPEN._replace(num_negatives=8), random_share=1.0, by_group=True)
    assert {passage for passage, kind in group(result) if kind == "random"} <= {"p7"}


def test_query_whose_candidates_are_all_refused_gets_random_ones():
    result = mine_all({"q": ["p0"]}, {"q": ["p0", "p1", "p2"]}, OPEN._replace(max_score=0.1))
    assert [kind for _, kind in group(result)] == ["positive", "random", "random"]


def test_query_whose_relevant_passage_was_not_retrieved_is_left_out_and_the_next_one_taken():
    ranked = {"q": ["p1", "p2"], "r": ["p0", "p3"], "s": ["p4", "p0"]}
    result = mine_all({"q": ["p0"], "r": ["p3"], "s": ["p4"]}, ranked, number=1)
    assert result.rows["query"].unique().tolist() == [1]


def test_relevant_passage_behind_the_range_counts_as_not_retrieved():
    ranked = {"q": ["p1", "p2", "p0"], "r": ["p1", "p3"]}
    result = mine_all({"q": ["p0"], "r": ["p3"]}, ranked, OPEN._replace(num_negatives=1, range_max=2))
    assert result.rows["query"].unique().tolist() == [1]


def test_query_with_judged_negatives_is_taken_whatever_the_rank_of_its_relevant_passage():
    result = mine_all({"q": {"p0": 1, "p6": 0}}, {"q": ["p1", "p2"]})
    assert group(result) == [("p0", "positive"), ("p6", "judged"), ("p1", "hard")]


def test_query_without_a_relevant_passage_is_left_out():
    assert mine_all({"q": {"p1": 0}, "r": ["p2"]}, {"q": ["p1"], "r": ["p2", "p3"]}).rows[
        "query"
    ].unique().tolist() == [1]


@pytest.mark.parametrize("qrels", [{"q": {"p1": 0}, "r": {"p3": 0}}, {"q": ["p7"], "r": ["p6"]}], ids=["none", "far"])
def test_no_query_with_a_relevant_passage_in_the_range_is_an_error_of_one_line(qrels):
    with pytest.raises(
        UserError, match=r"^params.yaml: range_max: no training query has a relevant passage among the "
    ):
        mine_all(qrels, {"q": ["p1", "p2"], "r": ["p3"]})


def test_positive_is_the_most_relevant_passage_and_then_the_one_with_the_highest_score():
    ranked = {"q": ["p0", "p1", "p2", "p3", "p4"]}
    result = mine_all({"q": {"p1": 1, "p2": 2, "p3": 2}}, ranked)
    assert group(result) == [("p2", "positive"), ("p1", "graded"), ("p0", "hard"), ("p4", "hard")]
    assert result.rows["relevance"].tolist() == [2, 1, 0, 0]


def test_judged_negatives_come_first_whatever_their_rank_and_the_guards():
    qrels = {"q": {"p0": 1, "p3": 0, "p6": 0, "p1": 0}}
    result = mine_all(qrels, {"q": ["p0", "p1", "p2", "p3"]}, OPEN._replace(num_negatives=4, max_score=0.0))
    assert group(result) == [("p0", "positive"), ("p1", "judged"), ("p3", "judged"), ("p6", "judged")]


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


def test_rescoring_sorts_the_candidates_by_the_new_scores():
    pool = Pool(np.array([4, 5]), np.array([[0, 1, 2], [2, 1, -1]]), np.array([[3, 2, 1], [3, 2, -np.inf]], "f4"))
    new = rescore(pool, lambda of, at: of * 10.0 + at)
    assert new.positions.tolist() == [[2, 1, 0], [2, 1, -1]]
    assert new.scores.tolist() == [[42, 41, 40], [52, 51, -np.inf]]


@pytest.fixture(scope="module")
def docstrings() -> tuple[Tables, np.ndarray, np.ndarray]:
    """Real queries, some with several relevant passages, and the vectors of passages and queries."""
    from reranker.inference.loading import load_retriever

    examples = [example for part in pydocs.read(["networkx"]) for example in part.examples][:400]
    texts = sorted({example.passage for example in examples})
    questions = sorted({example.query for example in examples})[:300]
    names = {text: f"p{at:03}" for at, text in enumerate(texts)}
    pairs = sorted({(e.query, names[e.passage]) for e in examples if e.query in questions})
    judgments = pd.DataFrame(pairs, columns=["query_id", "passage_id"]).assign(relevance=1)
    more = judgments[:100].assign(passage_id=judgments["passage_id"][100:200].to_numpy())
    judgments = pd.concat([judgments, more]).drop_duplicates(["query_id", "passage_id"], ignore_index=True)
    data = Tables(
        pd.DataFrame({"passage_id": list(names.values()), "text": texts, "group": list(names.values())}),
        pd.DataFrame({"query_id": questions, "text": questions, "group": questions, "split": "train"}),
        judgments,
    )
    model = load_retriever("bundled/static-256")
    return data, *(
        model.encode(part, normalize_embeddings=True, show_progress_bar=False) for part in (texts, questions)
    )


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
    theirs = mine_hard_negatives(
        pairs,
        load_retriever("bundled/static-256"),
        corpus=names.tolist(),
        output_format="labeled-pair",
        use_faiss=True,
        verbose=False,
        **filters,
    )
    expected = {(row["query"], row["answer"]) for row in theirs if row["label"] == 0}

    stage = Dense(passages, queries, index.build("flat", passages, queries=len(queries)))
    judgments = judgment_matrices(data)
    our_filters = OPEN._replace(**filters)
    most = int(np.diff(judgments.relevant.indptr).max())
    everything = np.arange(len(queries))
    ranking = stage.search(everything, our_filters.range_max + most, label="")
    pool = Pool(everything, ranking.positions, ranking.scores)
    ids = id_hashes(data.queries["query_id"]), id_hashes(data.passages["passage_id"])
    result = mine(pool, stage.scores, judgments, our_filters, guards(data), random_share=0.0, id_hashes=ids, seed=1)
    ours = result.rows[result.rows["kind"] == "hard"]
    texts, questions = data.passages["text"], data.queries["text"]
    assert {(questions[q], texts[p]) for q, p in zip(ours["query"], ours["passage"], strict=True)} == expected
    assert len(expected) > 100
