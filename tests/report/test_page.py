"""Tests of the report: it shows its numbers rounded and escaped, and equal numbers give equal bytes."""

import base64
import hashlib
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from markupsafe import escape

import reported
from reported import (
    AUDIT,
    CANDIDATES,
    DEV,
    DROPPED,
    EVALUATION,
    HOSTILE,
    JUDGMENTS,
    LEAKS,
    LENGTHS,
    LOSS,
    MINE,
    ORIGINS,
    PASSAGES,
    PER_QUERY,
    PREPARE,
    QUERIES,
    SCORED,
    SYSTEMS,
    TRAIN,
    Reader,
    pictures,
)  # fmt: skip
from reranker.common.errors import UserError
from reranker.report import explorer, figures, page, tables
from stages.report import main

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = reported.numbers()
SCRIPTS = 2
"""Script elements of the page: the data of the explorer, and the explorer."""


@pytest.fixture(scope="module")
def drawn() -> dict[str, figures.Picture]:
    return pictures()


@pytest.fixture(scope="module")
def html(drawn: dict[str, figures.Picture]) -> str:
    return page.page(NUMBERS, drawn)


@pytest.fixture(scope="module")
def read(html: str) -> Reader:
    return Reader(html)


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
    data = {"prepared/dropped": DROPPED, "prepared/leaks": LEAKS, "prepared/passages": PASSAGES}
    data |= {"prepared/queries": QUERIES, "prepared/judgments": JUDGMENTS, "mined/candidates": CANDIDATES}
    data |= {f"evaluated/{system}": table for system, table in SCORED.items()}
    for name, table in data.items():
        path = tmp_path / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    AUDIT.to_csv(tmp_path / "data" / "mined" / "audit.csv", index=False)
    return folder


def test_result_rows_are_the_input_rounded(read: Reader) -> None:
    assert ["First stage", "0.512 [0.490, 0.530]", "0.400", "0.300", "0.600", "0.700"] in read.rows
    assert ["Reranker (shipped: fused)", "0.642 [0.620, 0.660]", "0.610", "0.600", "0.680", "0.700"] in read.rows
    assert ["Reranker (shipped: fused)", "0.750 [0.730, 0.770]", "0.710", "0.700", "0.800", "1.000"] in read.rows


def test_verdict_stands_under_the_headline_and_a_note_says_what_the_tables_leave_out(
    html: str, drawn: dict[str, figures.Picture]
) -> None:
    said = NUMBERS._replace(verdict=HOSTILE)
    assert f'<p class="verdict">{escape(HOSTILE)}</p>' in page.page(said, drawn)
    assert "A perfect order of the candidates would score 0.700" in " ".join(html.split())
    older = {key: value for key, value in EVALUATION.items() if key != page.PERFECT}
    assert "perfect order" not in page.page(NUMBERS._replace(evaluation=older), drawn)


def test_bm25_has_a_row_of_its_own_ranking_and_none_among_the_added_passages(read: Reader) -> None:
    rows = [row for row in read.rows if row[0] == "BM25 over the whole corpus"]
    assert rows[0] == ["BM25 over the whole corpus", "0.450 [0.430, 0.470]", "0.350", "0.250", "0.550", "0.900"]
    assert rows[1:] == [["BM25 over the whole corpus", "+0.192", "[+0.170, +0.210]", "< 0.001"]]


def test_comparison_rows_are_signed_and_never_minus_zero(read: Reader) -> None:
    assert ["First stage", "+0.129", "[+0.110, +0.148]", "< 0.001"] in read.rows
    assert [HOSTILE, "+0.000", "[−0.010, +0.010]", "0.432"] in read.rows


def test_page_shows_every_figure_of_prepare_mine_and_train(read: Reader) -> None:
    expected = [
        ["Queries of faq", "1,000"],
        ["NDCG@10 retriever of faq", "0.510"],
        ["Rows", "48,211"],
        ["Query short", "17", "sort", ", ".join(ORIGINS[:3])],
        ["Passage empty", "0", "", ""],
        ["Queries", "9", "9", "9", "9"],
        ["NDCG@10", "0.500"],
        ["Near duplicate", "23", "how to sort", HOSTILE, f"{'Sorts. ' * 28}Sor…"],
        ["Similar", "0", "", "", ""],
        ["Steps", "600"],
        ["Precision", "float32"],
        ["Weight bm25", "4e-05"],
    ]
    assert [row for row in expected if row not in read.rows] == []


