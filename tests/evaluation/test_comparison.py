import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest

from reranker.common.errors import UserError
from reranker.evaluation import comparison
from reranker.evaluation.comparison import COLUMNS, KEYS, MEASURES, MODES, Difference, detectable
from reranker.evaluation.significance import bootstrap_interval, holm

SECOND, THIRD = 1 / np.log2(3), 0.5
# q1: the right passage is retrieved; q2: it was missed and is added; q3: of two right ones a was missed
PAIRS = pd.DataFrame(
    [*(("q1", p, True) for p in "abc"), *((q, p, p != "a") for q in ("q2", "q3") for p in "bca")],
    columns=[*KEYS, "retrieved"],
)
JUDGMENTS = pd.DataFrame([("q1", "a", 1), ("q2", "a", 1), ("q3", "a", 1), ("q3", "b", 1)], columns=[*KEYS, "relevance"])
SCORES = {
    "good": [pd.Series([3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 2.0, 1.0, 3.0])],
    "poor": [pd.Series([1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 1.0, 2.0, 0.0])],
}
# q1: the graded right passages are a and c; q2: its right passage a was missed and is added; of the others b is judged
GRADED_PAIRS = pd.DataFrame(
    [*(("q1", p, True) for p in "abcd"), ("q2", "b", True), ("q2", "c", True), ("q2", "a", False)],
    columns=[*KEYS, "retrieved"],
)
GRADES = pd.DataFrame(
    [("q1", "a", 3), ("q1", "b", 0), ("q1", "c", 1), ("q2", "a", 1), ("q2", "b", 0)], columns=[*KEYS, "relevance"]
)
GRADED_SCORES = {
    "good": [pd.Series([4.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0])],
    "poor": [pd.Series([1.0, 3.0, 2.0, 4.0, 3.0, 2.0, 1.0])],
}


def measured(
    pairs: pd.DataFrame = PAIRS,
    judgments: pd.DataFrame = JUDGMENTS,
    scores: Mapping[str, list[pd.Series]] = SCORES,
    *,
    judged_only: bool = False,
) -> comparison.Values:
    return comparison.measure(pairs, judgments, scores, label="test", judged_only=judged_only)[0]


def graded(system: str, mode: str = "retrieved", *, judged_only: bool = False) -> pd.DataFrame:
    return measured(GRADED_PAIRS, GRADES, GRADED_SCORES, judged_only=judged_only)[system, mode]


@pytest.fixture
def values() -> comparison.Values:
    return measured()


def ndcg(values: comparison.Values, system: str, mode: str) -> list[float]:
    return values[system, mode]["ndcg@10"].tolist()


def test_missed_relevant_passage_counts_against_every_system_and_is_added_in_the_other_mode(values):
    assert ndcg(values, "good", "retrieved") == pytest.approx([1.0, 0.0, 1 / (1 + SECOND)])
    assert ndcg(values, "poor", "retrieved") == pytest.approx([THIRD, 0.0, SECOND / (1 + SECOND)])
    assert ndcg(values, "good", "all_positives") == pytest.approx([1.0, 1.0, 1.0])
    assert ndcg(values, "poor", "all_positives") == pytest.approx([THIRD, THIRD, (SECOND + THIRD) / (1 + SECOND)])


def test_every_measure_has_its_own_name_and_value(values):
    table = values["poor", "retrieved"]
    assert table.index.tolist() == ["q1", "q2", "q3"]
    ndcg = SECOND / (1 + SECOND)
    assert table.loc["q3"].to_dict() == pytest.approx(
        {
            "ndcg@5": ndcg,
            "ndcg@10": ndcg,
            "ndcg@20": ndcg,
            "mrr@10": 0.5,
            "map": 0.25,
            "p@1": 0.0,
            "recall@10": 0.5,
            "recall@30": 0.5,
        }
    )
    assert values["poor", "all_positives"]["recall@30"].tolist() == [1.0, 1.0, 1.0]


def test_every_measure_is_trec_evals_with_graded_gains():
    good = graded("good").loc["q1"]  # a d c b
    ndcg = (3 + THIRD) / (3 + SECOND)
    assert good.to_dict() == pytest.approx(
        dict.fromkeys(MEASURES, 1.0) | dict.fromkeys(["ndcg@5", "ndcg@10", "ndcg@20"], ndcg) | {"map": (1 + 2 / 3) / 2}
    )
    assert graded("good").loc["q2"].tolist() == [0.0] * 8
    assert graded("good", "all_positives").loc["q2"].tolist() == [1.0] * 8
    assert graded("poor", "all_positives").loc["q2", "ndcg@10"] == pytest.approx(THIRD)


