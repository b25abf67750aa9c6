import json

import numpy as np
import pandas as pd
import pytest

from reranker.common.errors import UserError
from reranker.evaluation import comparison, significance
from reranker.evaluation.comparison import MEASURES, Comparison

IDS = ["query_id", "passage_id"]
# q1: the right passage is retrieved; q2: it was missed and is added; q3: of two right ones a was missed
PAIRS = pd.DataFrame(
    [*(("q1", p) for p in "abc"), *(("q2", p) for p in "bca"), *(("q3", p) for p in "bca")], columns=IDS
)
RETRIEVED = pd.Series([True, True, True, True, True, False, True, True, False])
JUDGMENTS = pd.DataFrame([("q1", "a", 1), ("q2", "a", 1), ("q3", "a", 1), ("q3", "b", 1)], columns=[*IDS, "relevance"])
SCORES = {
    "good": pd.Series([3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 2.0, 1.0, 3.0]),
    "poor": pd.Series([1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 1.0, 2.0, 0.0]),
}
SECOND = 1 / np.log2(3)
THIRD = 0.5


@pytest.fixture
def values() -> comparison.Values:
    return comparison.both_modes(PAIRS, RETRIEVED, JUDGMENTS, SCORES)


def ndcg(values: comparison.Values, system: str, mode: str) -> list[float]:
    return values[system, mode]["ndcg@10"].tolist()


def test_missed_right_passage_counts_against_every_system_and_is_added_in_the_other_mode(values):
    assert ndcg(values, "good", "retrieved") == pytest.approx([1.0, 0.0, 1 / (1 + SECOND)])
    assert ndcg(values, "poor", "retrieved") == pytest.approx([THIRD, 0.0, SECOND / (1 + SECOND)])
    assert ndcg(values, "good", "all_positives") == pytest.approx([1.0, 1.0, 1.0])
    assert ndcg(values, "poor", "all_positives") == pytest.approx([THIRD, THIRD, (SECOND + THIRD) / (1 + SECOND)])


def test_every_measure_has_its_own_name_and_value(values):
    table = values["poor", "retrieved"]
    assert table.columns.tolist() == list(MEASURES) == ["ndcg@10", "mrr@10", "map", "recall@10", "recall@30"]
    assert table.index.tolist() == ["q1", "q2", "q3"]
    assert table.loc["q3"].tolist() == pytest.approx([SECOND / (1 + SECOND), 0.5, 0.25, 0.5, 0.5])
    assert values["poor", "all_positives"]["recall@30"].tolist() == [1.0, 1.0, 1.0]


def test_query_whose_candidates_are_all_added_scores_zero_when_only_retrieved_ones_count():
    values = comparison.both_modes(PAIRS, RETRIEVED & (PAIRS["query_id"] != "q1"), JUDGMENTS, SCORES)
    assert values["good", "retrieved"].loc["q1"].tolist() == [0.0] * 5
    assert ndcg(values, "good", "all_positives") == [1.0, 1.0, 1.0]


def test_scores_are_put_into_the_order_of_the_pairs_and_others_are_left_out():
    scored = PAIRS.assign(score=np.arange(9.0)).sample(frac=1, random_state=1)
    scored = pd.concat([scored, pd.DataFrame({"query_id": ["q9"], "passage_id": ["a"], "score": [99.0]})])
    assert comparison.align(PAIRS, scored, "zero_shot").tolist() == list(range(9))


def test_pair_without_a_score_is_an_error_that_names_the_file_and_the_stage():
    scored = PAIRS.assign(score=1.0).drop(index=[2, 5])
    with pytest.raises(UserError) as caught:
        comparison.align(PAIRS, scored, "zero_shot")
    assert str(caught.value) == (
        "data/scored/zero_shot.parquet: 2 of 9 candidates have no score; run `dvc repro score@zero_shot`"
    )


def test_score_that_is_not_a_number_is_an_error_too():
    with pytest.raises(UserError, match="9 of 9 candidates have no score"):
        comparison.align(PAIRS, PAIRS.assign(score=np.nan), "zero_shot")


def test_summary_has_the_means_and_the_interval_of_each_system_and_mode(values):
    systems = comparison.summarise(values, seed=3)
    assert systems.columns[:5].tolist() == ["system", "mode", "ndcg@10", "ndcg@10_low", "ndcg@10_high"]
    assert list(zip(systems["system"], systems["mode"], strict=True)) == list(values)
    for row, table in zip(systems.to_dict("records"), values.values(), strict=True):
        assert [row[name] for name in MEASURES] == pytest.approx([np.mean(table[name].tolist()) for name in MEASURES])
        interval = significance.bootstrap_interval(table["ndcg@10"].to_numpy(), seed=3)
        assert (row["ndcg@10_low"], row["ndcg@10_high"]) == interval
        assert row["ndcg@10_low"] <= row["ndcg@10"] <= row["ndcg@10_high"]