def dropped_texts(drawn: dict[str, figures.Picture], *rows: tuple[str, str | None, str | None]) -> dict[str, str]:
    """The example that the page shows for each reason, for dropped rows of a reason, a query and a passage."""
    dropped = pd.DataFrame(rows, columns=["reason", "query", "passage"]).assign(origin="a.csv: row 1")
    counts = {f"dropped_{reason}": 1 for reason, _, _ in rows}
    reader = Reader(page.page(NUMBERS._replace(dropped=dropped, prepare=counts), drawn))
    assert reader.tags.count("script") == SCRIPTS
    labels = {reason: reason.replace("_", " ").capitalize() for reason, _, _ in rows}
    return {reason: row[2] for reason, words in labels.items() for row in reader.rows if row[0] == words}


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
    texts = dropped_texts(
        drawn, ("query_long", "sort  it\n" * 99, "a"), ("query_short", "x" * page.TEXT_CHARACTERS, "a")
    )
    assert len(texts["query_long"]) <= page.TEXT_CHARACTERS
    assert texts["query_long"].startswith("sort it sort it")
    assert texts["query_long"].endswith("…")
    assert texts["query_short"] == "x" * page.TEXT_CHARACTERS


def test_first_leaks_of_each_kind_are_shown(read: Reader) -> None:
    shown = [row for row in read.rows if row[1:3] == ["test", HOSTILE]]
    near = [[f"sort it {number}", "test", HOSTILE, "train", "near"] for number in range(3)]
    equal = [[f"sort it {number}", "test", HOSTILE, "train", "equal"] for number in range(3, 8)]
    assert shown == near + equal


def test_suspicious_candidates_are_shown_cut_and_as_text(read: Reader) -> None:
    [row] = [row for row in read.rows if row[-1] == "refused: near duplicate"]
    query, candidate, relevant, scores, _ = row
    assert (query, candidate, scores) == ("how to sort", HOSTILE, "0.912 / 0.500")
    assert relevant.startswith("Sorts. Sorts. ")
    assert relevant.endswith("…")
    assert len(relevant) == page.PASSAGE_CHARACTERS


def test_page_without_leaks_and_counts_has_no_such_tables(html: str, drawn: dict[str, figures.Picture]) -> None:
    bare = page.page(NUMBERS._replace(leaks=LEAKS[:0], audit=AUDIT[:0], prepare={}), drawn)
    assert bare.count("<table") == html.count("<table") - 4  # nor counts and lengths
    assert "leaks.parquet" not in bare
    assert "audit.csv" not in bare


def test_names_are_escaped_in_tables_figures_and_alternative_texts(html: str, read: Reader) -> None:
    assert read.tags.count("script") == SCRIPTS
    assert HOSTILE in [row[0] for row in read.rows]
    assert "&lt;script&gt;" in html


def test_page_fetches_nothing(html: str, read: Reader) -> None:
    assert not {"link", "img", "iframe", "object"} & set(read.tags)
    assert [value for key, value in read.attributes if key in ("src", "href")] == []
    assert not re.search(r"@import|url\((?!#)", html)


def test_policy_lets_run_the_pages_own_scripts_and_nothing_else(read: Reader) -> None:
    [policy] = [value for key, value in read.attributes if key == "content" and "default-src" in str(value)]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    own = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in read.scripts[1:]]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [f"'sha256-{value}'" for value in own]
    assert not [key for key, _ in read.attributes if key.startswith("on")]


def test_largest_losses_are_shown_without_scripts(read: Reader, drawn: dict[str, figures.Picture]) -> None:
    [row] = [row for row in read.rows if row[0].startswith("Read a file of numbers")]
    assert row[0].endswith("q3")
    assert row[1] == "−0.500 (1.000 → 0.500)"
    assert row[2].startswith("Passage p00 of <b>sorted</b> lists.")
    assert row[3] == "1 → 8"
    assert row[4].startswith("Passage p03 of <b>sorted</b> lists.")
    won = [query for query in NUMBERS.queries if query.query_id != "q3"]
    assert "loses on no test query" in page.page(NUMBERS._replace(queries=won), drawn)
    assert "loses on no test query" in page.page(NUMBERS._replace(queries=won[:1]), drawn)


def test_tables_have_captions_and_figures_have_names(read: Reader) -> None:
    assert read.tags.count("caption") == read.tags.count("table")
    assert read.tags.count("svg") == read.attributes.count(("role", "img")) == 4
    assert ("aria-label", figures.gains_figure(PER_QUERY).alt) in read.attributes


