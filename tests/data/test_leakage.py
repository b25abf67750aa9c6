import pandas as pd
import pytest

from prepared import leaks as leaks_of
from reranker.data import leakage
from reranker.data.cleaning import SPLIT_NAMES, UNSPLIT, Example
from reranker.data.leakage import Bound, Leak, Leaks

LONG = "what is the usual treatment of a child with high fever and cough"


def find(*pairs: tuple[str | None, str]) -> Leaks:
    """The leaks between rows with the origins row 1, row 2 and so on."""
    return leaks_of(
        Example(f"row {row}", query, "in place", 1, split) for row, (query, split) in enumerate(pairs, start=1)
    )


def test_equal_query_of_an_earlier_split_is_found_whatever_its_case():
    leaks = find(("Sort it", "train"), ("sort it", "test"), ("plot it", "dev"))
    assert leaks == Leaks(1, 0, [Leak("sort it", "test", "row 2", "Sort it", "train", "row 1", True)], [])


def test_nearly_equal_query_is_found_and_a_different_one_is_not():
    leaks = find((LONG, "train"), (f"{LONG}?", "dev"), ("how long does a cough last?", "dev"))
    assert leaks == Leaks(0, 1, [Leak(f"{LONG}?", "dev", "row 2", LONG, "train", "row 1", False)], [])


def test_test_is_compared_with_dev_too():
    leaks = find(("sort it", "dev"), ("sort it", "test"))
    assert leaks.examples == [Leak("sort it", "test", "row 2", "sort it", "dev", "row 1", True)]


def test_queries_within_a_split_and_unsplit_ones_are_no_leaks():
    pairs = [("sort it", "test"), ("Sort it", "test"), ("sort it", UNSPLIT), (None, UNSPLIT), ("plot it", "train")]
    assert find(*pairs) == Leaks(0, 0, [], [])


def test_every_block_is_looked_at(monkeypatch):
    monkeypatch.setattr(leakage, "BLOCK", 2)
    test = [(f"{LONG} since day {number}", "test") for number in range(5)]
    train = [(f"{LONG} since day {number}!", "train") for number in range(5)]
    assert [leak.query for leak in find(*test, *train).examples] == [query for query, _ in test]


def test_description_has_the_numbers_an_example_and_the_places_of_the_first_three():
    queries = ["sort it", "plot it", "close it", "open it"]
    leaks = find(
        *((query, split) for split in ("train", "test") for query in queries), (LONG, "dev"), (f"{LONG}?", "test")
    )
    assert leakage.describe(leaks) == (
        "5 of the queries of dev or test are also in an earlier split (4 in the same words, 1 in nearly the same), "
        "such as 'sort it' (test, row 5) and 'sort it' (train, row 1); also row 6 and row 2; also row 7 and row 3"
    )


def test_table_has_a_row_for_each_example_or_its_columns_alone():
    leaks = leakage.table(find(("Sort it", "train"), ("sort it", "test")))
    assert leaks.to_dict("records") == [
        {
            "query": "sort it",
            "split": "test",
            "origin": "row 2",
            "other": "Sort it",
            "other_split": "train",
            "other_origin": "row 1",
            "equal": True,
        }
    ]
    none = leakage.table(find(("sort it", "test")))
    assert none.empty
    assert none.dtypes.equals(leaks.dtypes)


@pytest.mark.parametrize(
    ("most", "most_held_out", "bounds"),
    [(3, 2, []), (2, 2, [Bound("test", 2, 2, 2, 3)]), (3, 1, [Bound("test", 1, 2, 3, 3)])],
)
def test_bound_that_leaves_queries_out_is_told(monkeypatch, most, most_held_out, bounds):
    monkeypatch.setattr(leakage, "MAX_EARLIER", most)
    monkeypatch.setattr(leakage, "MAX_HELD_OUT", most_held_out)
    pairs = [
        ("sort it", "train"),
        ("plot it", "train"),
        ("draw it", "dev"),
        ("what is a path", "test"),
        ("why", "test"),
    ]
    assert find(*pairs).bounds == bounds


def test_equal_queries_of_a_given_split_and_those_alone_in_theirs_meet_no_bound(monkeypatch):
    monkeypatch.setattr(leakage, "MAX_HELD_OUT", 1)
    twice = [("sort it", "train"), ("plot it", "train"), ("sort it", "test"), ("plot it", "test")]
    assert find(*twice).bounds == []
    assert find(("sort it", "test"), ("plot it", "test")).bounds == []


def test_bound_is_described_in_numbers():
    assert leakage.describe_bound(Bound("test", 10_000, 12_000, 90, 90)) == (
        "nearly equal queries were looked for among 10,000 of 12,000 queries of test and 90 of 90 of earlier splits"
    )


def test_queries_of_a_group_are_counted_but_for_those_of_its_earliest_split():
    rows = [("a", "train"), ("a", "dev"), ("a", "test"), ("a", "test"), ("b", "dev"), ("b", "test"), ("c", "test")]
    queries = pd.DataFrame([(group, SPLIT_NAMES.index(split)) for group, split in rows], columns=["group", "split"])
    assert leakage.across_splits(queries) == 4
    assert leakage.across_splits(queries[queries["split"] == SPLIT_NAMES.index("test")]) == 0


def test_queries_too_short_for_a_run_of_three_characters():
    assert find(("a", "train"), ("b", "test")).examples == []


def test_equal_queries_are_counted_to_the_last_and_the_first_are_shown(monkeypatch):
    monkeypatch.setattr(leakage, "MAX_EXAMPLES", 2)
    monkeypatch.setattr(leakage, "MAX_EARLIER", 1)
    queries = [f"{LONG} since day {number}" for number in range(5)]
    leaks = find(*((query, split) for split in ("train", "test") for query in queries))
    assert (leaks.equal, leaks.near) == (5, 0)
    assert [leak.query for leak in leaks.examples] == queries[:2]
