from collections import Counter
from collections.abc import Iterator
from operator import length_hint
from pathlib import Path

import datasets
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from damage import FUZZED
from reranker.common.errors import UserError
from reranker.common.source_schema import Columns, FileSource
from reranker.data.cleaning import Example
from reranker.data.sources import columns, readers, streams
from reranker.data.sources.streams import Table

PAIR = Columns(query="question", passage="answer")
LABELLED = Columns(query="question", passage="answer", label="good")


def table(*rows: dict[str, object]) -> Table:
    left = iter(rows)
    return Table("a.csv", list(rows[0]), left, lambda: 1 - length_hint(left) / len(rows))


def examples(source: Table, names: Columns) -> list[Example]:
    return [example for part in columns.read(source, names) for example in part.examples]


def test_row_is_an_example_and_other_columns_are_left_out():
    rows = {"id": 7, "answer": "With sort.", "question": "How to sort?"}, {"id": 8, "answer": None, "question": ""}
    assert examples(table(*rows), PAIR) == [
        Example("a.csv: row 1", "How to sort?", "With sort."),
        Example("a.csv: row 2", "", ""),
    ]


def test_columns_of_negatives_are_judged_to_be_wrong_and_a_row_may_lack_some():
    names = Columns(query="anchor", passage="positive", negatives=["negative_1", "negative_2"])
    rows = (
        {"anchor": "How?", "positive": "So.", "negative_1": "No.", "negative_2": "Never."},
        {"anchor": "Why?", "positive": "So.", "negative_1": "", "negative_2": ["No.", None, "Never."]},
    )
    result = [(example.query, example.passage, example.relevance) for example in examples(table(*rows), names)]
    assert result == [
        ("How?", "So.", 1),
        ("How?", "No.", 0),
        ("How?", "Never.", 0),
        ("Why?", "So.", 1),
        ("Why?", "No.", 0),
        ("Why?", "Never.", 0),
    ]


def test_missing_column_of_negatives_is_named():
    names = Columns(query="question", passage="answer", negatives=["negative"])
    with pytest.raises(UserError, match=r"a\.csv: no column 'negative'; the columns are question, answer"):
        examples(table({"question": "How?", "answer": "So."}), names)


def test_negative_that_is_no_text_is_named():
    names = Columns(query="question", passage="answer", negatives=["negative"])
    with pytest.raises(UserError, match=r"a\.csv: row 1: column 'negative' holds 7; it must be a text"):
        examples(table({"question": "How?", "answer": "So.", "negative": 7}), names)


def test_list_of_passages_is_an_example_each():
    row = {"question": "How?", "answer": ["So.", None, "Or so."]}
    assert examples(table(row), PAIR) == [Example("a.csv: row 1", "How?", text) for text in ("So.", "", "Or so.")]


@pytest.mark.parametrize(("cell", "relevance"), [(0, 0), (2, 2), (1.0, 1), ("1", 1), ("3.0", 3), (True, 1), (" 0 ", 0)])
def test_label_is_the_relevance(cell, relevance):
    [example] = examples(table({"question": "How?", "answer": "So.", "good": cell}), LABELLED)
    assert example.relevance == relevance
    assert isinstance(example.relevance, int)


def test_list_of_labels_goes_with_the_list_of_passages():
    [first, second] = examples(table({"question": "How?", "answer": ["So.", "No."], "good": [1, 0]}), LABELLED)
    assert (first.passage, first.relevance) == ("So.", 1)
    assert (second.passage, second.relevance) == ("No.", 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": 3, "answer": "So."}, "column 'question' holds 3; it must be a text"),
        ({"question": "How?", "answer": {"text": "x" * 99}}, "column 'answer' holds {'text': 'x"),
        ({"question": "How?", "answer": b"y" * 999}, f"column 'answer' holds b'{'y' * 35}...; it must be a text"),
        ({"question": "How?", "answer": ["So.", 1.5]}, "column 'answer' holds 1.5; it must be a text"),
    ],
)
def test_cell_that_is_no_text_is_named_with_row_and_column(row, message):
    with pytest.raises(UserError) as caught:
        examples(table({"question": "fine", "answer": "fine"}, row), PAIR)
    assert str(caught.value).startswith(f"a.csv: row 2: {message}")
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("cell", ["yes", "", None, -1, 0.5, "nan", float("inf"), 2**31, 10**400, {}])
def test_label_that_is_no_relevance_is_named(cell):
    with pytest.raises(UserError) as caught:
        examples(table({"question": "How?", "answer": "So.", "good": cell}), LABELLED)
    assert str(caught.value).startswith("a.csv: row 1: column 'good' holds ")
    assert "; it must be a whole number from 0, above 0 for a relevant passage" in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "has_hint"), [(0.83, True), ("0.83", True), (-0.5, True), (-1, False), ("nan", False)]
)
def test_score_in_place_of_a_label_is_told(cell, has_hint):
    with pytest.raises(UserError) as caught:
        examples(table({"question": "How?", "answer": ["So."], "good": [cell]}), LABELLED)
    assert str(caught.value).endswith("; a score is no relevance") == has_hint