def test_ids_are_unique_and_every_reference_has_its_target(html: str, read: Reader) -> None:
    assert len(set(read.ids)) == len(read.ids)
    referred = re.findall(r'(?:href="|url\()#([^")]+)', html)
    assert referred
    assert set(referred) <= set(read.ids)


def test_inline_figures_follow_the_readers_colours(html: str) -> None:
    drawn = html[html.index("<figure>") : html.index('<script id="queries-data"')]
    assert [colour for colour in figures.LIGHT.values() if colour in drawn] == []
    assert "var(--accent)" in drawn


def test_same_numbers_give_the_same_bytes(html: str) -> None:
    again = pictures()
    assert again == pictures()
    assert page.page(NUMBERS, again) == html


def test_svg_is_well_formed_and_png_is_png() -> None:
    for picture in pictures().values():
        assert ElementTree.fromstring(picture.svg).tag.endswith("svg")  # noqa: S314  we wrote it ourselves
        assert picture.png.startswith(b"\x89PNG")


def test_wins_ties_and_losses_add_up_and_ignore_the_last_bits() -> None:
    assert "2 wins, 1 tie, 1 loss" in figures.gains_figure(PER_QUERY).alt


def test_most_frequent_lengths_are_in_the_description() -> None:
    assert "most often: passages 45 to 63, queries 6 to 7." in figures.lengths_figure(LENGTHS).alt
    assert "none were counted" in figures.lengths_figure(LENGTHS[:0]).alt


def test_empty_curves_are_drawn() -> None:
    assert figures.training_figure(LOSS[:0], DEV[:0]).svg
    assert figures.lengths_figure(LENGTHS[:0]).svg


def test_headline_states_the_result() -> None:
    assert tables.headline(EVALUATION).replace("\N{NO-BREAK SPACE}", " ") == (
        "On 1,234 test queries the whole search reaches an NDCG@10 of 0.642: 0.192 above BM25 over the whole corpus "
        "(95% interval +0.170 to +0.210, p < 0.001)."
    )


def test_headline_does_not_hide_a_loss_or_a_doubt() -> None:
    worse = {**EVALUATION, "gain_vs_bm25": -0.004, "gain_vs_bm25_low": -0.02, "p_vs_bm25": 0.5}
    text = tables.headline(worse)
    assert "0.004 below BM25 over the whole corpus" in text
    assert "includes no difference" in text


@pytest.mark.parametrize(
    ("gain", "p", "tuned"),
    [(0.02, 0.01, "made the cross-encoder better"), (-0.02, 0.01, "made the cross-encoder worse"),
     (0.02, 0.2, "few queries cannot tell"), (0.0, 1.0, "few queries cannot tell")],
)  # fmt: skip
def test_verdict_says_what_fine_tuning_did_whatever_the_outcome(gain: float, p: float, tuned: str) -> None:
    text = tables.verdict({**EVALUATION, "tuning_gain": gain, "tuning_p": p, "p_vs_untouched_reranker": 0.3})
    assert "better than BM25 (+0.192, p < 0.001)" in text
    assert "no proven difference from the published reranker left untouched (+0.050, p = 0.300)" in text
    assert tuned in text


def test_text_table_fits_100_columns_and_keeps_the_order() -> None:
    lines = tables.text_table(SYSTEMS, 1234).splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line.split() for line in lines if re.search(r"\d\.\d{3} \[", line)]
    assert [row[0] for row in rows] == ["BM25", "First", "<script>alert('x')</script>", "Reranker"]
    assert rows[0][-1] == "–"  # BM25 ranks no added passages
    assert rows[-1][-6:] == ["[0.620,", "0.660]", "0.610", "0.600", "0.700", "0.750"]


def test_no_label_of_ours_is_cut() -> None:
    rows = [SYSTEMS.iloc[[1]].assign(system=name) for name in tables.LABELS]
    text = tables.text_table(pd.concat(rows), 1)
    assert [label for label in tables.LABELS.values() if f"\n{label}  " not in text] == []


def test_text_table_cuts_a_long_name_and_marks_a_missing_mode() -> None:
    one = SYSTEMS.iloc[[1]].assign(system="a" * 60)
    lines = tables.text_table(one, 1).splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("a" * 31 + "…") and line.endswith("–") for line in lines)


