"""The report shows the numbers that it is given, rounded, escaped and the same every time."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from reranker import figures, report, tables
from reranker.errors import UserError
from stages.report import main

HOSTILE = "<script>alert('x')</script> & $a_b$"
SYSTEMS = pd.DataFrame(
    [
        ("retriever", "retrieved", 0.51249, 0.49, 0.53, 0.4, 0.3, 0.6, 0.7),
        (HOSTILE, "retrieved", 0.5, 0.4, 0.6, 0.5, 0.5, 0.5, 0.5),
        ("reranker", "retrieved", 0.64151, 0.62, 0.66, 0.61, 0.6, 0.68, 0.7),
        ("retriever", "all_positives", 0.6, 0.58, 0.62, 0.5, 0.4, 0.7, 1.0),
        (HOSTILE, "all_positives", 0.55, 0.5, 0.6, 0.5, 0.5, 0.6, 1.0),
        ("reranker", "all_positives", 0.75, 0.73, 0.77, 0.71, 0.7, 0.8, 1.0),
    ],
    columns=list(tables.SYSTEM_COLUMNS),
)
EVALUATION = {
    "queries": 1234,
    "ndcg@10": 0.64151,
    "gain_vs_retriever": 0.12902,
    "gain_vs_retriever_low": 0.11,
    "gain_vs_retriever_high": 0.148,
    "p_vs_retriever": 0.00005,
    f"gain_vs_{HOSTILE}": -0.0002,
    "queries_of_faq": 1000,
    "ndcg@10_retriever_of_faq": 0.51,
    f"gain_vs_{HOSTILE}_low": -0.01,
    f"gain_vs_{HOSTILE}_high": 0.0096,
    f"p_vs_{HOSTILE}": 0.4321,
}
PREPARE = {
    "rows": 48211,
    "dropped_query_short": 17,
    "dropped_passage_empty": 0,
    **{f"{kind}_tokens_{key}": 9 for kind in ("query", "passage") for key in ("p50", "p90", "p99", "max")},
    "passage_language_de": 0.0266,
    "passage_language_en": 0.97,
    "passage_language_zh": 0.0034,
}
MINE = {"ndcg@10": 0.5, "negatives": 100, "refused_near_duplicate": 23}
TRAIN = {"steps": 600, "precision": "float32", "weight_bm25": 0.00004}
LOSS = pd.DataFrame({"step": [5, 10], "loss": [1.5, 0.5]})
DEV = pd.DataFrame({"step": [0, 10], "ndcg@10": [0.3, 0.6]})
LENGTHS = pd.DataFrame(
    [("query", 6, 8, 0.75), ("query", 8, 11, 0.25), ("passage", 32, 45, 0.2), ("passage", 45, 64, 0.8)],
    columns=["text", "from", "to", "share"],
)
# 0.1 + 0.2 is not 0.3 to the last bit, and yet a tie
PER_QUERY = pd.DataFrame(
    {"query_id": ["q1", "q2", "q3", "q4"], "retriever": [0.5, 0.3, 1.0, 0.0], "reranker": [1.0, 0.1 + 0.2, 0.5, 1.0]}
)
ORIGINS = ["a.csv: row 1", "a.csv: row 8", f"{HOSTILE}: row 9", "a.csv: row 12"]
DROPPED = pd.DataFrame({"reason": "query_short", "origin": ORIGINS, "query": "sort", "passage": "Sorts."})
LEAKS = pd.DataFrame(
    [(f"sort it {number}", "test", HOSTILE, "train", number > 2) for number in range(9)],
    columns=list(report.LEAK_COLUMNS),
)
AUDIT = pd.DataFrame(
    [("refused: near_duplicate", "0.91249", "0.5", "how to sort", HOSTILE, "Sorts. " * 99)],
    columns=list(report.AUDIT_COLUMNS),
)
NUMBERS = report.Numbers(SYSTEMS, EVALUATION, PREPARE, DROPPED, LEAKS, MINE, AUDIT, TRAIN)


class Reader(HTMLParser):
    """Collects the cells of every table row, the names of the tags and the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def pictures() -> dict[str, figures.Picture]:
    return {
        "systems": figures.systems_figure(SYSTEMS),
        "training": figures.training_figure(LOSS, DEV),
        "gains": figures.gains_figure(PER_QUERY),
        "lengths": figures.lengths_figure(LENGTHS),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, figures.Picture]:
    return pictures()


