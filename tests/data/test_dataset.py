from collections import defaultdict

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prepared import clean, tables
from reranker.common.artifacts import Tables
from reranker.data import duplicates
from reranker.data.cleaning import MAX_EXAMPLES, SPLIT_NAMES, UNSPLIT, Example, Limits, fingerprint
from reranker.data.dataset import assign_splits

LIMITS = Limits(min_query_words=2, max_query_words=4, min_passage_chars=5)

# few words, so that equal texts, fingerprint-equal texts and shared passages are common
TEXTS = st.builds(
    lambda words, end: " ".join(words) + end,
    st.lists(st.sampled_from(["Sort", "sort", "array", "axis", "mean", "42"]), min_size=1, max_size=3),
    st.sampled_from(["", ".", " 2"]),
)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12)
UNRELATED = st.lists(st.tuples(st.sampled_from(["plot a line", "close a file"]), st.sampled_from(["draw", "shut"])))
quick = settings(max_examples=40, deadline=None, database=None)


def build_tables(rows: list[tuple[str | None, str]], near_duplicates: float | None = None) -> Tables:
    """Build the tables of pairs of texts."""
    return tables((Example("here", *row) for row in rows), near_duplicates=near_duplicates)


def remaining_origins(*examples: Example) -> list[str]:
    """The origins of the rows that remain after cleaning."""
    return [examples[row].origin for row in clean(examples, LIMITS).rows.index]


def relevances(result: Tables) -> dict[tuple[str, str], int]:
    """Relevance by the texts of query and passage."""
    table = result.judgments.merge(result.queries, on="query_id").merge(
        result.passages, on="passage_id", suffixes=("", "_passage")
    )
    return dict(zip(zip(table["text"], table["text_passage"], strict=True), table["relevance"], strict=True))


