"""Tests of the figures of quality against cost: the systems that are drawn, their tips and the Pareto front."""

from itertools import combinations

import pandas as pd
import pytest
from matplotlib.figure import Figure

from reranker.evaluation.costs import COST_COLUMNS
from reranker.report import cost_figures
from reranker.report.cost_figures import Point, front, system_points
from reranker.report.tables import cost_rows, magnitude, markdown_costs

COMPARISON = pd.DataFrame(
    [
        ("retriever", "retrieved", 0.33),
        ("bm25", "retrieved", 0.41),
        ("cross_encoder", "retrieved", 0.39),
        ("reranker", "retrieved", 0.465),
        ("two_layers", "retrieved", 0.38),
        ("elsewhere", "retrieved", 0.5),
        ("reranker", "all_positives", 0.9),
    ],
    columns=["system", "mode", "ndcg@10"],
)
COSTS = pd.DataFrame(
    [
        ("retriever", 0, 0.0, 90_000.0, 0.4, 0.6, 0.9, 1.2, 0.0001),
        ("bm25", 0, 0.0, 30_000.0, 1.1, 2.0, 3.5, 4.0, 0.0003),
        ("cross_encoder", 22_700_000, 90.9, 412.4, 72.0, 91.5, 240.0, 300.0, 0.0021),
        ("reranker", 53_000_000, 212.0, None, 101.0, 120.0, 330.0, 400.0, 0.0033),
        ("two_layers", 15_600_000, 62.0, 1200.0, 25.0, 30.0, 80.0, 95.0, 0.0008),
    ],
    columns=list(COST_COLUMNS),
)


def test_points_are_the_systems_with_a_cost_and_an_ndcg_the_cheapest_first():
    points = system_points(COMPARISON, COSTS, "parameters")
    assert points == [
        Point("two_layers", 15_600_000, 0.38),
        Point("cross_encoder", 22_700_000, 0.39),
        Point("reranker", 53_000_000, 0.465),
    ]


def test_front_has_no_system_that_a_cheaper_or_equally_fast_one_beats():
    points = system_points(COMPARISON, COSTS, "p50_ms_30")
    assert [point.system for point in front(points)] == ["retriever", "bm25", "reranker"]
    same = [Point("good", 1.0, 0.5), Point("bad", 1.0, 0.4), Point("late", 2.0, 0.5)]
    assert front(same) == same[:1]
    assert front([]) == []


def test_each_drawn_system_has_its_own_part_and_tip():
    picture = cost_figures.latency_figure(COMPARISON, COSTS)
    texts = [tip.text for tip in picture.tips]
    assert "Reranker (shipped: fused): NDCG@10 0.465, 101 ms a query, on the Pareto front" in texts
    assert "Cross-encoder, fine-tuned, alone: NDCG@10 0.390, 72 ms a query" in texts
    assert [picture.svg.count(f'<g id="{tip.id}">') for tip in picture.tips] == [1] * len(texts) == [1] * 5
    assert all(text in picture.alt for text in texts)


def test_each_name_stands_in_the_picture_once():
    crowd = pd.DataFrame({"system": [f"system {n}" for n in range(5)], "mode": "retrieved", "ndcg@10": 0.4})
    costs = pd.DataFrame({"system": crowd["system"], "parameters": [10.0**n for n in range(1, 6)]})
    picture = cost_figures.size_figure(crowd, costs)
    assert [name for name in crowd["system"] if picture.svg.count(f">{name}</text>") != 1] == []


def test_names_in_a_crowd_cover_nothing_and_their_lines_run_behind_them():
    crowd = [Point(f"system {n}", 100.0 + n / 5, 0.4 + n / 200) for n in range(8)]
    axes = Figure(figsize=(6.2, 3.8)).add_subplot()
    axes.set_xlim(20, 180)
    axes.set_ylim(0.1, 0.7)
    cost_figures._write_names(axes, crowd)
    names = [text for text in axes.texts if text.get_text()]
    lines = [text for text in axes.texts if not text.get_text()]
    assert sorted(name.get_text() for name in names) == [point.system for point in crowd]
    boxes = [name.get_window_extent() for name in names]
    assert [(a, b) for a, b in combinations(range(8), 2) if boxes[a].overlaps(boxes[b])] == []
    points = [axes.transData.transform((point.cost, point.ndcg)) for point in crowd]
    assert [point for point in points for box in boxes if box.contains(*point)] == []
    inside = axes.get_window_extent()
    assert all(inside.contains(*box.min) and inside.contains(*box.max) for box in boxes)
    assert lines
    assert max(line.get_zorder() for line in lines) < min(name.get_zorder() for name in names)


@pytest.mark.parametrize("draw", [cost_figures.size_figure, cost_figures.latency_figure])
def test_nothing_to_draw_and_a_single_system_are_drawn(draw):
    assert draw(COMPARISON, COSTS[:0]).tips == ()
    assert len(draw(COMPARISON, COSTS[3:4]).tips) == 1


def test_same_numbers_give_the_same_bytes():
    assert cost_figures.size_figure(COMPARISON, COSTS) == cost_figures.size_figure(COMPARISON, COSTS)


def test_rows_are_the_figures_rounded_and_a_dash_where_there_is_none():
    rows = {row.label: row for row in cost_rows(COMPARISON, COSTS)}
    assert len(rows) == 5
    assert rows["Cross-encoder, fine-tuned, alone"][1:] == (
        False, "0.390", "22.7M", "90.9", "412", "72 / 91.5", "240 / 300", "0.0021",
    )  # fmt: skip
    assert rows["Reranker (shipped: fused)"].shipped
    assert rows["Reranker (shipped: fused)"].pairs_per_second == "–"


@pytest.mark.parametrize(
    ("usd", "shown"), [(0.0, "0.0000"), (0.00004, "< 0.0001"), (0.00005, "0.0001"), (2.5, "2.5000")]
)
def test_price_that_is_not_zero_is_not_shown_as_zero(usd: float, shown: str):
    (row,) = cost_rows(COMPARISON, COSTS[1:2].assign(usd_per_1000_queries=usd))
    assert row.usd == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.44, "0.44"), (7.0, "7"), (999.6, "1K"), (1234, "1.23K"), (22_713_216, "22.7M"), (4e9, "4B"),
     (float("nan"), "–")],
)  # fmt: skip
def test_magnitudes_have_three_digits(value, shown):
    assert magnitude(value) == shown


def test_markdown_has_the_same_figures_and_the_shipped_reranker_in_bold():
    systems = COMPARISON.replace({"two_layers": "two_*layers*"})
    lines = markdown_costs(systems, COSTS.replace({"two_layers": "two_*layers*"})).splitlines()
    assert {line.count(" | ") for line in lines[2:]} == {7}
    assert r"| two\_\*layers\* | 0.380 | 15.6M | 62 | 1,200 | 25 / 30 | 80 / 95 | 0.0008 |" in lines
    bold = "**0.465** | **53M** | **212** | **–** | **101 / 120** | **330 / 400** | **0.0033**"
    assert f"| **Reranker (shipped: fused)** | {bold} |" in lines