def test_cell_that_is_nested_too_deeply_to_be_shown_is_named():
    cell: list[object] = []
    for _ in range(10_000):
        cell = [cell]
    with pytest.raises(UserError, match=r"row 1: column 'answer' holds \[\[\[.*; it must be a text"):
        examples(table({"question": "How?", "answer": cell}), PAIR)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
CELLS = SCALARS | st.recursive(SCALARS, lambda cells: st.lists(cells) | st.dictionaries(st.text(), cells), max_leaves=9)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "question": st.text() | CELLS,
        "answer": st.text() | st.lists(st.text(), max_size=2) | CELLS,
        "good": st.integers(-1, 3) | st.lists(st.integers(0, 3), max_size=2) | CELLS,
        "wrong": st.text() | st.lists(st.text(), max_size=2) | CELLS,
    },
)


@FUZZED
@given(st.lists(ROWS, min_size=1, max_size=3), st.booleans())
def test_any_damage_of_cells_ends_in_examples_or_one_line(rows, labelled):
    result = Table("a.csv", ["question", "answer", "good", "wrong"], iter(rows), lambda: 0.0)
    names = Columns(query="question", passage="answer", label="good" if labelled else None, negatives=["wrong"])
    parsed: list[Example] = []
    message = "a.csv: row 1"
    try:
        parsed = examples(result, names)
    except UserError as error:
        message = str(error)
    assert message.startswith("a.csv: row ")
    assert all(isinstance(example.query, str) and isinstance(example.passage, str) for example in parsed)
    assert all(type(example.relevance) is int and example.relevance >= 0 for example in parsed)


def test_lists_of_two_lengths_are_named():
    with pytest.raises(UserError, match=r"row 1: column 'good' has 1 labels for 2 passages in column 'answer'"):
        examples(table({"question": "How?", "answer": ["So.", "No."], "good": 1}), LABELLED)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (["Question", "answer"], "no column 'question'; the columns are Question, answer; did you mean 'Question'?"),
        (["id", "answer"], "no column 'question'; the columns are id, answer"),
    ],
)
def test_missing_column_is_named_with_the_nearest(there, message):
    with pytest.raises(UserError) as caught:
        examples(table(dict.fromkeys(there, "text")), PAIR)
    assert str(caught.value) == f"a.csv: {message}"


def test_rows_come_in_parts_with_the_share_that_is_read(monkeypatch):
    monkeypatch.setattr(streams, "ROWS", 2)
    parts = list(columns.read(table(*[{"question": "How?", "answer": "So."}] * 3), PAIR))
    assert [len(part.examples) for part in parts] == [2, 1]
    assert [part.share for part in parts] == [pytest.approx(2 / 3), 1]


