import math

import numpy as np
import pandas as pd
import pytest
import pytrec_eval

from reranker.evaluation.comparison import MEASURES as COMPARED
from reranker.evaluation.metrics import mean_ndcg, per_query

MEASURES = ["nDCG@10", "RR@10", "AP", "R@3"]


def qrels(**relevance: dict[str, int]) -> pd.DataFrame:
    rows = [(query, passage, value) for query, values in relevance.items() for passage, value in values.items()]
    return pd.DataFrame(rows, columns=["query_id", "passage_id", "relevance"])


def ranking(**scores: dict[str, float]) -> pd.DataFrame:
    rows = [(query, passage, value) for query, values in scores.items() for passage, value in values.items()]
    return pd.DataFrame(rows, columns=["query_id", "passage_id", "score"]).astype({"score": float})


TREC_EVAL = {
    "ndcg@5": "ndcg_cut_5", "ndcg@10": "ndcg_cut_10", "ndcg@20": "ndcg_cut_20", "mrr@10": "recip_rank", "map": "map",
    "p@1": "P_1", "recall@10": "recall_10", "recall@30": "recall_30",
}  # fmt: skip


def test_mean_is_over_the_queries_of_the_pairs_alone():
    pairs = ranking(q={"a": 0, "b": 0}, r={"a": 0, "b": 0})
    judgments = qrels(q={"a": 1}, r={"a": 1}, s={"a": 1})
    assert mean_ndcg(judgments, pairs, np.array([2.0, 1.0, 1.0, 2.0])) == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert mean_ndcg(judgments, pairs, pd.Series([2.0, 1.0, 2.0, 1.0], index=[7, 8, 9, 10])) == 1


def test_measures_have_the_values_computed_by_hand():
    table = per_query(qrels(q={"b": 1, "d": 1}), ranking(q={"a": 4, "b": 3, "c": 2, "d": 1}), MEASURES)
    ideal = 1 + 1 / math.log2(3)
    expected = [(1 / math.log2(3) + 1 / math.log2(5)) / ideal, 1 / 2, (1 / 2 + 2 / 4) / 2, 1 / 2]
    assert table.loc["q"].tolist() == pytest.approx(expected)


def test_graded_relevance_gives_graded_gain():
    value = per_query(qrels(q={"a": 1, "b": 3}), ranking(q={"a": 2, "b": 1}), ["nDCG@10"]).loc["q", "nDCG@10"]
    assert value == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_every_measure_agrees_with_trec_eval_on_random_runs_with_ties_and_queries_without_results():
    generator = np.random.default_rng(3)
    names = [f"p{number}" for number in range(50)]
    relevance, scores = {}, {}
    for query in (f"q{number:02}" for number in range(40)):
        graded = generator.choice(names, size=generator.integers(1, 9), replace=False)
        relevance[query] = {name: int(generator.integers(0, 4)) for name in graded}
        candidates = generator.choice(names, size=generator.integers(0, 45), replace=False)
        scores[query] = {name: float(generator.integers(0, 5)) for name in candidates}
    scores["q00"] = {}
    theirs = pytrec_eval.RelevanceEvaluator(relevance, set(TREC_EVAL.values())).evaluate(scores)
    table = per_query(qrels(**relevance), ranking(**scores).sample(frac=1, random_state=1), list(COMPARED.values()))
    assert table.index.tolist() == sorted(relevance)
    for query, row in table.set_axis(list(COMPARED), axis=1).iterrows():
        expected = {name: theirs.get(query, {}).get(key, 0.0) for name, key in TREC_EVAL.items()}
        if expected["mrr@10"] < 1 / 10:  # trec_eval's reciprocal rank has no cut-off
            expected["mrr@10"] = 0.0
        assert row.to_dict() == pytest.approx(expected), query


def test_relevant_passage_that_was_not_retrieved_lowers_the_measures():
    row = per_query(qrels(q={"a": 1, "b": 1}), ranking(q={"a": 1.0}), MEASURES).loc["q"]
    assert row["nDCG@10"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert row["AP"] == row["R@3"] == 0.5
    assert row["RR@10"] == 1


@pytest.mark.parametrize("scores", [{}, {"other": {"a": 1.0}}, {"q": {"a": 1.0}}])
def test_query_without_results_scores_zero(scores):
    table = per_query(qrels(q={"a": 1}, r={"a": 1}), ranking(**scores), MEASURES)
    assert table.index.tolist() == ["q", "r"]
    assert table.columns.tolist() == MEASURES
    assert (table.loc["r"] == 0).all()
    assert table.loc["q", "RR@10"] == ("q" in scores)


@pytest.mark.parametrize("measure", ["nDCG@1", "RR@10", "RR", "R@1", "AP"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_equal_scores_are_ranked_by_passage_id_from_the_last_in_every_measure(measure, order):
    run = ranking(q={"p1": 0.5, "p10": 0.5, "p2": 0.5}).iloc[order]
    assert per_query(qrels(q={"p2": 1}), run, [measure]).loc["q", measure] == 1
    assert per_query(qrels(q={"p1": 1}), run, [measure]).loc["q", measure] == pytest.approx(
        1 / 3 if measure in ("RR@10", "RR", "AP") else 0
    )


def test_scores_that_single_precision_cannot_tell_apart_are_ties_as_in_trec_eval():
    run = ranking(q={"a": 1 + 1e-9, "b": 1.0})
    assert per_query(qrels(q={"a": 1}), run, ["RR@10", "RR", "AP"]).loc["q"].tolist() == [0.5, 0.5, 0.5]


def test_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="not numbers"):
        per_query(qrels(q={"a": 1}), ranking(q={"a": math.nan}), MEASURES)


def test_duplicate_pair_is_refused():
    run = ranking(q={"a": 1})
    with pytest.raises(ValueError, match="twice"):
        per_query(qrels(q={"a": 1}), pd.concat([run, run]), MEASURES)


def test_evaluation_leaves_its_inputs_unchanged():
    judgments, run = qrels(q={"a": 1, "b": 1}), ranking(q={"b": 1, "a": 1, "c": 1})
    before = judgments.copy(), run.copy()
    per_query(judgments, run, MEASURES)
    pd.testing.assert_frame_equal(judgments, before[0])
    pd.testing.assert_frame_equal(run, before[1])
