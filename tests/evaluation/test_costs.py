import numpy as np
import pandas as pd
import pytest

from reranker.evaluation.costs import AT_LEAST, COST_COLUMNS, Cost, measure, sample_queries, sum_costs, table

PASSAGES = pd.DataFrame({"passage_id": [f"p{n}" for n in range(9)], "text": [f"text {n}" for n in range(9)]})
PAIRS = pd.DataFrame(
    [("q2", "p3", 2), ("q2", "p1", 1), ("q1", "p0", 1), ("q1", "p8", 3), ("q1", "p4", 2)],
    columns=["query_id", "passage_id", "rank"],
).assign(query=lambda rows: "ask " + rows["query_id"], passage=lambda rows: "text " + rows["passage_id"].str[1:])


def test_queries_get_the_retrievers_best_passages_and_then_others_of_the_corpus():
    first, second = sample_queries(PAIRS, PASSAGES, 4, seed=1)
    assert first["passage"].tolist()[:3] == ["text 0", "text 4", "text 8"]
    assert second["passage"].tolist()[:2] == ["text 1", "text 3"]
    for sample, name in ((first, "q1"), (second, "q2")):
        assert sample["passage"].nunique() == 4
        assert set(sample["query"]) == {f"ask {name}"}
        assert sample["retrieved"].all()
    again = sample_queries(PAIRS, PASSAGES, 4, seed=1)
    assert [each["passage"].tolist() for each in again] == [first["passage"].tolist(), second["passage"].tolist()]
    assert [len(each) for each in sample_queries(PAIRS, PASSAGES, 2, seed=1)] == [2, 2]
    assert [len(each) for each in sample_queries(PAIRS, PASSAGES, 100, seed=1)] == [9, 9]
    assert len(sample_queries(PAIRS, PASSAGES, 4, queries=1, seed=1)) == 1


def test_each_query_is_timed_by_itself_after_one_that_does_not_count():
    seen = []

    def scores(pairs: pd.DataFrame) -> np.ndarray:
        seen.append((pairs["query_id"].iloc[0], len(pairs)))
        return np.zeros(len(pairs))

    queries = {width: sample_queries(PAIRS, PASSAGES, width, seed=1) for width in (2, 4)}
    seconds = measure(scores, queries)
    assert seen == [("q1", 2), ("q1", 2), ("q2", 2), ("q1", 4), ("q1", 4), ("q2", 4)]
    assert {width: len(times) for width, times in seconds.items()} == {2: 2, 4: 2}


def test_slow_system_is_timed_on_fewer_queries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reranker.evaluation.costs.SECONDS", 0.0)
    queries = sample_queries(PAIRS, PASSAGES, 2, seed=1) * 10
    seconds = measure(lambda pairs: np.zeros(len(pairs)), {2: queries})
    assert len(seconds[2]) == AT_LEAST


def test_costs_are_added_query_by_query():
    one = Cost(5, 1.0, {30: np.array([0.1, 0.2, 0.3]), 100: np.array([1.0, 2.0])})
    two = Cost(6, 0.5, {30: np.array([0.2, 0.2]), 100: np.array([1.0, 1.0, 1.0])})
    both = sum_costs([one, two])
    assert (both.parameters, both.megabytes) == (11, 1.5)
    assert both.seconds[30].tolist() == pytest.approx([0.3, 0.4])
    assert both.seconds[100].tolist() == pytest.approx([2.0, 3.0])


def test_table_has_speed_and_price_from_the_times_of_a_query():
    cost = Cost(5, 1.0, {30: np.array([0.1, 0.2, 0.3]), 100: np.array([1.0, 2.0])})
    costs = table({"mine": cost}, {30: [30, 30, 20, 30], 100: [100, 100]}, usd_per_hour=1.8)
    assert tuple(costs) == COST_COLUMNS
    assert costs.iloc[0].to_dict() == {
        "system": "mine",
        "parameters": 5,
        "megabytes": 1.0,
        "pairs_per_second": pytest.approx(80 / 0.6),
        "p50_ms_30": pytest.approx(200.0),
        "p95_ms_30": pytest.approx(290.0),
        "p50_ms_100": pytest.approx(1500.0),
        "p95_ms_100": pytest.approx(1950.0),
        "usd_per_1000_queries": pytest.approx(1000 * 0.2 / 3600 * 1.8),
    }
