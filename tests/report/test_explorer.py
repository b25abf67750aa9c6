"""Tests of the queries of the page: their ranks, marks and order, and the data that is packed for the script."""

import base64
import json
import zlib

import pandas as pd
import pytest

from reranker.evaluation import metrics
from reranker.report import explorer
from reranker.report.explorer import IRRELEVANT, RELEVANT, UNJUDGED, Passage, explore, pack, worst
from reranker.report.tables import label

IDS = [f"p{number:02}" for number in range(14)]
PASSAGES = {passage_id: Passage(f"Passage {passage_id} <b>of</b> words.", passage_id) for passage_id in IDS}
JUDGMENTS = pd.DataFrame(
    [("q1", "p00", 1), ("q1", "p03", 0), ("q2", "p13", 2), ("q3", "p01", 1), ("q3", "p12", 1), ("other", "p00", 1)],
    columns=["query_id", "passage_id", "relevance"],
)
TEXTS = {"q1": "sort a list", "q2": "Read a file", "q3": "apples", "other": "of the training"}
SYSTEMS = ("retriever", "bm25", "reranker")


def run(order: dict[str, list[str]]) -> pd.DataFrame:
    """A run whose scores rank the passages of each query in this order."""
    rows = [(query, passage, -place / 10) for query, ids in order.items() for place, passage in enumerate(ids)]
    return pd.DataFrame(rows, columns=["query_id", "passage_id", "score"])


RUNS = {
    "retriever": run({"q1": IDS[:12], "q2": IDS[:12], "q3": IDS[1:4]}),
    "reranker": run({"q1": [*IDS[3:12], "p02", "p00", "p01"], "q2": IDS[:12][::-1], "q3": IDS[1:4]}),
}


def figures() -> pd.DataFrame:
    """NDCG@10 per query, as the evaluate stage writes it."""
    own = JUDGMENTS[JUDGMENTS["query_id"] != "other"]
    values = {name: metrics.per_query(own, table, ["nDCG@10"])["nDCG@10"] for name, table in RUNS.items()}
    return pd.DataFrame({"retriever": values["retriever"], "bm25": 0.5, "reranker": values["reranker"]}).reset_index()


def holds(query: str, passage: str) -> bool:
    return True


@pytest.fixture
def queries() -> list[explorer.Query]:
    return explore(figures(), TEXTS, PASSAGES, JUDGMENTS, RUNS, holds)


def by_id(queries: list[explorer.Query], query_id: str) -> explorer.Query:
    return next(query for query in queries if query.query_id == query_id)


def unpack(text: str) -> dict[str, object]:
    return json.loads(zlib.decompress(base64.b64decode(text)))


def test_queries_of_test_are_sorted_by_text_whatever_the_case_of_letters(queries):
    assert [query.text for query in queries] == ["apples", "Read a file", "sort a list"]


def test_first_ten_of_both_rankings_have_their_rank_in_the_other_and_their_judgment(queries):
    query = by_id(queries, "q1")
    assert [hit.passage_id for hit in query.retriever] == IDS[:10]
    assert [hit.passage_id for hit in query.reranker] == [*IDS[3:12], "p02"]
    assert [hit.other for hit in query.reranker] == [4, 5, 6, 7, 8, 9, 10, 11, 12, 3]
    assert [hit.other for hit in query.retriever][:4] == [11, 12, 10, 1]
    assert [hit.mark for hit in query.retriever][:4] == [RELEVANT, UNJUDGED, UNJUDGED, IRRELEVANT]


def test_relevant_passages_have_both_ranks_and_the_missed_ones_are_last(queries):
    assert by_id(queries, "q1").relevant == [("p00", 1, 11)]
    assert by_id(queries, "q2").relevant == [("p13", 0, 0)]
    assert by_id(queries, "q3").relevant == [("p01", 1, 1), ("p12", 0, 0)]


def test_equal_scores_are_ranked_as_the_measures_do():
    tied = pd.DataFrame({"query_id": "q1", "passage_id": IDS[:3], "score": [1.0, 1.0 + 1e-12, 1.0]})
    [query] = explore(figures()[:1], TEXTS, PASSAGES, JUDGMENTS, {"retriever": tied, "reranker": tied}, holds)
    assert [hit.passage_id for hit in query.reranker] == ["p02", "p01", "p00"]
    assert metrics.per_query(JUDGMENTS[:1], tied, ["RR@10"])["RR@10"].tolist() == [1 / 3]


