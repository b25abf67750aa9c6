from hashlib import blake2b

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.common.artifacts import Tables
from reranker.common.errors import UserError
from reranker.common.source_schema import PackageSource
from reranker.data.sampling import relevant_pairs, set_aside, training_order
from reranker.training.examples import training_groups

ids = st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=20)


def queries(names: list[str], source: str = "docs") -> pd.DataFrame:
    return pd.DataFrame({"query_id": pd.Series(names, dtype="str"), "split": "train", "source": source})


def sources(**weights: float) -> dict[str, PackageSource]:
    return {name: PackageSource(packages=["numpy"], weight=weight) for name, weight in weights.items()}


def order_of(names: list[str]) -> list[str]:
    return training_order(queries(names), sources(docs=1.0)).tolist()


@given(ids)
def test_hash_order_loses_and_repeats_no_id(names):
    assert sorted(order_of(names)) == sorted(names)


@given(ids, st.randoms(use_true_random=False))
def test_hash_order_does_not_depend_on_the_order_given(names, random):
    assert order_of(random.sample(names, len(names))) == order_of(names)


@given(ids, ids)
def test_added_ids_slip_in_between_without_moving_the_others(names, added):
    together = order_of(list(dict.fromkeys([*names, *added])))
    assert [name for name in together if name in set(names)] == order_of(names)


def test_hash_order_is_not_that_of_the_ids_and_has_a_new_index():
    names = [f"q{number}" for number in range(50)]
    assert order_of(names) not in (names, sorted(names))
    order = training_order(queries(names).set_index(pd.RangeIndex(100, 150)), sources(docs=1.0))
    assert order.index.tolist() == list(range(50))
    assert order.tolist() == order_of(names)


def test_first_of_the_hash_order_are_a_fair_sample():
    first = order_of([f"q{number:04}" for number in range(4000)])[:1000]
    assert 420 < sum(name < "q2000" for name in first) < 580


def test_only_training_queries_are_taken():
    both = pd.concat([queries(["q1", "q2"]), queries(["q3"]).assign(split="test"), queries(["q4"]).assign(split="dev")])
    assert sorted(training_order(both, sources(docs=1.0))) == ["q1", "q2"]


def test_queries_of_a_weightier_source_come_earlier_in_proportion():
    both = pd.concat([queries([f"a{n}" for n in range(5000)], "a"), queries([f"b{n}" for n in range(5000)], "b")])
    first = training_order(both, sources(a=3.0, b=1.0))[:400]
    assert 270 < first.str.startswith("a").sum() < 330


def test_equal_weights_do_not_change_the_order():
    names = [f"q{number}" for number in range(50)]
    assert training_order(queries(names), sources(docs=7.0)).tolist() == order_of(names)


def test_order_is_that_of_the_hashes():
    names = [f"q{number}" for number in range(300)]
    assert order_of(names) == sorted(names, key=lambda name: blake2b(f"1:{name}".encode(), digest_size=8).digest())


def test_source_without_a_weight_is_named():
    with pytest.raises(UserError, match=r"column source: 'docs' is no source of params\.yaml"):
        training_order(queries(["q1"]), sources(faq=1.0))


shares = st.floats(0, 1, exclude_min=True, exclude_max=True)


@given(ids, shares)
def test_shares_of_the_queries_have_none_in_common_and_are_all_in_their_order(names, share):
    first, rest = set_aside(pd.Series(names, dtype="str"), share)
    assert first.tolist() + rest.tolist() == names
    assert abs(len(first) - share * len(names)) <= (0.5 if 0.5 <= share * len(names) <= len(names) - 0.5 else 1)
    assert len(first) > 0 or not names
    assert len(rest) > 0 or len(names) < 2


def test_share_decides_how_many_queries_are_set_aside():
    names = pd.Series([f"q{number}" for number in range(200)])
    assert [len(part) for part in set_aside(names, 0.9)] == [180, 20]
    assert [len(part) for part in set_aside(names, 0.001)] == [1, 199]