def linked_components(pairs: list[tuple[str, str]]) -> list[set[str]]:
    """Sets of case-folded queries that are linked by a text with the same fingerprint, computed by merging sets."""
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
    examples = [Example(f"row {number}", "sort", "long enough") for number in range(MAX_EXAMPLES + 20)]
    examples += [Example("empty", "sort it", " "), Example("wrong", "sort  it", "not in place", 0)]
    _, dropped, dropped_rows = clean(examples, LIMITS)
    assert dropped["query_short"] == MAX_EXAMPLES + 20
    assert dropped_rows["origin"].tolist() == [f"row {number}" for number in range(MAX_EXAMPLES)] + ["empty", "wrong"]
    assert dropped_rows.iloc[-1].to_dict() == {
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
    examples = [Example("a", " sort\n it ", " in place\n"), Example("b", "sort it", "in place")]
    assert remaining_origins(*examples) == ["a"]
    assert clean(examples).dropped["same_row"] == 1
    assert relevances(tables(examples)) == {("sort it", "in place"): 1}


def test_of_two_judgments_of_one_row_the_higher_is_kept():
    examples = [Example("a", "sort it", "in place", 0), Example("b", "sort it", "in place", 2)]
    for order in (examples, examples[::-1]):
        rows, dropped, _ = clean(order)
        assert rows["relevance"].tolist() == [2]
        assert dropped["same_row"] == 1
        assert relevances(tables(order)) == {("sort it", "in place"): 2}


def test_rows_of_a_query_without_a_right_passage_are_dropped():
    examples = [
        Example("a", "sort it", "not in place", 0),
        Example("b", "Sort it", "in place", 1),
        Example("c", "shuffle it", "in place", 0),
        Example("d", "shuffle it", "or not", 0),
    ]
    assert remaining_origins(*examples) == ["a", "b"]
    dropped = clean(examples).dropped
    assert {name: number for name, number in dropped.items() if number} == {"query_without_right_passage": 2}


def test_relevance_reaches_the_judgments_and_the_highest_of_merged_rows_counts():
    rows = [("sort it", "one", 2), ("Sort it", "one", 0), ("sort it", "two", 0)]
    result = relevances(tables(Example("here", *row) for row in rows))
    assert {passage: relevance for (_, passage), relevance in result.items()} == {"one": 2, "two": 0}


def test_passage_that_is_judged_wrong_links_no_queries():
    rows = [("sort it", "one", 1), ("shuffle it", "two", 1), ("shuffle it", "one", 0)]
    assert tables(Example("here", *row) for row in rows).queries["group"].nunique() == 2


@quick
@given(st.lists(st.tuples(st.text(max_size=25), st.text(max_size=12))))
def test_every_row_is_kept_or_counted(pairs: list[tuple[str, str]]):
    rows, dropped, _ = clean([Example("here", *pair) for pair in pairs], LIMITS)
    assert len(rows) + sum(dropped.values()) == len(pairs)
    texts = [(" ".join(query.split()), passage.strip()) for query, passage in pairs]
    assert len({texts[row] for row in rows.index}) == len(rows)


def test_equal_passages_are_one_and_equal_queries_share_their_right_passages():
    pairs = [("sort it", "one"), ("sort it", "two"), ("shuffle it", "one")]
    result = build_tables(pairs)
    assert sorted(result.passages["text"]) == ["one", "two"]
    assert sorted(result.queries["text"]) == ["shuffle it", "sort it"]
    assert relevances(result) == dict.fromkeys(pairs, 1)


def test_queries_that_differ_in_case_are_one_with_the_passages_of_both():
    result = build_tables([("Sort it", "one"), ("sort it", "two")])
    assert result.queries["text"].item() in ("Sort it", "sort it")
    assert sorted(passage for _, passage in relevances(result)) == ["one", "two"]


@quick
@given(ROWS, st.randoms(use_true_random=False))
def test_order_of_the_rows_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for first, second in zip(build_tables(pairs), build_tables(shuffled), strict=True):
        pd.testing.assert_frame_equal(first, second)


def test_text_of_a_merged_query_does_not_depend_on_the_order_of_the_rows():
    pairs = [("sort it", "one"), ("Sort it", "two"), ("SORT it", "three")]
    assert build_tables(pairs).queries["text"].item() == build_tables(pairs[::-1]).queries["text"].item()


@quick
@given(ROWS)
def test_tables_are_sorted_unique_and_refer_to_each_other(pairs):
    passages, queries, judgments = build_tables(pairs)
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
    queries = build_tables(pairs).queries
    members = defaultdict(set)
    for group, text in zip(queries["group"], queries["text"], strict=True):
        members[group].add(text.casefold())
    assert sorted(map(sorted, members.values())) == sorted(map(sorted, linked_components(pairs)))


@quick
@given(ROWS)
def test_no_link_crosses_a_split(pairs):
    queries = build_tables(pairs).queries
    split = dict(zip(queries["text"].str.casefold(), queries["split"], strict=True))
    for component in linked_components(pairs):
        assert len({split[text] for text in component}) == 1


@quick
@given(ROWS, UNRELATED)
def test_split_and_ids_stay_when_unrelated_rows_are_added(pairs, unrelated):
    before, after = build_tables(pairs), build_tables(unrelated + pairs)
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
    queries = build_tables([*pairs, ("unrelated", "alone")]).queries
    assert queries["group"].nunique() == 2
    assert (queries.groupby("group")["query_id"].min() == queries["group"].unique()).all()


def test_query_text_does_not_link_to_an_equal_passage_text():
    assert build_tables([("sort", "order"), ("order", "shuffle")]).queries["group"].nunique() == 2


TRAIN, DEV, TEST = (SPLIT_NAMES.index(split) for split in ("train", "dev", "test"))


def test_shares_of_the_groups_are_roughly_met():
    splits = assign_splits([f"q{number}" for number in range(2000)], dev_share=0.1, test_share=0.2)
    assert (splits == DEV).mean() == pytest.approx(0.1, abs=0.02)
    assert (splits == TEST).mean() == pytest.approx(0.2, abs=0.03)


def test_larger_test_share_keeps_every_earlier_test_query():
    groups = [f"q{number}" for number in range(500)]
    small, large = (assign_splits(groups, dev_share=0.1, test_share=share) == TEST for share in (0.1, 0.2))
    assert small.sum() < large.sum()
    assert not (small & ~large).any()


def test_shares_of_zero_leave_everything_in_train():
    assert set(assign_splits(["a", "b"], dev_share=0.0, test_share=0.0)) == {TRAIN}


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [("Sort_it 2!", "sort\nIT", True), ("sort", "sorts", False), ("42", "43", False), ("Ärger", "ÄRGER.", True)],
)
def test_fingerprint_ignores_case_digits_punctuation_and_white_space(first: str, second: str, equal: bool):
    assert (fingerprint(first) == fingerprint(second)) is equal


SPLIT_ROWS = [
    ("sort it", "one", "test"),
    ("sort them", "two", "train"),
    ("plot it", "three", "train"),
    ("close it", "three", UNSPLIT),
    ("draw it", "four", "dev"),
]


