"""Tests of the review: verdicts on literal figures, the differences between two sides, and the page."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from reranker.common.revisions import Lock, cache_path
from reranker.review.changes import Change, changed_code, changed_data, changed_values, doubts, reasons_against
from reranker.review.page import CHARACTERS, MARKER, ROWS, Review, review_page
from reranker.review.runs import Run
from reranker.review.verdicts import (
    EXIT,
    WORDS,
    Finding,
    PairedFigure,
    Rules,
    bonferroni,
    compare_paired,
    decide,
    most_changed,
    queries_needed,
)

RULES = Rules(min_gain=0.0, max_loss=0.005, alpha=0.05, test_looks=5)
STAGES = {
    "prepare": {
        "deps": [{"path": "data/raw", "md5": "r"}, {"path": "stages/prepare.py", "md5": "p"}],
        "outs": [{"path": "data/prepared/passages.parquet", "md5": "passages"}],
    },
    "evaluate": {
        "deps": [{"path": "data/prepared/passages.parquet", "md5": "passages"}, {"path": "a.py", "md5": "a"}],
        "outs": [{"path": "data/scored/test.qrels", "md5": "qrels"}],
    },
    "report": {"deps": [{"path": "report.py", "md5": "x"}]},
}


def series(*values: float) -> pd.Series:
    return pd.Series(values, index=[f"q{place:02}" for place in range(len(values))])


def result(difference: float = 0.01, p: float = 0.01, **other: object) -> PairedFigure:
    made = {"queries": 100, "before": 0.4, "after": 0.4 + difference, "p": p, "deviation": 0.1, "changed": 50}
    return PairedFigure(**{"interval": (difference - 0.01, difference + 0.01), **made, **other})


def side(name: str = "main", shift: float = 0.0, **other: object) -> Run:
    test = pd.DataFrame({"reranker": series(*[0.5 + shift] * 40), "cross_encoder": series(*[0.3] * 40)})
    figures = {"evaluate": {"ndcg@10": 0.5 + shift}, "prepare": {"rows": 9}, "train": {}, "mine": {}, "timing": {}}
    made = {"commit": None, "params": {"lr": 1e-4}, "lock": Lock(STAGES), "figures": figures, "per_query": test}
    return Run(**{"name": name, **made, "costs": pd.DataFrame(columns=["system"]), "raw": {}, **other})


def with_hash(path: str, md5: str) -> Lock:
    """The lock with another hash for a file, in all its places."""
    stages = {
        name: {kind: [{**f, "md5": md5} if f["path"] == path else f for f in files] for kind, files in body.items()}
        for name, body in STAGES.items()
    }
    return Lock(stages)


def test_values_are_paired_by_query_whatever_their_order():
    before, after = series(0.1, 0.2, 0.3), series(0.2, 0.3, 0.4)[::-1]
    outcome = compare_paired(before, pd.concat([after, pd.Series({"new": 0.0})]), seed=1)
    assert (outcome.queries, outcome.changed) == (3, 3)
    assert outcome.difference == pytest.approx(0.1)
    assert outcome.interval == pytest.approx((0.1, 0.1))


def test_pair_without_a_common_query_is_refused():
    with pytest.raises(ValueError, match="no queries"):
        compare_paired(series(0.1), pd.Series({"other": 0.1}), seed=1)


@pytest.mark.parametrize(
    ("paired_result", "finding", "word"),
    [
        (result(0.01, 0.01), Finding.GAIN, "pass"),
        (result(0.0, 1.0, changed=0), Finding.SAME, "pass"),
        (result(0.01, 0.05), Finding.UNDETECTED, "noise"),
        (result(-0.01, 0.05), Finding.UNDETECTED, "noise"),
        (result(-0.004, 0.01), Finding.SMALL, "noise"),
        (result(-0.006, 0.01), Finding.LOSS, "regression"),
    ],
)
def test_finding_depends_on_the_difference_and_its_p_value(paired_result: PairedFigure, finding: Finding, word: str):
    outcome = decide(paired_result, RULES, looks=1, reasons=[])
    assert (outcome, outcome.word) == (finding, word)


def test_gain_below_min_gain_is_small():
    assert decide(result(0.01), RULES._replace(min_gain=0.02), looks=1, reasons=[]) is Finding.SMALL
    assert decide(result(0.02), RULES._replace(min_gain=0.02), looks=1, reasons=[]) is Finding.GAIN


def test_gain_is_corrected_for_many_looks_and_a_loss_is_not():
    assert decide(result(0.01, 0.01), RULES, looks=5, reasons=[]) is Finding.GAIN
    assert decide(result(0.01, 0.01), RULES, looks=6, reasons=[]) is Finding.LUCKY
    assert decide(result(0.01, 0.001), RULES, looks=6, reasons=[]) is Finding.GAIN
    assert decide(result(-0.01, 0.01), RULES, looks=60, reasons=[]) is Finding.LOSS


def test_sides_that_cannot_be_compared_have_no_other_verdict():
    assert decide(result(-0.1, 0.001), RULES, looks=1, reasons=["other judgments"]) is Finding.INCOMPARABLE


def test_each_verdict_has_an_exit_status_that_is_not_an_error():
    assert {*WORDS} == {*Finding}
    assert {*WORDS.values()} == {*EXIT}
    assert not {*EXIT.values()} & {1, 2}


def test_correction_is_by_the_number_of_looks_and_at_most_one():
    assert [bonferroni(0.01, looks) for looks in (0, 1, 4, 400)] == pytest.approx([0.01, 0.01, 0.04, 1.0])


def test_queries_needed_give_a_power_of_80_percent():
    outcome = queries_needed(result(0.02, deviation=0.3), alpha=0.05)
    assert outcome == pytest.approx((2.8 * 0.3 / 0.02) ** 2, rel=0.01)
    power = stats.norm.sf(stats.norm.ppf(0.975) - 0.02 * outcome**0.5 / 0.3)
    assert power == pytest.approx(0.8, abs=0.001)
    assert queries_needed(result(0.0), alpha=0.05) is None


def test_most_changed_queries_come_first_and_ties_by_id():
    before, after = series(0.5, 0.5, 0.5, 0.5, 0.5), series(0.7, 0.9, 0.7, 0.5, 0.1)
    assert most_changed(before, after[::-1], 2) == (["q01", "q00"], ["q04"])


def test_changed_values_have_dotted_keys_and_say_which_are_absent():
    before = {"lr": 1e-4, "sources": {"faq": {"files": "a.csv"}}, "old": 1}
    after = {"lr": 2e-5, "sources": {"faq": {"files": "b.csv"}}, "new": [1]}
    assert changed_values(before, after) == [
        Change("lr", 1e-4, 2e-5),
        Change("sources.faq.files", "a.csv", "b.csv"),
        Change("old", 1, "(absent)"),
        Change("new", "(absent)", [1]),
    ]


def test_changed_data_is_listed_with_its_rows_and_hashes():
    base = side(raw={"data/raw/a.csv.dvc": "0123456789"})
    more = {**side().figures, "prepare": {"rows": 12, "passage_tokens_p50": 3}}
    head = side(
        figures=more, raw={"data/raw/b.csv.dvc": "abcdefghij"}, lock=with_hash("data/prepared/passages.parquet", "new")
    )
    assert changed_data(base, head) == [
        Change("rows", 9, 12),
        Change("data/raw/a.csv.dvc", "0123456", "(absent)"),
        Change("data/prepared/passages.parquet", "passage", "new"),
        Change("data/raw/b.csv.dvc", "(absent)", "abcdefg"),
    ]  # fmt: skip
    assert changed_data(base, base) == []


def test_data_in_a_folder_is_named_by_its_tables_where_both_manifests_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    base, head = (
        side(lock=Lock({**STAGES, "prepare": {"outs": [{"path": "data/prepared", "md5": f"{md5}.dir"}]}}))
        for md5 in ("aaaaaaaa", "bbbbbbbb")
    )
    assert changed_data(base, head) == [Change("data/prepared", "aaaaaaa", "bbbbbbb")]
    assert changed_data(side(), head) == [Change("data/prepared", "(absent)", "bbbbbbb")]
    assert doubts(base, head, [], []) == []
    for md5, passages in (("aaaaaaaa", "old"), ("bbbbbbbb", "new")):
        path = cache_path(f"{md5}.dir")
        path.parent.mkdir(parents=True)
        files = {"passages.parquet": passages, "queries.parquet": "same", "leaks.parquet": md5}
        path.write_text(json.dumps([{"md5": hash, "relpath": name} for name, hash in files.items()]))
    assert changed_data(base, head) == [Change("data/prepared/passages.parquet", "old", "new")]
    assert "passages differ" in doubts(base, head, [], [])[0]


def test_changed_code_is_named_with_the_stages_that_use_it_and_only_upstream():
    assert changed_code(side(), side(lock=with_hash("a.py", "b"))) == {("evaluate",): ["a.py"]}
    assert changed_code(side(), side(lock=with_hash("report.py", "b"))) == {}
    assert changed_code(side(), side(lock=with_hash("data/raw", "b"))) == {}


def test_other_queries_judgments_or_stale_figures_cannot_be_compared():
    assert reasons_against(side(), side(), []) == []
    fewer = side(per_query=side().per_query.iloc[1:])
    assert reasons_against(side(), fewer, []) == [
        "other test queries (0 new, 1 gone): only the 39 common ones are compared"
    ]
    judged = side(lock=with_hash("data/scored/test.qrels", "other"))
    assert reasons_against(side(), judged, []) == ["other judgments of the test queries"]
    (stale,) = reasons_against(side(), side(), ["report", "prepare"])
    assert stale.startswith("the figures are older than the change: prepare did not run with it")


def test_doubts_that_do_not_forbid_a_comparison_are_listed():
    assert doubts(side(), side(), [], []) == []
    edited = side(figures={**side().figures, "evaluate": {"ndcg@10": 0.6}})
    (said,) = doubts(side(), replace(edited, name="branch"), [], [])
    assert said.startswith("branch: metrics/per_query.csv and metrics/evaluate.json do not belong to one run")
    corpus = side(lock=with_hash("data/prepared/passages.parquet", "new"))
    assert "passages differ" in doubts(side(), corpus, [], [])[0]
    assert "only a seed was changed" in doubts(side(params={"seed": 1}), side(params={"seed": 2}), [], [])[0]
    assert doubts(side(), side(params={"lr": 2e-5}), [], []) == []
    seeds = [side(params={"mining": {"seed": seed}}) for seed in (1, 2)]
    assert "only a seed was changed" in doubts(*seeds, [], [])[0]
    for thresholds, name in (({"review.alpha": 0.1}, "review.alpha"), ({"review": {"alpha": 0.1}}, "review.alpha")):
        (said,) = doubts(side(), side(params={"lr": 1e-4, **thresholds}), [], [])
        assert said == f"this change sets thresholds by which it is judged: {name}"
    assert doubts(side(), side(), ["train"], ["report"]) == [
        "main: its figures are older than its parameters: train did not run",
        "stages that do not affect the figures are stale: report; run `dvc repro`",
    ]


def review(finding: Finding = Finding.GAIN, shipped: PairedFigure | None = None, **other: object) -> Review:
    made = {
        "base": side(), "head": side("branch", 0.01), "rules": RULES, "finding": finding,
        "results": {"reranker": shipped or result(), "cross_encoder": result(0.0, 1.0)}, "looks": 1,
        "reasons": [], "doubts": [], "params": [], "data": [], "code": {}, "figures": [], "gained": [], "lost": [],
        "texts": {},
    }  # fmt: skip
    return Review(**{**made, **other})


def verdict(*arguments: object, **other: object) -> str:
    return review_page(review(*arguments, **other)).splitlines()[0]


def test_first_line_has_the_verdict_and_the_difference():
    assert verdict() == "**pass: +0.010 NDCG@10, 95% [+0.000, +0.020], p = 0.010: real**"
    assert verdict(Finding.SAME) == "**pass: no change: NDCG@10 is the same on each of 100 test queries**"
    assert "−0.010" in verdict(Finding.LOSS, result(-0.01))
    assert verdict(Finding.LOSS).endswith("beyond the loss of 0.005 that review.max_loss allows**")
    assert verdict(Finding.SMALL, result(-0.004)).endswith("not beyond the loss of 0.005 that review.max_loss allows**")
    assert verdict(Finding.SMALL).endswith("below the gain of 0 that review.min_gain asks for**")
    assert verdict(Finding.LUCKY, looks=9).endswith("not real after 9 looks at test; corrected for these, p = 0.090**")
    other = verdict(Finding.INCOMPARABLE, reasons=["other judgments of the test queries"])
    assert other.startswith("**incomparable: other judgments of the test queries. On 100 queries +0.010 NDCG@10")


def test_noise_says_how_many_queries_would_detect_the_difference():
    assert verdict(Finding.UNDETECTED, result(0.01, 0.3)).endswith(
        "within noise; needs about 680 more test queries than 100 to detect such a difference**"
    )
    assert verdict(Finding.UNDETECTED, result(0.0, 1.0)).endswith("within noise**")
    assert verdict(Finding.UNDETECTED, result(0.0004, 0.9)).endswith("within noise**")


def test_single_query_is_noise_however_much_it_changed():
    outcome = compare_paired(series(0.5), series(1.0), seed=1)
    assert (outcome.queries, outcome.p, outcome.deviation, outcome.interval) == (1, 1.0, 0.0, (0.5, 0.5))
    assert decide(outcome, RULES, looks=1, reasons=[]) == Finding.UNDETECTED
    assert (
        verdict(Finding.UNDETECTED, outcome)
        == "**noise: +0.500 NDCG@10, 95% [+0.500, +0.500], p = 1.000: within noise**"
    )


def test_page_of_a_change_without_data_code_or_costs_leaves_these_out():
    page = review_page(review(params=[Change("lr", 1e-4, 2e-5)]))
    assert "| `lr` | `0.0001` | `2e-05` |" in page
    assert [line for line in page.splitlines() if line.startswith("#")] == ["### Figures", "### Parameters"]
    assert page.endswith(MARKER)
    assert "| NDCG@10 | 0.500 | 0.510 | +0.010 |" in page
    assert "| Cross-encoder, fine-tuned, alone | 0.400 | 0.400 | +0.000 [−0.010, +0.010] | 1.000 | 50 |" in page


def test_queries_are_folded_and_have_their_texts_where_available():
    page = review_page(review(gained=["q01"], lost=["q02"], texts={"q01": "a | b"}))
    assert "<details><summary>Queries that gained and lost most</summary>" in page
    assert "| `q01` | 0.500 | 0.510 | `a \\| b` |" in page
    assert "| `q02` | 0.500 | 0.510 |  |" in page


def test_data_is_escaped_in_markdown():
    hostile = "@team <img src=x> [a](b) ``` **\n# x\x1b"
    page = review_page(review(gained=["q01"], texts={"q01": hostile}, params=[Change("sources.x|y", "`", "z" * 500)]))
    assert "| ````@team <img src=x> [a](b) ``` ** # x\\x1b```` |" in page
    assert "| `sources.x\\|y` | `` ` `` | `" + "z" * (CHARACTERS - 1) + "…` |" in page


def test_long_lists_are_cut_and_say_by_how_much():
    page = review_page(review(params=[Change(f"key_{place}", 1, 2) for place in range(ROWS + 3)]))
    assert page.count("| `key_") == ROWS
    assert "| … | 3 more | |" in page


def test_warnings_stand_above_the_figures():
    page = review_page(review(doubts=["the passages differ"], looks=7))
    assert page.index("- **Warning:** the passages differ.") < page.index("### Figures")
    assert "test was looked at 7 times since the base" in page
    assert "Corrected: p = 0.070" in page
    assert "looked at" not in review_page(review(looks=5))


def test_costs_are_shown_where_one_side_has_them():
    costs = pd.DataFrame({"system": ["reranker"], "megabytes": [91.5], "p95_ms_30": [None]})
    assert "| Reranker (shipped: fused), megabytes | – | 91.5 |" in review_page(review(head=side(costs=costs)))
    timed = [side(figures={**side().figures, "timing": {"train_seconds": s}}) for s in (60.0, 72.5)]
    assert "| train_seconds | 60.0 | 72.5 |" in review_page(review(base=timed[0], head=timed[1]))