@pytest.fixture
def tables() -> Tables:
    """q1 and q2 are a group and share p2; q3 also has a passage that is not relevant; q4 has no relevant one."""
    right = [("q1", "p1", 1), ("q1", "p2", 1), ("q2", "p2", 1), ("q3", "p4", 2), ("q3", "p3", 0), ("q4", "p3", 0)]
    texts = {"p1": "Read a table.", "p2": "Read a file.", "p3": "Sort a list.", "p4": "Find a path."}
    return Tables(
        pd.DataFrame(texts.items(), columns=["passage_id", "text"]).assign(group=list(texts)),
        pd.DataFrame(
            {"query_id": ["q1", "q2", "q3", "q4"], "text": ["how to read", "open it", "route", "put in order"]}
        ).assign(group=["q1", "q1", "q3", "q4"], split="train", source="docs"),
        pd.DataFrame(right, columns=["query_id", "passage_id", "relevance"]),
    )


def test_each_query_gets_one_right_passage_with_both_texts_in_the_order_asked_for(tables):
    rows = relevant_pairs(pd.Series(["q3", "q1", "q2"], index=[7, 5, 6]), tables, seed=1)
    assert rows.columns.tolist() == ["query_id", "passage_id", "query", "passage", "group"]
    assert rows["query_id"].tolist() == ["q3", "q1", "q2"]
    assert rows["query"].tolist() == ["route", "how to read", "open it"]
    assert rows.loc[[0, 2], "passage_id"].tolist() == ["p4", "p2"]
    assert rows.loc[[0, 2], "passage"].tolist() == ["Find a path.", "Read a file."]
    assert rows.loc[1, "passage_id"] in ("p1", "p2")


def test_rows_of_one_group_share_a_number_and_others_do_not(tables):
    group = relevant_pairs(pd.Series(["q1", "q2", "q3"]), tables, seed=1).set_index("query_id")["group"]
    assert group["q1"] == group["q2"] != group["q3"]
    assert pd.api.types.is_integer_dtype(group)


def test_query_without_a_right_passage_is_left_out(tables):
    assert relevant_pairs(pd.Series(["q4", "q3"]), tables, seed=1)["query_id"].tolist() == ["q3"]


def test_choice_between_several_right_passages_repeats_with_its_seed_and_reaches_all(tables):
    chosen = [relevant_pairs(pd.Series(["q1"]), tables, seed=seed)["passage_id"].item() for seed in range(12)]
    again = [relevant_pairs(pd.Series(["q1"]), tables, seed=seed)["passage_id"].item() for seed in range(12)]
    assert chosen == again
    assert set(chosen) == {"p1", "p2"}


NEGATIVES = pd.DataFrame(
    [
        ("q2", "second", "one", "hard", 0, 0.4),
        ("q1", "first", "three", "hard", 0, 0.8),
        ("q2", "second", "two", "positive", 1, 0.2),
        ("q1", "first", "four", "random", 0, 0.6),
        ("q1", "first", "one", "positive", 2, 0.0),
    ],
    columns=["query_id", "query", "text", "kind", "relevance", "teacher"],
    index=[4, 8, 2, 6, 0],
)


def test_groups_have_the_right_passage_first_and_one_size_and_are_sorted():
    groups = training_groups(NEGATIVES, graded=True)
    assert groups["query"].tolist() == ["first", "second"]
    assert groups["passages"].tolist() == [["one", "three", "four"], ["two", "one", "one"]]


def test_teacher_stays_with_its_passage():
    assert training_groups(NEGATIVES, graded=True)["teacher"].tolist() == [[0.0, 0.8, 0.6], [0.2, 0.4, 0.4]]


def test_groups_have_no_teacher_where_none_is_given():
    groups = training_groups(NEGATIVES.drop(columns="teacher"), graded=True)
    assert groups.columns.tolist() == ["query", "passages", "relevance"]


def test_negatives_stay_in_the_order_given_and_the_rows_are_not_changed():
    before = NEGATIVES.copy()
    assert training_groups(NEGATIVES[::-1], graded=True)["passages"].tolist() == [
        ["one", "four", "three"],
        ["two", "one", "one"],
    ]
    pd.testing.assert_frame_equal(NEGATIVES, before)


def test_less_relevant_passages_are_in_the_group_where_the_loss_takes_them():
    graded = pd.DataFrame([("q2", "second", "six", "graded", 1, 0.3)], columns=NEGATIVES.columns)
    table = pd.concat([NEGATIVES.assign(relevance=NEGATIVES["relevance"] * 2), graded])
    groups = training_groups(table, graded=True)
    assert groups["passages"].tolist() == [["one", "three", "four"], ["two", "one", "six"]]
    assert groups["relevance"].tolist() == [[4, 0, 0], [2, 0, 1]]
    assert training_groups(table, graded=False)["relevance"].tolist() == [[4, 0, 0], [2, 0, 0]]
