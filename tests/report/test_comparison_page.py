"""Tests of the page of the comparison: its rows, its figures, and that it needs nothing from elsewhere."""

import base64
import hashlib
from pathlib import Path

import pytest

from reported import COMPARISON, COSTS, HOSTILE, Reader, cost_pictures
from reranker.common.errors import UserError
from reranker.report.comparison_page import comparison_page
from stages.compare.page import main


@pytest.fixture(scope="module")
def read() -> Reader:
    return Reader(comparison_page(COMPARISON, COSTS, cost_pictures()))


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "metrics"
    folder.mkdir()
    COMPARISON.to_csv(folder / "comparison.csv", index=False)
    COSTS.to_csv(folder / "costs.csv", index=False)
    return folder


def test_systems_are_shown_with_their_differences_to_the_baseline_and_the_best(read: Reader) -> None:
    to_best = ["−0.100 [−0.200, +0.050]", "0.250", "0.031"]
    assert ["First stage", "0.512 [0.490, 0.530]", "–", "–", *to_best] in read.rows
    assert [HOSTILE, "0.500 [0.400, 0.600]", "−0.012 [+0.010, +0.300]", "< 0.001", *to_best] in read.rows


def test_costs_are_shown_rounded(read: Reader) -> None:
    row = ["Reranker (shipped: fused)", "0.642", "53M", "212", "290", "101 / 120", "330 / 400", "0.0033"]
    assert row in read.rows


def test_tables_have_captions_and_figures_have_names_and_points(read: Reader) -> None:
    assert read.tags.count("caption") == read.tags.count("table") == 2
    assert read.tags.count("svg") == 2
    points = sum(len(picture.tips) for picture in cost_pictures().values())
    assert points == 6  # two systems have no model and so no size
    assert read.attributes.count(("role", "img")) == points
    assert read.tags.count("h1") == 1
    assert len(set(read.ids)) == len(read.ids)


def test_page_fetches_nothing_and_lets_run_its_own_script_alone(read: Reader) -> None:
    assert not {"link", "img", "iframe", "object"} & set(read.tags)
    assert [value for key, value in read.attributes if key in ("src", "href")] == []
    [script] = read.scripts
    [policy] = [str(value) for key, value in read.attributes if key == "content" and "default-src" in str(value)]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


def test_same_numbers_give_the_same_bytes() -> None:
    first, second = (comparison_page(COMPARISON, COSTS, cost_pictures()) for _ in range(2))
    assert first == second


@pytest.mark.usefixtures("inputs")
def test_stage_writes_the_page_and_its_figures(tmp_path: Path) -> None:
    assert main([]) == "page: 4 systems -> report/comparison.html"
    written = {path.relative_to(tmp_path / "report").as_posix() for path in (tmp_path / "report").rglob("*.*")}
    assert written == {"comparison.html", "comparison/size.svg", "comparison/latency.svg"}


@pytest.mark.parametrize(("name", "stage"), [("comparison", "systems"), ("costs", "costs")])
def test_missing_table_is_one_line_that_names_the_stage_to_run(inputs: Path, name: str, stage: str) -> None:
    (inputs / f"{name}.csv").unlink()
    with pytest.raises(UserError, match=rf"metrics/{name}\.csv does not exist: .*`dvc repro compare/dvc.yaml:{stage}`"):
        main([])
    assert not Path("report").exists()
