from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from reranker.dataset import (
    SHOWN,
    Limits,
    Tables,
    assign_splits,
    build,
    clean,
    fingerprint,
    query_groups,
    token_percentiles,
)
from reranker.records import UNSPLIT, Example

LIMITS = Limits(min_query_words=2, max_query_words=4, min_passage_chars=5)

# few words, so that equal texts, fingerprint-equal texts and shared passages are common
TEXTS = st.builds(
    lambda words, end: " ".join(words) + end,
    st.lists(st.sampled_from(["Sort", "sort", "array", "axis", "mean", "42"]), min_size=1, max_size=3),
    st.sampled_from(["", ".", " 2"]),
)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), max_size=12)
UNRELATED = st.lists(st.tuples(st.sampled_from(["plot a line", "close a file"]), st.sampled_from(["draw", "shut"])))
quick = settings(max_examples=40, deadline=None, database=None)


def table(*pairs: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["query", "passage"], dtype="str").assign(relevance=1, split=UNSPLIT, source="")


def built(pairs: list[tuple[str, str]]) -> Tables:
    return build(table(*pairs), dev_share=0.3, test_share=0.3)


def linked_components(pairs: list[tuple[str, str]]) -> list[set[str]]:
    """Sets of case-folded queries that are linked by a text with the same fingerprint, found by merging sets."""
    components: list[set[tuple[str, str]]] = []
    for query, passage in pairs:
        own = {("query", query.casefold()), ("q", fingerprint(query)), ("p", fingerprint(passage))}
        own = own.union(*(other for other in components if other & own))
        components = [other for other in components if not other & own] + [own]
    return [{text for kind, text in component if kind == "query"} for component in components]


@pytest.mark.parametrize(
    ("query", "passage", "reason"),
    [
        ("  ", "long enough", "query_empty"),
        ("sort an array", " \n", "passage_empty"),
        ("", "", "query_empty"),
        ("sort an \ud800 array", "long enough", "not_unicode"),
        ("sort an array", "long enough \udfff", "not_unicode"),
        ("sort", "long enough", "query_short"),
        ("sort an array in place", "long enough", "query_long"),
        ("sort an array", "tiny", "passage_short"),
    ],
)
def test_unusable_row_is_dropped_for_its_reason(query: str, passage: str, reason: str):
    rows, dropped, _ = clean([Example("here", query, passage)], LIMITS)
    assert rows.empty
    assert {name: number for name, number in dropped.items() if number} == {reason: 1}


def test_first_dropped_rows_of_each_reason_are_kept_to_look_at():
    examples = [Example(f"row {number}", "sort", "long enough") for number in range(SHOWN + 20)]
    examples += [Example("empty", "sort it", " "), Example("wrong", "sort  it", "not in place", 0)]
    _, dropped, shown = clean(examples, LIMITS)
    assert dropped["query_short"] == SHOWN + 20
    assert shown["origin"].tolist() == [f"row {number}" for number in range(SHOWN)] + ["empty", "wrong"]
    assert shown.iloc[-1].to_dict() == {
        "reason": "query_without_right_passage",
        "origin": "wrong",
        "query": "sort it",
        "passage": "not in place",
    }


def test_lengths_at_the_limits_are_kept():
    rows, dropped, _ = clean([Example("a", "two words", "12345"), Example("b", "now four words here", "12345")], LIMITS)
    assert len(rows) == 2
    assert not any(dropped.values())


def test_white_space_is_normalised_and_a_repeated_row_dropped():
    rows, dropped, _ = clean([Example("a", " sort\n it ", " in place\n"), Example("b", "sort it", "in place")], LIMITS)
    assert rows.to_dict("records") == [
        {"query": "sort it", "passage": "in place", "relevance": 1, "split": UNSPLIT, "source": ""}
    ]
    assert dropped["same_row"] == 1


def test_of_two_judgments_of_one_row_the_higher_is_kept():
    examples = [Example("a", "sort it", "in place", 0), Example("b", "sort it", "in place", 2)]
    for order in (examples, examples[::-1]):
        rows, dropped, _ = clean(order, LIMITS)
        assert rows["relevance"].tolist() == [2]
        assert dropped["same_row"] == 1


def test_rows_of_a_query_without_a_right_passage_are_dropped():
    examples = [
        Example("a", "sort it", "not in place", 0),
        Example("b", "Sort it", "in place", 1),
        Example("c", "shuffle it", "in place", 0),
        Example("d", "shuffle it", "or not", 0),
    ]
    rows, dropped, _ = clean(examples, LIMITS)
    assert rows["query"].tolist() == ["sort it", "Sort it"]
    assert {name: number for name, number in dropped.items() if number} == {"query_without_right_passage": 2}


