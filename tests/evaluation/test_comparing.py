import numpy as np
import pandas as pd
import pytest

from reranker.evaluation import significance
from reranker.evaluation.comparing import COLUMNS, MEASURES, detectable, judge, table
from reranker.evaluation.significance import holm

KEYS = ["query_id", "passage_id"]
# q1: the graded right passages are a and c; q2: its right passage a was missed and is added; of the others b is judged
PAIRS = pd.DataFrame(
    [*(("q1", p, True) for p in "abcd"), ("q2", "b", True), ("q2", "c", True), ("q2", "a", False)],
    columns=[*KEYS, "retrieved"],
)
JUDGMENTS = pd.DataFrame(
    [("q1", "a", 3), ("q1", "b", 0), ("q1", "c", 1), ("q2", "a", 1), ("q2", "b", 0)], columns=[*KEYS, "relevance"]
)
SCORES = {"good": [pd.Series([4.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0])], "poor": [pd.Series([1.0, 3.0, 2.0, 4.0, 3, 2, 1])]}
SECOND, THIRD = 1 / np.log2(3), 0.5


def measured(system: str, mode: str = "retrieved", *, judged_only: bool = False) -> pd.DataFrame:
    values, _ = judge(PAIRS, JUDGMENTS, SCORES, judged_only=judged_only)
    return values[system, mode]


def test_every_measure_is_trec_evals_with_graded_gains():
    ideal = 3 + SECOND
    good = measured("good").loc["q1"]  # a d c b
    assert good.to_dict() == pytest.approx(
        {
            "ndcg@5": (3 + THIRD) / ideal,
            "ndcg@10": (3 + THIRD) / ideal,
            "ndcg@20": (3 + THIRD) / ideal,
            "mrr@10": 1.0,
            "map": (1 + 2 / 3) / 2,
            "p@1": 1.0,
            "recall@10": 1.0,
            "recall@30": 1.0,
        }
    )
    assert measured("good").loc["q2"].tolist() == [0.0] * 8
    assert measured("good", "all_positives").loc["q2"].tolist() == [1.0] * 8
    assert measured("poor", "all_positives").loc["q2", "ndcg@10"] == pytest.approx(THIRD)


def test_judged_only_leaves_out_what_nobody_judged_before_anything_is_counted():
    good = measured("good", judged_only=True).loc["q1"]  # a c b: d is not judged for q1
    assert good["ndcg@10"] == pytest.approx(1.0)
    poor = measured("poor", judged_only=True).loc["q1"]  # b c a
    assert poor["ndcg@10"] == pytest.approx((SECOND + 3 * THIRD) / (3 + SECOND))
    assert poor["p@1"] == 0.0
    assert measured("poor", "all_positives", judged_only=True).loc["q2", "ndcg@10"] == pytest.approx(SECOND)


def test_repeats_are_averaged_query_by_query_and_their_spread_is_kept():
    (good,), (poor,) = SCORES.values()
    values, deviations = judge(PAIRS, JUDGMENTS, {"both": [good, poor], "once": [good]}, judged_only=False)
    means = [measured(system)["ndcg@10"] for system in SCORES]
    assert values["both", "retrieved"]["ndcg@10"].tolist() == pytest.approx(((means[0] + means[1]) / 2).tolist())
    assert deviations == {"both": pytest.approx(np.std([means[0].mean(), means[1].mean()], ddof=1))}


def values_of(**systems: list[float]) -> dict[tuple[str, str], pd.DataFrame]:
    return {
        (system, mode): pd.DataFrame(dict.fromkeys(MEASURES, column))
        for system, column in systems.items()
        for mode in ("retrieved", "all_positives")
    }


def test_detectable_is_2_8_standard_errors_of_the_differences_and_nothing_for_one_query():
    differences = np.array([0.1, 0.3, -0.1, 0.1])
    assert detectable(differences) == pytest.approx((1.959964 + 0.841621) * np.sqrt(0.08 / 3) / 2, rel=1e-6)
    assert np.isnan(detectable(differences[:1]))


def test_table_has_each_system_and_mode_and_its_differences_in_one_of_them():
    generator = np.random.default_rng(3)
    base = generator.uniform(0.2, 0.5, 60)
    columns = {"base": base, "twin": base, "best": base + generator.uniform(0, 0.3, 60), "low": base - 0.1}
    kinds = {"base": "retriever", "twin": "run", "best": "fused", "low": "bm25"}
    found = table(values_of(**columns), kinds, "base", {"twin": 0.25}, seed=1)
    assert tuple(found.columns) == COLUMNS
    assert found["system"].tolist() == [name for name in kinds for _ in range(2)]
    assert found["mode"].tolist() == ["retrieved", "all_positives"] * 4
    assert found["queries"].tolist() == [60] * 8
    rows = found[found["mode"] == "retrieved"].set_index("system")
    tested = [name for name in COLUMNS if "_vs_" in name] + ["detectable", "ndcg@10_sd_of_repeats"]
    assert found.loc[found["mode"] == "all_positives", tested].isna().all(axis=None)
    assert rows.loc["base", [name for name in tested if "baseline" in name or name == "detectable"]].isna().all()
    assert rows.loc["best", [name for name in tested if "best" in name]].isna().all()
    assert rows.loc["twin", ["gain_vs_baseline", "p_vs_baseline", "detectable"]].tolist() == [0.0, 1.0, 0.0]
    assert rows["ndcg@10_sd_of_repeats"].dropna().to_dict() == {"twin": 0.25}
    differences = columns["best"] - base
    best = rows.loc["best"]
    assert best["gain_vs_baseline"] == pytest.approx(differences.mean())
    assert best["detectable"] == pytest.approx(detectable(differences))
    interval = best["gain_vs_baseline_low"], best["gain_vs_baseline_high"]
    assert interval == significance.bootstrap_interval(differences, seed=1)
    others = rows.drop(index="base")
    assert others["p_vs_baseline_holm"].tolist() == holm(others["p_vs_baseline"].tolist())
    assert rows.loc["low", "gain_vs_best"] == pytest.approx((columns["low"] - columns["best"]).mean())
    assert best["p_vs_baseline"] < best["p_vs_baseline_holm"] < 0.01


def test_one_query_has_intervals_of_no_width_and_nothing_detectable():
    found = table(values_of(base=[0.25], other=[0.5]), {"base": "bm25", "other": "run"}, "base", {}, seed=1)
    row = found[(found["system"] == "other") & (found["mode"] == "retrieved")].iloc[0]
    assert (row["ndcg@10_low"], row["ndcg@10"], row["ndcg@10_high"]) == (0.5, 0.5, 0.5)
    assert (row["gain_vs_baseline_low"], row["gain_vs_baseline_high"], row["p_vs_baseline"]) == (0.25, 0.25, 1.0)
    assert np.isnan(row["detectable"])


def test_without_the_values_of_the_baseline_the_others_are_compared_with_the_best_alone():
    found = table(values_of(one=[0.2, 0.4], two=[0.5, 0.6]), {"one": "bm25", "two": "run"}, None, {}, seed=1)
    assert found["gain_vs_baseline"].isna().all()
    assert found["gain_vs_best"].dropna().tolist() == pytest.approx([-0.25])