@pytest.fixture(scope="module")
def html(drawn: dict[str, figures.Picture]) -> str:
    return report.page(NUMBERS, drawn)


@pytest.fixture(scope="module")
def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "metrics"
    folder.mkdir()
    tables = {
        "systems": SYSTEMS,
        "lengths": LENGTHS,
        "curve_loss": LOSS,
        "curve_dev": DEV,
        "per_query": PER_QUERY,
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    for name, values in {"evaluate": EVALUATION, "prepare": PREPARE, "mine": MINE, "train": TRAIN}.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "data" / "prepared").mkdir(parents=True)
    for name, table in {"dropped": DROPPED, "leaks": LEAKS}.items():
        table.to_parquet(tmp_path / "data" / "prepared" / f"{name}.parquet")
    (tmp_path / "data" / "mined").mkdir()
    AUDIT.to_csv(tmp_path / "data" / "mined" / "audit.csv", index=False)
    return folder


def test_result_rows_are_the_input_rounded(read: Reader) -> None:
    assert ["First-stage retriever", "0.512 [0.490, 0.530]", "0.400", "0.300", "0.600", "0.700"] in read.rows
    assert ["Reranker (shipped: fused)", "0.642 [0.620, 0.660]", "0.610", "0.600", "0.680", "0.700"] in read.rows
    assert ["Reranker (shipped: fused)", "0.750 [0.730, 0.770]", "0.710", "0.700", "0.800", "1.000"] in read.rows


def test_comparison_rows_are_signed_and_never_minus_zero(read: Reader) -> None:
    assert ["First-stage retriever", "+0.129", "[+0.110, +0.148]", "< 0.001"] in read.rows
    assert [HOSTILE, "+0.000", "[−0.010, +0.010]", "0.432"] in read.rows


def test_page_shows_every_figure_of_prepare_mine_and_train(read: Reader) -> None:
    expected = [
        ["Queries of faq", "1,000"],
        ["NDCG@10 retriever of faq", "0.510"],
        ["Rows", "48,211"],
        ["Query short", "17", "sort", ", ".join(ORIGINS[:3])],
        ["Passage empty", "0", "", ""],
        ["Passages", "en 97.0%, de 2.7%, zh 0.3%"],
        ["Queries", "9", "9", "9", "9"],
        ["NDCG@10", "0.500"],
        ["Near duplicate", "23"],
        ["Steps", "600"],
        ["Precision", "float32"],
        ["Weight bm25", "4e-05"],
    ]
    assert [row for row in expected if row not in read.rows] == []


def dropped_texts(drawn: dict[str, figures.Picture], *rows: tuple[str, str | None, str | None]) -> dict[str, str]:
    """What the page shows of dropped rows of a reason, a query and a passage, by the reason."""
    dropped = pd.DataFrame(rows, columns=["reason", "query", "passage"]).assign(origin="a.csv: row 1")
    counts = {f"dropped_{reason}": 1 for reason, _, _ in rows}
    reader = Reader()
    reader.feed(report.page(NUMBERS._replace(dropped=dropped, prepare=counts), drawn))
    assert "script" not in reader.tags
    found = {reason: reason.replace("_", " ").capitalize() for reason, _, _ in rows}
    return {reason: row[2] for reason, words in found.items() for row in reader.rows if row[0] == words}


def test_first_dropped_row_of_a_reason_is_shown_as_text_with_what_the_reason_names(
    drawn: dict[str, figures.Picture],
) -> None:
    hostile = "<script>alert(1)</script>"
    rows = [
        ("passage_short", "how to?", hostile),
        ("passage_short", "how to?", "the second one"),
        ("query_short", hostile, "a passage"),
        ("query_empty", "", "its passage"),
        ("passage_empty", "its query", " "),
        ("not_unicode", None, "of the corpus"),
    ]
    assert dropped_texts(drawn, *rows) == {
        "passage_short": hostile,
        "query_short": hostile,
        "query_empty": "its passage",
        "passage_empty": "its query",
        "not_unicode": "of the corpus",
    }


