import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from reranker.negatives import (
    GUARDS,
    Filters,
    Mined,
    choose,
    choose_random,
    group_positives,
    mine,
    near_duplicate_pairs,
    refusals,
)
from reranker.records import Tables

OPEN = Filters(2, 0, 100, "top", None, None, None, None)


def pairs(*rows: tuple[str, str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples(rows, names=["query_id", "passage_id"])


def reason(score: float, positive: float = 0.8, **filters: float | None) -> str:
    """Why a candidate with this score is refused."""
    pool = pd.DataFrame({"query_id": ["q"], "passage_id": ["p"], "score": [score]}, index=[7])
    refused = refusals(
        pool,
        OPEN._replace(**filters),
        positive_scores=pd.Series({"q": positive, "other": 99.0}),
        group_positives=pairs(("other", "p")),
        near_duplicates=np.array([False]),
    )
    assert refused.index.tolist() == [7]
    return refused.item()


def pool(queries: int = 1, depth: int = 6) -> pd.DataFrame:
    """Candidates p0, p1, … of each query, best first, none of them refused."""
    rows = [(f"q{query}", f"p{at}", 1 - at / 10, at, "") for query in range(queries) for at in range(depth)]
    return pd.DataFrame(rows, columns=["query_id", "passage_id", "score", "position", "reason"])


@pytest.mark.parametrize(
    ("filters", "highest_allowed", "refused"),
    [
        ({"absolute_margin": 0.25}, 0.5, 0.51),
        ({"absolute_margin": 0.0}, 0.75, 0.76),
        ({"absolute_margin": -0.25}, 1.0, 1.01),
        ({"relative_margin": 0.5}, 0.375, 0.38),
        ({"relative_margin": 0.0}, 0.75, 0.76),
        ({"relative_margin": 1.0}, 0.0, 0.01),
        ({"max_score": 0.5}, 0.5, 0.51),
        ({"min_score": 0.5}, 0.5, 0.49),
    ],
)
def test_filter_allows_up_to_its_limit_and_refuses_beyond(filters, highest_allowed, refused):
    [guard] = filters
    assert reason(highest_allowed, positive=0.75, **filters) == ""
    assert reason(refused, positive=0.75, **filters) == guard


def test_relative_margin_is_below_a_negative_score_too():
    assert reason(-1.5, positive=-1.0, relative_margin=0.5) == ""
    assert reason(-1.25, positive=-1.0, relative_margin=0.5) == "relative_margin"
    assert reason(-0.75, positive=-1.0, relative_margin=0.5) == "relative_margin"


def test_candidate_above_its_right_passage_is_allowed_without_filters():
    assert reason(5.0) == ""


def test_each_guard_refuses_its_own_candidate_and_the_first_guard_gives_the_reason():
    candidates = pd.DataFrame(
        {"query_id": ["q"] * 4 + ["r"], "passage_id": list("abcda"), "score": [0.9, 0.9, 0.9, 0.1, 0.1]}
    )
    refused = refusals(
        candidates,
        OPEN._replace(absolute_margin=0.2, max_score=0.5),
        positive_scores=pd.Series({"r": 0.2, "q": 0.8}),
        group_positives=pairs(("q", "a")),
        near_duplicates=np.array([True, True, False, False, False]),
    )
    assert refused.tolist() == ["group_positive", "near_duplicate", "absolute_margin", "", "absolute_margin"]
    assert set(refused) <= {*GUARDS, ""}


def test_top_takes_the_first_that_no_guard_refused():
    table = pool(queries=2)
    table.loc[[0, 2, 7], "reason"] = "max_score"
    chosen = choose(table, OPEN, seed=1)
    assert chosen.columns.tolist() == ["query_id", "passage_id", "score"]
    assert chosen["passage_id"].tolist() == ["p1", "p3", "p0", "p2"]
    assert chosen["query_id"].tolist() == ["q0", "q0", "q1", "q1"]


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_range_counts_from_zero_and_stops_before_its_end(sampling):
    chosen = choose(pool(), OPEN._replace(num_negatives=9, range_min=2, range_max=5, sampling=sampling), seed=1)
    assert sorted(chosen["passage_id"]) == ["p2", "p3", "p4"]


def test_range_counts_refused_candidates_too():
    table = pool()
    table.loc[0, "reason"] = "max_score"
    assert choose(table, OPEN._replace(range_min=1, range_max=3), seed=1)["passage_id"].tolist() == ["p1", "p2"]


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_query_without_enough_candidates_gets_those_there_are(sampling):
    table = pool(queries=2, depth=3)
    table.loc[:4, "reason"] = "near_duplicate"
    chosen = choose(table, OPEN._replace(sampling=sampling), seed=1)
    assert chosen[["query_id", "passage_id"]].to_numpy().tolist() == [["q1", "p2"]]
    assert choose(table.head(3), OPEN._replace(sampling=sampling), seed=1).empty


def test_random_choice_repeats_with_its_seed_and_changes_with_it():
    filters = OPEN._replace(sampling="random", num_negatives=3)
    table = pool(queries=5, depth=20)
    pd.testing.assert_frame_equal(choose(table, filters, seed=3), choose(table, filters, seed=3))
    assert not choose(table, filters, seed=3).equals(choose(table, filters, seed=4))


def test_random_choice_for_a_query_does_not_depend_on_the_others():
    filters = OPEN._replace(sampling="random", num_negatives=3)
    table = pool(queries=5, depth=20)
    together = choose(table, filters, seed=3)
    alone = choose(table[table["query_id"] == "q3"], filters, seed=3)
    pd.testing.assert_frame_equal(together[together["query_id"] == "q3"].reset_index(drop=True), alone)


def test_random_choice_reaches_every_candidate_about_equally():
    filters = OPEN._replace(sampling="random")
    table = pool(queries=100, depth=5)
    counts = pd.concat([choose(table, filters, seed=seed) for seed in range(5)])["passage_id"].value_counts()
    assert counts.sum() == 1000
    assert counts.between(150, 250).all()
    assert len(counts) == 5


def test_random_negatives_never_hit_a_forbidden_pair():
    queries, passages = pd.Series(["q1", "q2"]), pd.Series(list("abcd"))
    forbidden = pairs(("q1", "a"), ("q1", "b"), ("q2", "c"))
    for seed in range(20):
        drawn = choose_random(queries, passages, forbidden, 5, seed=seed)
        assert not pd.MultiIndex.from_frame(drawn).isin(forbidden).any()
        assert not drawn.duplicated().any()
        assert (drawn["query_id"].value_counts() <= 5).all()


def test_random_negatives_repeat_with_their_seed():
    queries, passages = pd.Series([f"q{number}" for number in range(9)]), pd.Series(list("abcdefgh"))
    first, again, other = (choose_random(queries, passages, pairs(("q1", "a")), 3, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


def test_no_random_negatives_are_drawn_when_none_are_asked_for():
    assert choose_random(pd.Series(["q"]), pd.Series(["a"]), pairs(("q", "z")), 0, seed=1).empty


def test_near_duplicates_of_a_right_passage_are_found_by_group_or_by_vector():
    names = ["right", "same", "close", "far", "other"]
    passages = pd.DataFrame({"passage_id": names, "group": ["right", "right", *names[2:]]})
    vectors = np.array([[1, 0], [0, 1], [0.96, 0.28], [0.6, 0.8], [0, 1]], dtype="float32")
    judgments = pd.DataFrame({"query_id": ["q", "r"], "passage_id": ["right", "other"]})
    candidates = pd.DataFrame(
        [("q", "far"), ("q", "close"), ("q", "same"), ("r", "close"), ("r", "same"), ("q", "other")],
        columns=["query_id", "passage_id"],
        index=range(5, 11),
    )
    found = near_duplicate_pairs(candidates, judgments, passages, vectors, 0.95)
    assert found.tolist() == [False, True, True, False, True, False]
    assert near_duplicate_pairs(candidates, judgments, passages, vectors, 0.6).tolist()[0]


def test_near_duplicate_of_any_right_passage_counts():
    passages = pd.DataFrame({"passage_id": ["a", "b", "c"], "group": ["a", "b", "b"]})
    judgments = pd.DataFrame({"query_id": ["q", "q"], "passage_id": ["a", "b"]})
    candidates = pd.DataFrame({"query_id": ["q"], "passage_id": ["c"]})
    vectors = np.eye(3, dtype="float32")
    assert near_duplicate_pairs(candidates, judgments, passages, vectors, 0.9).tolist() == [True]
    assert near_duplicate_pairs(candidates.head(0), judgments, passages, vectors, 0.9).tolist() == []


def tables(right: dict[str, list[str]], passages: int) -> Tables:
    """Queries with their right passages, grouped by the first they share; passages that are not alike."""
    names = [f"p{at}" for at in range(passages)]
    letters = [chr(ord("a") + at) * 3 for at in range(passages)]
    judged = pd.DataFrame(
        [(q, p, 1) for q, found in right.items() for p in found], columns=["query_id", "passage_id", "relevance"]
    )
    groups = [next(other for other in right if {*right[other]} & {*found}) for found in right.values()]
    queries = pd.DataFrame(
        {"query_id": list(right), "text": [f"ask {q}" for q in right], "group": groups, "split": "train"}
    )
    return Tables(pd.DataFrame({"passage_id": names, "text": letters, "group": names}), queries, judged)


def mined(
    right: dict[str, list[str]],
    ranked: dict[str, list[str]],
    filters: Filters = OPEN,
    wrong: dict[str, list[str]] | None = None,
    **other: object,
) -> Mined:
    """Negatives of queries whose vectors are nearest to p7, then p6, …"""
    rows = [(q, p, rank, 1 - rank / 10) for q, found in ranked.items() for rank, p in enumerate(found, 1)]
    options = {"number": 9, "random_negatives": 0, "duplicate_similarity": 0.99, "seed": 1} | other
    data = tables(right, 8)
    judged = pd.DataFrame(
        [(q, p, 0) for q, found in (wrong or {}).items() for p in found],
        columns=["query_id", "passage_id", "relevance"],
    )
    return mine(
        pd.DataFrame(rows, columns=["query_id", "passage_id", "rank", "score"]),
        pd.Series(list(right)),
        data._replace(judgments=pd.concat([data.judgments, judged], ignore_index=True)),
        np.eye(8, dtype="float32"),
        np.tile(np.arange(8, dtype="float32") / 8, (len(right), 1)),
        filters,
        **options,
    )


def test_right_passages_of_a_group_are_those_of_all_its_queries():
    found = group_positives(*tables({"q": ["p0", "p1"], "r": ["p1", "p2"], "s": ["p3"]}, 4)[1:])
    assert sorted(found) == [(q, p) for q in "qr" for p in ("p0", "p1", "p2")] + [("s", "p3")]


def test_group_has_the_first_right_passage_retrieved_and_its_hard_negatives():
    result = mined({"q": ["p1", "p3"]}, {"q": ["p0", "p1", "p2", "p3", "p4"]})
    assert result.rows[["passage_id", "kind"]].to_numpy().tolist() == [
        ["p1", "positive"],
        ["p0", "hard"],
        ["p2", "hard"],
    ]
    assert result.refused == dict.fromkeys(GUARDS, 0)


def test_right_passage_of_a_query_of_the_same_group_is_refused_and_counted():
    result = mined({"q": ["p1"], "r": ["p1", "p2"]}, {"q": ["p1", "p2", "p3"]})
    assert result.rows["passage_id"].tolist() == ["p1", "p3"]
    assert result.refused["group_positive"] == 1


def test_query_whose_right_passage_was_not_retrieved_is_left_out_and_the_next_one_taken():
    ranked = {"q": ["p1", "p2"], "r": ["p0", "p3"], "s": ["p4", "p0"]}
    result = mined({"q": ["p0"], "r": ["p3"], "s": ["p4"]}, ranked, number=1)
    assert result.rows["query_id"].unique().tolist() == ["r"]


def test_query_with_nothing_but_its_right_passage_is_left_out():
    assert mined({"q": ["p0"]}, {"q": ["p0", "p1"]}, OPEN._replace(max_score=0.1)).rows.empty


def test_passages_judged_to_be_wrong_come_first_whatever_their_rank_and_the_guards():
    ranked = {"q": ["p0", "p1", "p2", "p3"]}
    result = mined({"q": ["p0"], "r": ["p7"]}, ranked, OPEN._replace(num_negatives=3), wrong={"q": ["p3", "p6", "p7"]})
    assert result.rows[["passage_id", "kind"]].to_numpy().tolist() == [
        ["p0", "positive"],
        ["p7", "judged"],
        ["p6", "judged"],
        ["p3", "judged"],
    ]
    assert result.rows["score"].tolist() == pytest.approx([0.9, 7 / 8, 6 / 8, 3 / 8])


def test_mined_negatives_fill_up_what_was_judged():
    ranked = {"q": ["p0", "p1", "p2", "p3"]}
    result = mined({"q": ["p0"]}, ranked, OPEN._replace(num_negatives=2, range_max=2), wrong={"q": ["p1"]})
    assert result.rows[["passage_id", "kind"]].to_numpy().tolist() == [
        ["p0", "positive"],
        ["p1", "judged"],
        ["p2", "hard"],
    ]
    assert mined({"q": ["p0"]}, ranked, OPEN._replace(num_negatives=1), wrong={"q": ["p1", "p2"]}).rows[
        "passage_id"
    ].tolist() == ["p0", "p2"]


def test_random_negatives_are_neither_right_nor_hard_negatives():
    right = {"q": ["p0", "p1"], "r": ["p1", "p2"]}
    result = mined(right, {"q": ["p0", "p3"], "r": ["p2", "p4"]}, random_negatives=30)
    easy = result.rows[result.rows["kind"] == "random"].groupby("query_id")["passage_id"].agg(sorted)
    assert easy.to_dict() == {"q": ["p4", "p5", "p6", "p7"], "r": ["p3", "p5", "p6", "p7"]}
    assert not result.rows.duplicated(["query_id", "passage_id"]).any()


NAMES = [f"p{at:02}" for at in range(30)] + [f"q{at}" for at in range(8)]
RIGHT = {f"q{at}": f"p{at:02}" for at in range(8)}


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """One vector per name."""
    vectors = np.random.default_rng(5).normal(size=(len(NAMES), 4)).astype("float32") + 0.5
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def mined_by_sentence_transformers(vectors: np.ndarray, **filters: float) -> list[tuple[str, str]]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from sentence_transformers.util import mine_hard_negatives

    words = Tokenizer(WordLevel({name: at for at, name in enumerate(NAMES)}))
    model = SentenceTransformer(modules=[StaticEmbedding(words, embedding_weights=vectors)], device="cpu")
    pairs = Dataset.from_dict({"query": list(RIGHT), "answer": list(RIGHT.values())})
    found = mine_hard_negatives(pairs, model, corpus=NAMES[:30], output_format="labeled-pair", verbose=False, **filters)
    return [(row["query"], row["answer"]) for row in found if row["label"] == 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "filters",
    [{}, {"absolute_margin": 0.1}, {"relative_margin": 0.2}, {"max_score": 0.6}, {"min_score": 0.7}, {"range_max": 4}],
    ids=str,
)
def test_filters_choose_what_mine_hard_negatives_chooses_for_one_right_passage(vectors, filters):
    filters = {"num_negatives": 3, "range_max": 20} | filters
    products = vectors[30:] @ vectors[:30].T
    rows = [(f"q{query}", NAMES[at], products[query, at]) for query in range(8) for at in np.argsort(-products[query])]
    ranked = pd.DataFrame(rows, columns=["query_id", "passage_id", "score"])
    is_right = ranked["passage_id"] == ranked["query_id"].map(RIGHT)
    table = ranked[~is_right].reset_index(drop=True)
    table["position"] = table.groupby("query_id").cumcount()
    table["reason"] = refusals(
        table,
        OPEN._replace(**filters),
        positive_scores=ranked[is_right].set_index("query_id")["score"],
        group_positives=pairs(("", "")),
        near_duplicates=np.zeros(len(table), dtype=bool),
    )
    chosen = choose(table, OPEN._replace(**filters), seed=1)
    expected = mined_by_sentence_transformers(vectors, **filters)
    assert list(zip(chosen["query_id"], chosen["passage_id"], strict=True)) == expected