def test_relevance_reaches_the_judgments_and_the_highest_of_merged_rows_counts():
    rows = pd.DataFrame(
        [("sort it", "one", 2), ("Sort it", "one", 0), ("sort it", "two", 0)], columns=["query", "passage", "relevance"]
    ).assign(split=UNSPLIT, source="")
    tables = build(rows, dev_share=0.3, test_share=0.3)
    found = tables.judgments.merge(tables.passages)
    assert dict(zip(found["text"], found["relevance"], strict=True)) == {"one": 2, "two": 0}


def test_passage_that_is_judged_wrong_links_no_queries():
    rows = pd.DataFrame(
        [("sort it", "one", 1), ("shuffle it", "two", 1), ("shuffle it", "one", 0)],
        columns=["query", "passage", "relevance"],
    ).assign(split=UNSPLIT, source="")
    tables = build(rows, dev_share=0.3, test_share=0.3)
    assert query_groups(tables.passages, tables.queries, tables.judgments).nunique() == 2


@quick
@given(st.lists(st.tuples(st.text(max_size=25), st.text(max_size=12))))
def test_every_row_is_kept_or_counted(pairs: list[tuple[str, str]]):
    rows, dropped, _ = clean([Example("here", *pair) for pair in pairs], LIMITS)
    assert len(rows) + sum(dropped.values()) == len(pairs)
    assert not rows.duplicated(["query", "passage"]).any()


def test_equal_passages_are_one_and_equal_queries_share_their_right_passages():
    tables = built([("Sort it", "one"), ("sort it", "two"), ("shuffle it", "one")])
    assert sorted(tables.passages["text"]) == ["one", "two"]
    assert sorted(tables.queries["text"]) == ["Sort it", "shuffle it"]
    found = tables.judgments.merge(tables.queries).merge(tables.passages, on="passage_id", suffixes=("", "_passage"))
    assert set(zip(found["text"], found["text_passage"], strict=True)) == {
        ("Sort it", "one"),
        ("Sort it", "two"),
        ("shuffle it", "one"),
    }
    assert (tables.judgments["relevance"] == 1).all()


@quick
@given(ROWS, st.randoms(use_true_random=False))
def test_order_of_the_rows_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for first, second in zip(built(pairs), built(shuffled), strict=True):
        pd.testing.assert_frame_equal(first, second)


def test_text_of_a_merged_query_does_not_depend_on_the_order_of_the_rows():
    pairs = [("sort it", "one"), ("Sort it", "two"), ("SORT it", "three")]
    assert {built(pairs).queries["text"].item(), built(pairs[::-1]).queries["text"].item()} == {"SORT it"}


@quick
@given(ROWS)
def test_tables_are_sorted_unique_and_refer_to_each_other(pairs):
    passages, queries, judgments = built(pairs)
    assert passages["passage_id"].is_unique
    assert queries["query_id"].is_unique
    assert not judgments.duplicated(["query_id", "passage_id"]).any()
    assert set(judgments["query_id"]) == set(queries["query_id"])
    assert set(judgments["passage_id"]) == set(passages["passage_id"])
    assert passages["passage_id"].is_monotonic_increasing
    assert queries["query_id"].is_monotonic_increasing
    assert judgments.sort_values(["query_id", "passage_id"]).index.tolist() == list(range(len(judgments)))
    assert set(queries["split"]) <= {"train", "dev", "test"}


@quick
@given(ROWS)
def test_linked_queries_are_one_group_and_others_are_not(pairs):
    tables = built(pairs)
    groups = query_groups(tables.passages, tables.queries, tables.judgments)
    members = defaultdict(set)
    for group, text in zip(groups, tables.queries["text"], strict=True):
        members[group].add(text.casefold())
    assert sorted(map(sorted, members.values())) == sorted(map(sorted, linked_components(pairs)))


@quick
@given(ROWS)
def test_no_link_crosses_a_split(pairs):
    queries = built(pairs).queries
    split = dict(zip(queries["text"].str.casefold(), queries["split"], strict=True))
    for component in linked_components(pairs):
        assert len({split[text] for text in component}) == 1


@quick
@given(ROWS.filter(bool), UNRELATED)
def test_split_and_ids_stay_when_unrelated_rows_are_added(pairs, unrelated):
    before, after = built(pairs), built(unrelated + pairs)
    pd.testing.assert_frame_equal(before.queries, after.queries.merge(before.queries["query_id"]))
    pd.testing.assert_frame_equal(before.passages, after.passages.merge(before.passages["passage_id"]))


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([("sort", "same text"), ("order", "same text")], id="shared passage"),
        pytest.param([("Sort it.", "one"), ("sort it", "two")], id="queries with one fingerprint"),
        pytest.param([("sort", "Axis 0."), ("order", "axis, 1")], id="passages with one fingerprint"),
        pytest.param([("sort", "a text"), ("order", "a text"), ("order", "other"), ("rank", "other")], id="transitive"),
    ],
)
def test_linked_queries_share_a_group(pairs):
    tables = built([*pairs, ("unrelated", "alone")])
    groups = query_groups(tables.passages, tables.queries, tables.judgments)
    assert groups.nunique() == 2
    assert set(groups) <= set(tables.queries["query_id"])