def test_long_example_is_one_line_and_ends_with_an_ellipsis(drawn: dict[str, figures.Picture]) -> None:
    found = dropped_texts(drawn, ("query_long", "sort  it\n" * 99, "a"), ("query_short", "x" * report.CUT_TEXT, "a"))
    assert len(found["query_long"]) <= report.CUT_TEXT
    assert found["query_long"].startswith("sort it sort it")
    assert found["query_long"].endswith("…")
    assert found["query_short"] == "x" * report.CUT_TEXT


def test_first_leaks_of_each_kind_are_shown(read: Reader) -> None:
    shown = [row for row in read.rows if row[1:3] == ["test", HOSTILE]]
    near = [[f"sort it {number}", "test", HOSTILE, "train", "near"] for number in range(3)]
    equal = [[f"sort it {number}", "test", HOSTILE, "train", "equal"] for number in range(3, 8)]
    assert shown == near + equal


def test_suspicious_candidates_are_shown_cut_and_as_text(read: Reader) -> None:
    [row] = [row for row in read.rows if row[-1] == "refused: near duplicate"]
    query, candidate, right, scores, _ = row
    assert (query, candidate, scores) == ("how to sort", HOSTILE, "0.912 / 0.500")
    assert right.startswith("Sorts. Sorts. ")
    assert right.endswith("…")
    assert len(right) == report.CUT_PASSAGE


def test_page_without_leaks_and_languages_has_no_such_tables(html: str, drawn: dict[str, figures.Picture]) -> None:
    bare = report.page(NUMBERS._replace(leaks=LEAKS[:0], audit=AUDIT[:0], prepare={}), drawn)
    assert bare.count("<table") == html.count("<table") - 5  # nor counts and lengths
    assert "leaks.parquet" not in bare
    assert "audit.csv" not in bare


def test_names_are_escaped_in_tables_figures_and_alternative_texts(html: str, read: Reader) -> None:
    assert "script" not in read.tags
    assert HOSTILE in [row[0] for row in read.rows]
    assert "&lt;script&gt;" in html


def test_page_fetches_nothing(html: str, read: Reader) -> None:
    assert not {"link", "img", "iframe", "object", "script"} & set(read.tags)
    assert [value for key, value in read.attributes if key in ("src", "href")] == []
    assert not re.search(r"@import|url\((?!#)", html)


def test_tables_have_captions_and_figures_have_names(read: Reader) -> None:
    assert read.tags.count("caption") == read.tags.count("table")
    assert read.attributes.count(("role", "img")) == read.tags.count("svg") == 4
    assert ("aria-label", figures.gains_figure(PER_QUERY).alt) in read.attributes


def test_ids_are_unique_and_every_reference_has_its_target(html: str, read: Reader) -> None:
    assert len(set(read.ids)) == len(read.ids)
    referred = re.findall(r'(?:href="|url\()#([^")]+)', html)
    assert referred
    assert set(referred) <= set(read.ids)


def test_inline_figures_follow_the_readers_colours(html: str) -> None:
    drawn = html[html.index("<figure>") :]
    assert [colour for colour in figures.LIGHT.values() if colour in drawn] == []
    assert "var(--accent)" in drawn


def test_same_numbers_give_the_same_bytes(html: str) -> None:
    again = pictures()
    assert again == pictures()
    assert report.page(NUMBERS, again) == html


def test_svg_is_well_formed_and_png_is_png() -> None:
    for picture in pictures().values():
        assert ElementTree.fromstring(picture.svg).tag.endswith("svg")  # noqa: S314  we wrote it ourselves
        assert picture.png.startswith(b"\x89PNG")


def test_wins_ties_and_losses_add_up_and_ignore_the_last_bits() -> None:
    assert "2 wins, 1 tie, 1 loss" in figures.gains_figure(PER_QUERY).alt


def test_commonest_lengths_are_told() -> None:
    assert "most often: passages 45 to 63, queries 6 to 7." in figures.lengths_figure(LENGTHS).alt
    assert "none were counted" in figures.lengths_figure(LENGTHS[:0]).alt