def test_query_without_retrieved_candidates_scores_zero_in_the_mode_retrieved():
    values = measured(PAIRS.assign(retrieved=PAIRS["retrieved"] & (PAIRS["query_id"] != "q1")))
    assert values["good", "retrieved"].loc["q1"].tolist() == [0.0] * 8
    assert ndcg(values, "good", "all_positives") == [1.0, 1.0, 1.0]


def test_judged_only_leaves_out_unjudged_candidates_before_anything_is_computed():
    good = graded("good", judged_only=True).loc["q1"]  # a c b: d is not judged for q1
    assert good["ndcg@10"] == pytest.approx(1.0)
    poor = graded("poor", judged_only=True).loc["q1"]  # b c a
    assert poor["ndcg@10"] == pytest.approx((SECOND + 3 * THIRD) / (3 + SECOND))
    assert poor["p@1"] == 0.0
    assert graded("poor", "all_positives", judged_only=True).loc["q2", "ndcg@10"] == pytest.approx(SECOND)


def test_repeats_are_averaged_query_by_query_and_their_deviation_is_returned(values):
    (good,), (poor,) = SCORES.values()
    both, deviations = comparison.measure(PAIRS, JUDGMENTS, {"both": [good, poor], "once": [good]}, label="test")
    means = [values[system, "retrieved"]["ndcg@10"] for system in SCORES]
    assert both["both", "retrieved"]["ndcg@10"].tolist() == pytest.approx(((means[0] + means[1]) / 2).tolist())
    assert deviations == {"both": pytest.approx(np.std([means[0].mean(), means[1].mean()], ddof=1))}


def test_system_with_a_ranking_of_its_own_comes_first_and_is_measured_on_that_alone():
    ranked = [("q1", "z", 3.0), ("q1", "a", 2.0), ("q2", "a", 1.0), ("q9", "a", 1.0)]
    own = pd.DataFrame(ranked, columns=[*KEYS, "score"])
    values, _ = comparison.measure(PAIRS, JUDGMENTS, SCORES, label="test", runs={"own": own})
    assert list(values)[:2] == [("own", "retrieved"), ("good", "retrieved")]
    assert ("own", "all_positives") not in values
    assert values["own", "retrieved"].index.tolist() == ["q1", "q2", "q3"]
    assert ndcg(values, "own", "retrieved") == pytest.approx([SECOND, 1.0, 0.0])
    values, _ = comparison.measure(PAIRS, JUDGMENTS, SCORES, label="test", judged_only=True, runs={"own": own})
    assert ndcg(values, "own", "retrieved") == pytest.approx([1.0, 1.0, 0.0])


def test_perfect_order_is_limited_by_the_passages_that_were_missed():
    assert comparison.perfect_ndcg(PAIRS, JUDGMENTS) == pytest.approx((1 + 0 + 1 / (1 + SECOND)) / 3)
    assert comparison.perfect_ndcg(GRADED_PAIRS, GRADES) == pytest.approx((1 + 0) / 2)
    assert comparison.perfect_ndcg(PAIRS.assign(retrieved=True), JUDGMENTS) == pytest.approx(1.0)


def test_scores_are_put_into_the_order_of_the_pairs_and_others_are_left_out():
    scored = PAIRS.assign(score=np.arange(9.0)).sample(frac=1, random_state=1)
    scored = pd.concat([scored, pd.DataFrame({"query_id": ["q9"], "passage_id": ["a"], "score": [99.0]})])
    assert comparison.align(PAIRS, scored, "untouched_reranker").tolist() == list(range(9))


def test_pair_without_a_score_is_an_error_that_names_the_file_and_the_stage():
    scored = PAIRS.assign(score=1.0).drop(index=[2, 5])
    with pytest.raises(UserError) as caught:
        comparison.align(PAIRS, scored, "untouched_reranker")
    assert str(caught.value) == (
        "data/scored/untouched_reranker.parquet: 2 of 9 candidates have no score; "
        "run `dvc repro score@untouched_reranker`"
    )


def test_score_that_is_not_a_number_is_an_error_too():
    with pytest.raises(UserError, match="9 of 9 candidates have no score"):
        comparison.align(PAIRS, PAIRS.assign(score=np.nan), "untouched_reranker")