def test_markdown_table_has_the_same_figures_and_cells_in_every_row() -> None:
    header, rule, *rows = tables.markdown_table(SYSTEMS.replace(HOSTILE, "a|b")).splitlines()
    assert {len(re.split(r"(?<!\\)\|", line)) for line in (header, rule, *rows)} == {8}
    assert rows[0] == "| BM25 over the whole corpus | 0.450 [0.430, 0.470] | 0.350 | 0.250 | 0.900 | – |"
    assert rows[1] == "| First stage | 0.512 [0.490, 0.530] | 0.400 | 0.300 | 0.700 | 0.600 [0.580, 0.620] |"
    assert rows[3].startswith("| **Reranker (shipped: fused)** | **0.642 [0.620, 0.660]** |")


@pytest.mark.usefixtures("inputs")
def test_stage_writes_the_page_and_its_pictures_and_ends_with_the_table(tmp_path: Path) -> None:
    summary = main([])
    names = {f"{name}.{kind}" for name in pictures() for kind in ("svg", "png")}
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"figures", "index.html"}
    assert {path.name for path in (tmp_path / "report" / "figures").iterdir()} == names
    assert tables.text_table(SYSTEMS, 1234) in summary
    assert "report/index.html" in summary.splitlines()[-1]


def explored() -> dict[str, dict[str, object]]:
    """Each test query of the written page by its id: text, ranks of a relevant passage, reason."""
    match = re.search(r'<script id="queries-data"[^>]*>([^<]*)<', Path("report/index.html").read_text(encoding="utf-8"))
    content = json.loads(zlib.decompress(base64.b64decode(match[1])))
    return {
        query[0]: {"text": query[1], "relevant": query[6][0][1:], "reason": content["reasons"][query[3]]}
        for query in content["queries"]
    }


def test_page_holds_the_test_queries_and_guesses_with_the_tokens_of_the_base_model(inputs: Path) -> None:
    data = inputs.parent / "data"
    apart = f"{'x ' * 200}list {'x ' * 200}sort"  # no excerpt has both words
    far = PASSAGES.assign(text=PASSAGES["text"].where(PASSAGES["passage_id"] != "p02", apart))
    far.to_parquet(data / "prepared" / "passages.parquet")
    main([])
    queries = explored()
    assert sorted(queries) == ["q1", "q2", "q3", "q4"]
    assert queries["q1"] == {"text": "sort a list", "relevant": [3, 3], "reason": explorer.CUT}
    assert queries["q2"]["relevant"] == [0, 0]
    assert queries["q2"]["reason"] == explorer.MISSED
    assert queries["q3"]["reason"] == explorer.NEAR  # the passages differ in a word


def test_ids_that_look_like_numbers_stay_as_they_are(inputs: Path) -> None:
    data = inputs.parent / "data"
    for path in [*data.rglob("*.parquet")]:
        table = pd.read_parquet(path)
        if "query_id" in table:
            table.assign(query_id=table["query_id"].str.replace("q", "00")).to_parquet(path)
    PER_QUERY.assign(query_id=PER_QUERY["query_id"].str.replace("q", "00")).to_csv(
        inputs / "per_query.csv", index=False
    )
    main([])
    assert sorted(explored()) == ["001", "002", "003", "004"]


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
        ("../data/prepared/passages.parquet", "prepare"),
        ("../data/mined/candidates.parquet", "mine"),
        ("../data/evaluated/reranker.parquet", "evaluate"),
    ],
)
def test_missing_input_is_one_line_that_names_the_stage_to_run(inputs: Path, name: str, stage: str) -> None:
    (inputs / name).unlink()
    shown = os.path.normpath(f"metrics/{name}")
    with pytest.raises(UserError, match=rf"{shown} does not exist: .*`dvc repro {stage}`") as caught:
        main([])
    assert "\n" not in str(caught.value)
    assert not Path("report").exists()


def test_missing_figure_is_one_line_that_names_it(inputs: Path) -> None:
    (inputs / "evaluate.json").write_text('{"queries": 3}', encoding="utf-8")
    with pytest.raises(UserError, match="a figure 'gain_vs_bm25' is missing"):
        main([])


def test_missing_column_is_one_line_that_names_it(inputs: Path) -> None:
    SYSTEMS.drop(columns="map").to_csv(inputs / "systems.csv", index=False)
    with pytest.raises(UserError, match=r"metrics/systems\.csv: .*'map'.*`dvc repro --force evaluate`"):
        main([])


def test_query_without_a_text_is_one_line_that_names_it(inputs: Path) -> None:
    QUERIES[1:].to_parquet(inputs.parent / "data" / "prepared" / "queries.parquet")
    JUDGMENTS[1:].to_parquet(inputs.parent / "data" / "prepared" / "judgments.parquet")
    with pytest.raises(UserError, match="data/prepared/: the text of 'q1' is missing; run `dvc repro`"):
        main([])