def split_of(rows: list[tuple[str | None, str, str]], **shares: float) -> dict[str, str]:
    """Queries and their splits."""
    examples = (Example("here", query, passage, 1, split) for query, passage, split in rows)
    queries = tables(examples, dev_share=shares.get("dev", 0.4), test_share=shares.get("test", 0.4)).queries
    return dict(zip(queries["text"], queries["split"], strict=True))


def test_given_split_is_kept_and_an_unsplit_query_goes_with_its_group():
    result = split_of(SPLIT_ROWS)
    assert result == {
        "sort it": "test",
        "sort them": "train",
        "plot it": "train",
        "close it": "train",
        "draw it": "dev",
    }


def test_query_given_to_two_splits_is_in_the_one_that_is_looked_at_latest():
    result = split_of([*SPLIT_ROWS, ("Sort them", "two", "test")])
    assert {text.casefold(): split for text, split in result.items()}["sort them"] == "test"


def test_split_that_no_source_gives_is_drawn_from_the_train_queries():
    words = [chr(97 + first) + chr(97 + second) for first in range(20) for second in range(10)]
    train = [(f"how to {word}", f"this is {word}", "train") for word in words]
    result = split_of([("sort it", "one", "test"), *train], dev=0.3, test=0.3)
    sizes = pd.Series(result).value_counts()
    assert sizes["test"] == 1
    assert 40 <= sizes["dev"] <= 80
    assert sizes["train"] + sizes["dev"] == 200


def test_passage_of_the_corpus_alone_is_kept_and_has_no_query():
    examples = [Example("a", None, "in place"), Example("b", "sort it", "in place")]
    assert remaining_origins(*examples) == ["a", "b"]
    result = tables(examples)
    assert result.passages["text"].tolist() == ["in place"]
    assert relevances(result) == {("sort it", "in place"): 1}


def test_unusable_passage_of_the_corpus_is_dropped_for_its_reason():
    rows, dropped, _ = clean([Example("a", None, "tiny"), Example("b", None, " ")], LIMITS)
    assert rows.empty
    assert (dropped["passage_short"], dropped["passage_empty"]) == (1, 1)


WORDS = [chr(97 + first) + chr(97 + second) for first in range(10) for second in range(10)]
LONG = " ".join(WORDS)


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        pytest.param(f"{LONG} and so on", True, id="three words more"),
        pytest.param(LONG.replace("aa ", "").upper(), True, id="one word less, other case"),
        pytest.param(" ".join(WORDS[50:] + WORDS[:50]), True, id="halves change places"),
        pytest.param(" ".join(WORDS[::-1]), False, id="other order"),
        pytest.param(" ".join(WORDS[:80]), False, id="four fifths"),
    ],
)
def test_near_duplicates_share_a_group_and_so_do_their_queries(other: str, alike: bool):
    result = build_tables([("sort it", LONG), ("shuffle it", other), ("plot it", "a line")], near_duplicates=0.9)
    assert result.passages["group"].nunique() == result.queries["group"].nunique() == 2 + (not alike)
    assert set(result.passages["group"]) <= set(result.passages["passage_id"])


def test_near_duplicates_are_left_alone_where_they_are_not_wanted():
    result = build_tables([("sort it", LONG), ("shuffle it", f"{LONG} and so on")], near_duplicates=None)
    assert result.queries["group"].nunique() == 2


def test_right_passages_are_compared_first_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PASSAGES", 2)
    corpus = [(None, f"{LONG} {word}") for word in ("one", "two", "three", "four")]
    result = build_tables([*corpus, ("sort it", LONG), ("shuffle it", f"{LONG} and so on")], near_duplicates=0.9)
    assert result.queries["group"].nunique() == 1
    assert result.passages["group"].nunique() == 5


# A search over numbers gave these two texts, whose blake2b hashes of 6 bytes are equal.
COLLIDING = "text number 1660146", "text number 23586657"


def test_ids_of_texts_that_share_one_are_lengthened():
    rows = [("sort it", COLLIDING[0]), ("shuffle it", COLLIDING[1]), ("plot it", "a line")]
    result = build_tables(rows)
    ids = result.passages.set_index("text")["passage_id"]
    assert ids.str.len().to_dict() == {COLLIDING[0]: 29, COLLIDING[1]: 29, "a line": 13}
    assert ids.str[:13].nunique() == 2
    assert relevances(result) == dict.fromkeys(rows, 1)


def test_text_that_only_shares_an_id_is_no_other_query():
    rows = [(COLLIDING[0], "one"), (COLLIDING[1], "two")]
    result = build_tables(rows)
    assert result.queries["query_id"].is_unique
    assert relevances(result) == dict.fromkeys(rows, 1)