def test_empty_curves_are_drawn() -> None:
    assert figures.training_figure(LOSS[:0], DEV[:0]).svg
    assert figures.lengths_figure(LENGTHS[:0]).svg


def test_headline_says_what_was_found() -> None:
    assert tables.headline(EVALUATION).replace("\N{NO-BREAK SPACE}", " ") == (
        "On 1,234 test queries the reranker reaches an NDCG@10 of 0.642: 0.129 above the first-stage retriever "
        "(95% interval +0.110 to +0.148, p < 0.001). The interval of its gain lies above 0 against 1 of 2 systems."
    )


def test_headline_does_not_hide_a_loss_or_a_doubt() -> None:
    worse = {**EVALUATION, "gain_vs_retriever": -0.004, "gain_vs_retriever_low": -0.02, "p_vs_retriever": 0.5}
    text = tables.headline(worse)
    assert "0.004 below the first-stage retriever" in text
    assert "includes no difference" in text


def test_text_table_fits_100_columns_and_keeps_the_order() -> None:
    lines = tables.text_table(SYSTEMS, 1234).splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line.split() for line in lines if re.search(r"\d\.\d{3} \[", line)]
    assert [row[0] for row in rows] == ["First-stage", "<script>alert('x')</script>", "Reranker"]
    assert rows[-1][-6:] == ["[0.620,", "0.660]", "0.610", "0.600", "0.700", "0.750"]


def test_text_table_cuts_a_long_name_and_marks_a_missing_mode() -> None:
    one = SYSTEMS.iloc[[0]].assign(system="a" * 60)
    lines = tables.text_table(one, 1).splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("a" * 31 + "…") and line.endswith("–") for line in lines)


def test_markdown_table_has_the_same_figures_and_cells_in_every_row() -> None:
    header, rule, *rows = tables.markdown_table(SYSTEMS.replace(HOSTILE, "a|b")).splitlines()
    assert {len(re.split(r"(?<!\\)\|", line)) for line in (header, rule, *rows)} == {8}
    assert rows[0] == "| First-stage retriever | 0.512 [0.490, 0.530] | 0.400 | 0.300 | 0.700 | 0.600 [0.580, 0.620] |"
    assert rows[2].startswith("| **Reranker (shipped: fused)** | **0.642 [0.620, 0.660]** |")


@pytest.mark.usefixtures("inputs")
def test_stage_writes_the_page_and_four_pictures_and_ends_with_the_table(tmp_path: Path) -> None:
    summary = main([])
    names = {f"{name}.{kind}" for name in pictures() for kind in ("svg", "png")}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names | {"index.html"}
    assert tables.text_table(SYSTEMS, 1234) in summary
    assert "report/index.html" in summary.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("../data/prepared/dropped.parquet", "prepare"),
        ("../data/prepared/leaks.parquet", "prepare"),
        ("../data/mined/audit.csv", "mine"),
        ("systems.csv", "evaluate"),
        ("per_query.csv", "evaluate"),
        ("evaluate.json", "evaluate"),
        ("curve_loss.csv", "train"),
        ("curve_dev.csv", "train"),
        ("train.json", "train"),
        ("mine.json", "mine"),
        ("prepare.json", "prepare"),
        ("lengths.csv", "prepare"),
    ],
)
def test_missing_input_is_one_line_that_names_the_stage_to_run(inputs: Path, name: str, stage: str) -> None:
    (inputs / name).unlink()
    shown = os.path.normpath(f"metrics/{name}")
    with pytest.raises(UserError, match=rf"{shown} does not exist: .*`dvc repro {stage}`") as caught:
        main([])
    assert "\n" not in str(caught.value)
    assert not Path("report").exists()


def test_lacking_figure_is_one_line_that_names_it(inputs: Path) -> None:
    (inputs / "evaluate.json").write_text('{"queries": 3}', encoding="utf-8")
    with pytest.raises(UserError, match="a figure 'gain_vs_retriever' is missing"):
        main([])


def test_lacking_column_is_one_line_that_names_it(inputs: Path) -> None:
    SYSTEMS.drop(columns="map").to_csv(inputs / "systems.csv", index=False)
    with pytest.raises(UserError, match=r"metrics/systems\.csv: .*'map'.*`dvc repro --force evaluate`"):
        main([])