def test_summary_has_the_means_and_the_interval_of_each_system_and_mode(values):
    means = comparison.summarise(values, seed=3)
    assert list(zip(means["system"], means["mode"], strict=True)) == list(values)
    assert means["queries"].tolist() == [3] * 4
    for row, table in zip(means.to_dict("records"), values.values(), strict=True):
        assert [row[name] for name in MEASURES] == pytest.approx([np.mean(table[name].tolist()) for name in MEASURES])
        interval = bootstrap_interval(table["ndcg@10"].to_numpy(), seed=3)
        assert (row["ndcg@10_low"], row["ndcg@10_high"]) == interval
        assert row["ndcg@10_low"] <= row["ndcg@10"] <= row["ndcg@10_high"]


def values_of(**systems: Sequence[float]) -> comparison.Values:
    return {
        (system, mode): pd.DataFrame(dict.fromkeys(MEASURES, column))
        for system, column in systems.items()
        for mode in MODES
    }


def many(shift: float) -> comparison.Values:
    """Values of fifty queries on which `good` is better than `poor` by about `shift`."""
    generator = np.random.default_rng(4)
    base = generator.uniform(0.2, 0.6, size=50)
    better = base + shift + generator.normal(0, 0.05, size=50)
    return values_of(good=better, poor=base, twin=better)


def test_gain_is_the_mean_difference_inside_its_interval_and_changes_sign_with_the_sides():
    values = many(0.1)
    (gain,) = comparison.differences(values, ["good"], "poor", seed=1).values()
    assert gain.gain == pytest.approx(0.1, abs=0.02)
    assert 0 < gain.low < gain.gain < gain.high
    assert gain.p < 0.001
    (loss,) = comparison.differences(values, ["poor"], "good", seed=1).values()
    assert loss.gain == pytest.approx(-gain.gain)
    assert (loss.low, loss.high) == pytest.approx((-gain.high, -gain.low))
    assert (loss.p, loss.detectable) == (gain.p, pytest.approx(gain.detectable))


def test_system_that_gives_the_same_ranking_gains_nothing_with_p_1():
    nothing = {"good": Difference(0.0, 0.0, 0.0, 1.0, 1.0, 0.0)}
    assert comparison.differences(many(0.1), ["good"], "twin", seed=1) == nothing


def test_tiny_noise_is_not_significant():
    (difference,) = comparison.differences(many(0.0), ["good"], "poor", seed=1).values()
    assert difference.low < 0 < difference.high
    assert difference.p > 0.05


def test_difference_is_of_the_retrieved_candidates(values):
    gain = comparison.differences(values, ["good"], "poor", seed=1)["good"].gain
    assert gain == pytest.approx((THIRD + (1 - SECOND) / (1 + SECOND)) / 3)


def test_p_value_is_corrected_for_the_number_of_systems_and_not_for_a_single_one():
    values = many(0.02)
    several = comparison.differences(values, ["good", "twin"], "poor", seed=1)
    assert [each.p_holm for each in several.values()] == holm([each.p for each in several.values()])
    assert several["good"].p_holm == 2 * several["good"].p
    single = comparison.differences(values, ["good"], "poor", seed=1)["good"]
    assert single.p_holm == single.p == several["good"].p


def test_detectable_is_2_8_standard_errors_of_the_differences_and_nan_for_one_query():
    differences = np.array([0.1, 0.3, -0.1, 0.1])
    assert detectable(differences) == pytest.approx((1.959964 + 0.841621) * np.sqrt(0.08 / 3) / 2, rel=1e-6)
    assert np.isnan(detectable(differences[:1]))


def test_table_has_each_system_and_mode_and_its_differences_in_one_of_them():
    generator = np.random.default_rng(3)
    base = generator.uniform(0.2, 0.5, 60)
    columns = {"base": base, "twin": base, "best": base + generator.uniform(0, 0.3, 60), "low": base - 0.1}
    kinds = {"base": "retriever", "twin": "run", "best": "fused", "low": "bm25"}
    table = comparison.compare(values_of(**columns), kinds, "base", {"twin": 0.25}, seed=1)
    assert tuple(table.columns) == COLUMNS
    assert table["system"].tolist() == [name for name in kinds for _ in range(2)]
    assert table["kind"].tolist() == [name for name in kinds.values() for _ in range(2)]
    assert table["mode"].tolist() == ["retrieved", "all_positives"] * 4
    assert table["queries"].tolist() == [60] * 8
    rows = table[table["mode"] == "retrieved"].set_index("system")
    tested = [name for name in COLUMNS if "_vs_" in name] + ["detectable", "ndcg@10_sd_of_repeats"]
    assert table.loc[table["mode"] == "all_positives", tested].isna().all(axis=None)
    assert rows.loc["base", [name for name in tested if "baseline" in name or name == "detectable"]].isna().all()
    assert rows.loc["best", [name for name in tested if "best" in name]].isna().all()
    assert rows.loc["twin", ["gain_vs_baseline", "p_vs_baseline", "detectable"]].tolist() == [0.0, 1.0, 0.0]
    assert rows["ndcg@10_sd_of_repeats"].dropna().to_dict() == {"twin": 0.25}
    differences = columns["best"] - base
    best = rows.loc["best"]
    assert best["gain_vs_baseline"] == pytest.approx(differences.mean())
    assert best["detectable"] == pytest.approx(detectable(differences))
    interval = best["gain_vs_baseline_low"], best["gain_vs_baseline_high"]
    assert interval == bootstrap_interval(differences, seed=1)
    others = rows.drop(index="base")
    assert others["p_vs_baseline_holm"].tolist() == holm(others["p_vs_baseline"].tolist())
    assert rows.loc["low", "gain_vs_best"] == pytest.approx((columns["low"] - columns["best"]).mean())
    assert best["p_vs_baseline"] < best["p_vs_baseline_holm"] < 0.01