def many(shift: float) -> comparison.Values:
    """Fifty queries on which `good` is better than `poor` by about `shift`."""
    generator = np.random.default_rng(4)
    base = generator.uniform(0.2, 0.6, size=50)
    better = base + shift + generator.normal(0, 0.05, size=50)
    return {
        (system, "retrieved"): pd.DataFrame({"ndcg@10": column})
        for system, column in (("good", better), ("poor", base), ("twin", better))
    }


def test_gain_is_the_mean_difference_inside_its_interval_and_changes_sign_with_the_sides():
    values = many(0.1)
    (found,) = comparison.compare(values, "good", ["poor"], seed=1).values()
    assert found.gain == pytest.approx(0.1, abs=0.02)
    assert 0 < found.low < found.gain < found.high
    assert found.p < 0.001
    (turned,) = comparison.compare(values, "poor", ["good"], seed=1).values()
    assert turned.gain == pytest.approx(-found.gain)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.p == found.p


def test_system_that_gives_the_same_ranking_gains_nothing_with_p_1():
    assert comparison.compare(many(0.1), "good", ["twin"], seed=1) == {"twin": Comparison(0.0, 0.0, 0.0, 1.0)}


def test_tiny_noise_is_not_significant():
    (found,) = comparison.compare(many(0.0), "good", ["poor"], seed=1).values()
    assert found.low < 0 < found.high
    assert found.p > 0.05


def test_comparison_is_of_the_retrieved_candidates(values):
    found = comparison.compare(values, "good", ["poor"], seed=1)["poor"]
    assert found.gain == pytest.approx((THIRD + (1 - SECOND) / (1 + SECOND)) / 3)


@pytest.fixture
def figures() -> dict[str, float | int]:
    names = ["retriever", "zero_shot", "tuned_biencoder", "cross_encoder", "reranker"]
    scores = {name: SCORES["good" if name == "reranker" else "poor"] for name in names}
    values = comparison.both_modes(PAIRS, RETRIEVED, JUDGMENTS, scores)
    compared = comparison.compare(values, "reranker", names[:3], seed=1)
    return comparison.flatten(comparison.summarise(values, seed=1), compared, "reranker", queries=3)


def test_flat_figures_have_every_name_that_is_promised(figures):
    wanted = {"queries", "ndcg@10", "mrr@10", "map", "recall@30", "ndcg@10_all_positives"}
    wanted |= {f"ndcg@10_{system}" for system in ("retriever", "zero_shot", "tuned_biencoder", "cross_encoder")}
    for other in ("retriever", "zero_shot", "tuned_biencoder"):
        wanted |= {f"gain_vs_{other}", f"gain_vs_{other}_low", f"gain_vs_{other}_high", f"p_vs_{other}"}
    assert wanted <= set(figures)


def test_flat_figures_are_plain_numbers_of_the_right_system_and_mode(figures):
    assert json.loads(json.dumps(figures)) == figures
    assert figures["queries"] == 3
    assert figures["ndcg@10"] == pytest.approx((1 + 1 / (1 + SECOND)) / 3)
    assert figures["ndcg@10_all_positives"] == 1.0
    assert figures["ndcg@10_zero_shot"] == pytest.approx((THIRD + SECOND / (1 + SECOND)) / 3)
    assert figures["gain_vs_zero_shot"] == pytest.approx(figures["ndcg@10"] - figures["ndcg@10_zero_shot"])
    assert "ndcg@10_reranker" not in figures


def test_table_by_query_has_one_row_a_query_and_one_column_a_system(values):
    table = comparison.by_query(values, "mrr@10")
    assert table.columns.tolist() == ["query_id", "good", "poor"]
    assert table["query_id"].tolist() == ["q1", "q2", "q3"]
    assert table["good"].tolist() == [1.0, 0.0, 1.0]
    assert table["poor"].tolist() == pytest.approx([1 / 3, 0.0, 1 / 2])


def test_figures_of_each_source_are_means_over_its_queries(values):
    sources = pd.Series({"q1": "faq", "q2": "wiki", "q3": "wiki", "q9": "other"})
    assert comparison.by_source(values, sources, "good", ["poor"]) == pytest.approx(
        {
            "queries_of_faq": 1,
            "queries_of_wiki": 2,
            "ndcg@10_of_faq": 1.0,
            "ndcg@10_of_wiki": (0 + 1 / (1 + SECOND)) / 2,
            "ndcg@10_poor_of_faq": THIRD,
            "ndcg@10_poor_of_wiki": (0 + SECOND / (1 + SECOND)) / 2,
        }
    )


def test_single_source_has_no_figures_of_its_own(values):
    assert comparison.by_source(values, pd.Series("faq", index=["q1", "q2", "q3"]), "good", ["poor"]) == {}