def test_guess_is_made_where_no_relevant_passage_is_first(queries):
    assert by_id(queries, "q2").reason == explorer.MISSED
    assert by_id(queries, "q3").reason == explorer.NONE
    calls = []

    def cut(query: str, passage: str) -> bool:
        calls.append((query, passage))
        return False

    some = explore(figures(), TEXTS, PASSAGES, JUDGMENTS, RUNS, cut)
    assert by_id(some, "q1").reason == explorer.CUT
    assert calls == [("sort a list", PASSAGES["p00"].text)]


def test_judged_passage_above_the_relevant_one_is_no_unjudged_near_duplicate():
    twins = PASSAGES | {passage_id: Passage("x", "p00") for passage_id in ("p03", "p04")}
    query = by_id(explore(figures(), TEXTS, twins, JUDGMENTS, RUNS, holds), "q1")
    assert query.reason == explorer.NEAR
    only = twins | {"p04": PASSAGES["p04"]}  # only p03 is left, which is judged irrelevant
    assert by_id(explore(figures(), TEXTS, only, JUDGMENTS, RUNS, holds), "q1").reason == explorer.NONE


def test_worst_queries_are_those_with_a_loss_and_the_largest_loss_is_first(queries):
    assert [query.query_id for query in worst(queries, 50)] == ["q1"]
    ties = [query._replace(ndcg={"retriever": 0.5, "bm25": 0.0, "reranker": 0.0}) for query in queries]
    assert worst(ties, 2) == ties[:2]


def test_last_bits_of_a_sum_are_no_loss(queries):
    tie = queries[0]._replace(ndcg={"retriever": 0.3, "bm25": 0.0, "reranker": 0.1 + 0.2 - 1e-12})
    assert worst([tie], 50) == []
    first, _, last = unpack(pack([tie], PASSAGES))["queries"][0][2]
    assert first == last


def test_pack_has_each_text_once_and_cut_and_refers_to_it_by_its_place(queries):
    long = PASSAGES | {"p01": Passage("sort  it\n" * 99, "p01")}
    content = unpack(pack(queries, long))
    ids, texts = content["passages"]
    assert sorted(ids) == [*IDS[:12], "p12", "p13"]
    assert max(map(len, texts)) <= explorer.TEXT
    assert texts[ids.index("p01")].startswith("sort it sort it")
    assert texts[ids.index("p01")].endswith("…")
    assert content["systems"] == [label(system) for system in SYSTEMS]
    query_id, text, ndcg, reason, retriever, reranker, relevant, number = content["queries"][2]
    assert (query_id, text, number) == ("q1", "sort a list", 1)
    assert (ndcg[content["retriever"]], ndcg[content["reranker"]]) == (1_000_000, 0)
    assert content["reasons"][reason] == explorer.NONE
    assert [ids[hit[0]] for hit in retriever] == IDS[:10]
    assert reranker[0] == [ids.index("p03"), 0.0, 4, -1]
    assert relevant == [[ids.index("p00"), 1, 11]]


def test_same_queries_give_the_same_bytes(queries):
    assert pack(queries, PASSAGES) == pack(queries, dict(reversed(PASSAGES.items())))


def test_texts_are_cut_shorter_where_there_are_many(queries, monkeypatch):
    monkeypatch.setattr(explorer, "BUDGET", 14 * 90)
    many = {passage_id: Passage("word " * 99, passage_id) for passage_id in IDS}
    _, texts = unpack(pack(queries, many))["passages"]
    assert {len(text) for text in texts} == {90}


def test_lookup_has_the_passages_that_are_named_and_no_others():
    table = pd.DataFrame({"passage_id": IDS, "text": "a", "group": "g"})
    passages = explorer.lookup(table, JUDGMENTS, RUNS["retriever"][:3])
    assert sorted(passages) == ["p00", "p01", "p02", "p03", "p12", "p13"]
    assert passages["p00"] == Passage("a", "g")