def test_long_rows_come_in_smaller_parts(monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE", 1_000)
    rows = [{"question": "How?", "answer": ["x" * 300] * (1 + number % 2)} for number in range(8)]
    parts = list(columns.read(table(*rows), PAIR))
    assert [len(part.examples) for part in parts] == [4, 5, 3]
    assert [example.origin for part in parts for example in part.examples][::3] == [
        f"a.csv: row {number}" for number in (1, 3, 5, 7)
    ]


def test_nothing_is_read_ahead_of_what_is_asked_for(monkeypatch):
    monkeypatch.setattr(streams, "ROWS", 2)

    def endless() -> Iterator[dict[str, object]]:
        while True:
            yield {"question": "How?", "answer": "So."}

    parts = columns.read(Table("a.csv", ["question", "answer"], endless(), lambda: 0.0), PAIR)
    assert len(next(parts).examples) == 2


HOSTILE = [
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "+1",
    "-2",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "{{ 7 * 7 }}",
]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"])
def test_hostile_text_is_text(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    path = Path("data/raw") / name
    frame = pd.DataFrame({"question": HOSTILE, "answer": HOSTILE[::-1]})
    if path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="," if name == "a.csv" else "\t")
    elif name == "a.parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=name == "a.jsonl")
    [part] = readers.read(FileSource(files={"unsplit": [str(path)]}, columns=PAIR))
    assert [example[1:3] for example in part.examples] == list(zip(HOSTILE, HOSTILE[::-1], strict=True))


def test_quotation_marks_are_text_where_the_source_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/a.tsv").write_text('"How" so?\t"So.\n', encoding="utf-8")
    source = FileSource(files=["data/raw/a.tsv"], columns=PAIR, header=["question", "answer"], quoted=False)
    [part] = readers.read(source)
    assert part.examples == [Example("data/raw/a.tsv: row 1", '"How" so?', '"So.')]


MINED = {
    "triplet": {"negatives": ["negative"]},
    "n-tuple": {"negatives": ["negative_1", "negative_2"]},
    "labeled-pair": {"label": "label"},
    "labeled-list": {"label": "labels"},
}
ASKED = {
    "sort the list": "order numbers",
    "read csv": "read the csv file",
    "write a table": "write to a file",
    "shortest path": "find the path in a graph",
    "green apples": "red and green apples",
}


def mine_negatives(biencoder: str, output_format: str, **options: object) -> datasets.Dataset:
    """What `mine_hard_negatives` makes of five pairs."""
    pairs = datasets.Dataset.from_dict({"anchor": list(ASKED), "positive": list(ASKED.values())})
    return mine_hard_negatives(
        pairs, SentenceTransformer(biencoder), num_negatives=2, output_format=output_format, verbose=False, **options
    )


@pytest.mark.parametrize("output_format", MINED)
def test_mined_negatives_are_read_in_each_format(tmp_path, monkeypatch, biencoder, output_format):
    monkeypatch.chdir(tmp_path)
    mine_negatives(biencoder, output_format).save_to_disk("data/raw/mined")
    names = Columns.model_validate({"query": "anchor", "passage": "positive", **MINED[output_format]})
    [part] = readers.read(FileSource(files={"unsplit": ["data/raw/mined"]}, columns=names))
    assert not part.unused
    relevances = {(example.query, example.passage): example.relevance for example in part.examples}
    assert {pair for pair, relevance in relevances.items() if relevance == 1} == set(ASKED.items())
    wrong = [(query, passage) for (query, passage), relevance in relevances.items() if relevance == 0]
    assert Counter(query for query, _ in wrong) == dict.fromkeys(ASKED, 2)
    assert {passage for _, passage in wrong} <= set(ASKED.values())


@pytest.mark.parametrize(("output_format", "label"), [("labeled-pair", "score"), ("labeled-list", "scores")])
def test_scores_of_mined_negatives_are_no_labels(biencoder, output_format, label):
    result = mine_negatives(biencoder, output_format, output_scores=True)
    with pytest.raises(
        UserError, match=rf"row 1: column '{label}' holds 0\.\d+; it must be a whole .*; a score is no relevance$"
    ):
        examples(table(*result.to_list()), Columns(query="anchor", passage="positive", label=label))


def test_several_files_are_read_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = Path("data/raw")
    raw.mkdir(parents=True)
    (raw / "a.csv").write_text("question,answer\nHow?,So.\n", encoding="utf-8")
    (raw / "b.jsonl").write_text('{"answer": "No.", "question": "Why?"}\n', encoding="utf-8")
    parts = list(readers.read(FileSource(files=["data/raw/*"], columns=PAIR)))
    assert [part.examples for part in parts] == [
        [Example("data/raw/a.csv: row 1", "How?", "So.")],
        [Example("data/raw/b.jsonl: row 1", "Why?", "No.")],
    ]
    assert [part.share for part in parts] == [0.5, 1.0]
