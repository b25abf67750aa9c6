from prepared import leaks as found_in
from reranker import leaks
from reranker.leaks import Leak, Leaks
from reranker.records import UNSPLIT, Example

LONG = "what is the usual treatment of a child with high fever and cough"


def find(*pairs: tuple[str | None, str]) -> Leaks:
    return found_in(Example("here", query, "in place", 1, split) for query, split in pairs)


def test_equal_query_of_an_earlier_split_is_found_whatever_its_case():
    found = find(("Sort it", "train"), ("sort it", "test"), ("plot it", "dev"))
    assert found == Leaks(1, 0, [Leak("sort it", "test", "Sort it", "train", True)])


def test_nearly_equal_query_is_found_and_a_different_one_is_not():
    found = find((LONG, "train"), (f"{LONG}?", "dev"), ("how long does a cough last?", "dev"))
    assert found == Leaks(0, 1, [Leak(f"{LONG}?", "dev", LONG, "train", False)])


def test_test_is_compared_with_dev_too():
    found = find(("sort it", "dev"), ("sort it", "test"))
    assert found.examples == [Leak("sort it", "test", "sort it", "dev", True)]


def test_queries_within_a_split_and_unsplit_ones_are_no_leaks():
    pairs = [("sort it", "test"), ("Sort it", "test"), ("sort it", UNSPLIT), (None, UNSPLIT), ("plot it", "train")]
    assert find(*pairs) == Leaks(0, 0, [])


def test_every_block_is_looked_at(monkeypatch):
    monkeypatch.setattr(leaks, "BLOCK", 2)
    test = [(f"{LONG} since day {number}", "test") for number in range(5)]
    train = [(f"{LONG} since day {number}!", "train") for number in range(5)]
    assert [leak.query for leak in find(*test, *train).examples] == [query for query, _ in test]


def test_description_has_the_number_and_an_example():
    found = find(("Sort it", "train"), ("sort it", "test"))
    assert leaks.describe(found) == (
        "1 of the queries of dev or test are also in an earlier split, such as 'sort it' (test) and 'Sort it' (train)"
    )


def test_queries_too_short_for_a_run_of_three_characters():
    assert find(("a", "train"), ("b", "test")).examples == []


def test_equal_queries_are_counted_to_the_last_and_the_first_are_shown(monkeypatch):
    monkeypatch.setattr(leaks, "SHOWN", 2)
    monkeypatch.setattr(leaks, "MOST", 1)
    queries = [f"{LONG} since day {number}" for number in range(5)]
    found = find(*((query, split) for split in ("train", "test") for query in queries))
    assert (found.equal, found.near) == (5, 0)
    assert [leak.query for leak in found.examples] == queries[:2]