def test_query_text_does_not_link_to_an_equal_passage_text():
    tables = built([("sort", "order"), ("order", "shuffle")])
    assert query_groups(tables.passages, tables.queries, tables.judgments).nunique() == 2


def test_shares_of_the_groups_are_roughly_met():
    groups = pd.Series([f"q{number}" for number in range(2000)])
    shares = assign_splits(groups, dev_share=0.1, test_share=0.2).value_counts(normalize=True)
    assert shares["dev"] == pytest.approx(0.1, abs=0.02)
    assert shares["test"] == pytest.approx(0.2, abs=0.03)


def test_larger_test_share_keeps_every_earlier_test_query():
    groups = pd.Series([f"q{number}" for number in range(500)])
    small, large = (assign_splits(groups, dev_share=0.1, test_share=share) == "test" for share in (0.1, 0.2))
    assert small.sum() < large.sum()
    assert not (small & ~large).any()


def test_shares_of_zero_leave_everything_in_train():
    assert set(assign_splits(pd.Series(["a", "b"]), dev_share=0.0, test_share=0.0)) == {"train"}


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [("Sort_it 2!", "sort\nIT", True), ("sort", "sorts", False), ("42", "43", False), ("Ärger", "ÄRGER.", True)],
)
def test_fingerprint_ignores_case_digits_punctuation_and_white_space(first: str, second: str, equal: bool):
    assert (fingerprint(first) == fingerprint(second)) is equal


def test_token_percentiles_are_lengths_that_occur():
    tokenizer = Tokenizer(WordLevel({"a": 0}))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(2)
    texts = pd.Series([" ".join("a" * count) for count in np.arange(1, 11)])
    assert token_percentiles(tokenizer, texts, "words") == {
        "words_p50": 6,
        "words_p90": 10,
        "words_p99": 10,
        "words_max": 10,
    }


SPLIT_ROWS = [
    ("sort it", "one", "test"),
    ("sort them", "two", "train"),
    ("plot it", "three", "train"),
    ("close it", "three", UNSPLIT),
    ("draw it", "four", "dev"),
]


def split_of(rows: list[tuple[str | None, str, str]], **shares: float) -> dict[str, str]:
    """Queries and their splits."""
    table = pd.DataFrame(rows, columns=["query", "passage", "split"], dtype="str").assign(relevance=1, source="")
    queries = build(table, dev_share=shares.get("dev", 0.4), test_share=shares.get("test", 0.4)).queries
    return dict(zip(queries["text"], queries["split"], strict=True))


def test_given_split_is_kept_and_an_unsplit_query_goes_with_its_group():
    found = split_of(SPLIT_ROWS)
    assert found == {
        "sort it": "test",
        "sort them": "train",
        "plot it": "train",
        "close it": "train",
        "draw it": "dev",
    }


def test_query_given_to_two_splits_is_in_the_one_that_is_looked_at_latest():
    assert split_of([*SPLIT_ROWS, ("Sort them", "two", "test")])["Sort them"] == "test"


def test_split_that_no_source_gives_is_drawn_from_the_train_queries():
    words = [chr(97 + first) + chr(97 + second) for first in range(20) for second in range(10)]
    train = [(f"how to {word}", f"this is {word}", "train") for word in words]
    found = split_of([("sort it", "one", "test"), *train], dev=0.3, test=0.3)
    sizes = pd.Series(found).value_counts()
    assert sizes["test"] == 1
    assert 40 <= sizes["dev"] <= 80
    assert sizes["train"] + sizes["dev"] == 200


def test_passage_of_the_corpus_alone_is_kept_and_has_no_query():
    rows, dropped, _ = clean([Example("a", None, "in place"), Example("b", "sort it", "in place")], LIMITS)
    assert not any(dropped.values())
    assert rows["query"].isna().tolist() == [True, False]
    tables = build(rows, dev_share=0.3, test_share=0.3)
    assert tables.passages["text"].tolist() == ["in place"]
    assert tables.queries["text"].tolist() == ["sort it"]
    assert len(tables.judgments) == 1


def test_unusable_passage_of_the_corpus_is_dropped_for_its_reason():
    rows, dropped, _ = clean([Example("a", None, "tiny"), Example("b", None, " ")], LIMITS)
    assert rows.empty
    assert (dropped["passage_short"], dropped["passage_empty"]) == (1, 1)
