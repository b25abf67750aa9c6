import pandas as pd

from reranker import leaks
from reranker.leaks import Leak, find
from reranker.records import UNSPLIT

LONG = "what is the usual treatment of a child with high fever and cough"


def rows(*pairs: tuple[str | None, str]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["query", "split"])


def test_equal_query_of_an_earlier_split_is_found_whatever_its_case():
    found = find(rows(("Sort it", "train"), ("sort it", "test"), ("plot it", "dev")))
    assert found == [Leak("sort it", "test", "Sort it", "train", True)]


def test_nearly_equal_query_is_found_and_a_different_one_is_not():
    found = find(rows((LONG, "train"), (f"{LONG}?", "dev"), ("how long does a cough last?", "dev")))
    assert found == [Leak(f"{LONG}?", "dev", LONG, "train", False)]


def test_test_is_compared_with_dev_too():
    assert find(rows(("sort it", "dev"), ("sort it", "test"))) == [Leak("sort it", "test", "sort it", "dev", True)]


def test_queries_within_a_split_and_unsplit_ones_are_no_leaks():
    pairs = [("sort it", "test"), ("Sort it", "test"), ("sort it", UNSPLIT), (None, UNSPLIT), ("plot it", "train")]
    assert find(rows(*pairs)) == []


def test_every_block_is_looked_at(monkeypatch):
    monkeypatch.setattr(leaks, "BLOCK", 2)
    test = [(f"{LONG} since day {number}", "test") for number in range(5)]
    train = [(f"{LONG} since day {number}!", "train") for number in range(5)]
    assert [leak.query for leak in find(rows(*test, *train))] == [query for query, _ in test]


def test_description_has_the_number_and_an_example():
    found = find(rows(("Sort it", "train"), ("sort it", "test")))
    assert leaks.describe(found) == (
        "1 of the queries of dev or test are also in an earlier split, such as 'sort it' (test) and 'Sort it' (train)"
    )


def test_queries_too_short_for_a_run_of_three_characters():
    assert find(rows(("a", "train"), ("b", "test"))) == []