def test_one_query_has_intervals_without_width_and_no_detectable_difference():
    kinds = {"base": "bm25", "other": "run"}
    table = comparison.compare(values_of(base=[0.25], other=[0.5]), kinds, "base", {}, seed=1)
    row = table[(table["system"] == "other") & (table["mode"] == "retrieved")].iloc[0]
    assert (row["ndcg@10_low"], row["ndcg@10"], row["ndcg@10_high"]) == (0.5, 0.5, 0.5)
    assert (row["gain_vs_baseline_low"], row["gain_vs_baseline_high"], row["p_vs_baseline"]) == (0.25, 0.25, 1.0)
    assert np.isnan(row["detectable"])


def test_without_values_of_the_baseline_systems_are_compared_only_with_the_best():
    kinds = {"one": "bm25", "two": "run"}
    table = comparison.compare(values_of(one=[0.2, 0.4], two=[0.5, 0.6]), kinds, None, {}, seed=1)
    assert table["gain_vs_baseline"].isna().all()
    assert table["gain_vs_best"].dropna().tolist() == pytest.approx([-0.25])


@pytest.fixture
def figures() -> dict[str, float | int]:
    names = ["retriever", "untouched_reranker", "fusion_without_cross_encoder", "cross_encoder", "reranker"]
    values = measured(scores={name: SCORES["good" if name == "reranker" else "poor"] for name in names})
    gains = {other: comparison.differences(values, ["reranker"], other, seed=1)["reranker"] for other in names[:3]}
    return comparison.flatten(comparison.summarise(values, seed=1), gains, "reranker")


def test_flat_figures_have_all_their_names(figures):
    wanted = {"queries", "ndcg@10", "mrr@10", "map", "recall@30", "ndcg@10_all_positives"}
    wanted |= {
        f"ndcg@10_{system}"
        for system in ("retriever", "untouched_reranker", "fusion_without_cross_encoder", "cross_encoder")
    }
    for other in ("retriever", "untouched_reranker", "fusion_without_cross_encoder"):
        wanted |= {f"gain_vs_{other}", f"gain_vs_{other}_low", f"gain_vs_{other}_high", f"p_vs_{other}"}
    assert wanted <= set(figures)


def test_flat_figures_are_plain_numbers_of_the_right_system_and_mode(figures):
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["queries"], type(figures["queries"])) == (3, int)
    assert figures["ndcg@10"] == pytest.approx((1 + 1 / (1 + SECOND)) / 3)
    assert figures["ndcg@10_all_positives"] == 1.0
    assert figures["ndcg@10_untouched_reranker"] == pytest.approx((THIRD + SECOND / (1 + SECOND)) / 3)
    assert figures["gain_vs_untouched_reranker"] == pytest.approx(
        figures["ndcg@10"] - figures["ndcg@10_untouched_reranker"]
    )
    assert "ndcg@10_reranker" not in figures


def test_table_by_query_has_one_row_a_query_and_one_column_a_system(values):
    table = comparison.by_query(values)
    assert table.columns.tolist() == ["query_id", "good", "poor"]
    assert table["query_id"].tolist() == ["q1", "q2", "q3"]
    assert table["good"].tolist() == pytest.approx([1.0, 0.0, 1 / (1 + SECOND)])
    assert table["poor"].tolist() == pytest.approx([THIRD, 0.0, SECOND / (1 + SECOND)])


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


def test_single_source_has_no_figures(values):
    assert comparison.by_source(values, pd.Series("faq", index=["q1", "q2", "q3"]), "good", ["poor"]) == {}
