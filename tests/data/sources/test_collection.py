import gzip
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import FUZZED, damaged
from prepared import clean, tables
from reranker.common.errors import UserError
from reranker.common.source_schema import BeirSource, CollectionSource
from reranker.data.cleaning import UNSPLIT, Example
from reranker.data.sources import readers, streams

CORPUS = [
    {"_id": "1", "title": "Sorting", "text": "Sort it in place.", "metadata": {}},
    {"_id": "2", "title": "", "text": "Close the file."},
    {"_id": "3", "text": "Nobody asks for this."},
]
QUERIES = [{"_id": "q1", "text": "How to sort?"}, {"_id": "q2", "text": "How to close?"}, {"_id": "q3", "text": "Why?"}]


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def judgments(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in ("query-id corpus-id score", *rows)).replace(" ", "\t").encode()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small BEIR folder, data/raw/small, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = Path("data/raw/small")
    (path / "qrels").mkdir(parents=True)
    (path / "corpus.jsonl").write_bytes(lines(CORPUS))
    (path / "queries.jsonl").write_bytes(lines(QUERIES))
    (path / "qrels/train.tsv").write_bytes(judgments("q1 1 2", "q1 2 0"))
    (path / "qrels/test.tsv").write_bytes(judgments("q2 2 1"))
    return path


def examples(source: BeirSource | CollectionSource) -> list[Example]:
    return [example for part in readers.read(source) for example in part.examples]


SMALL = BeirSource(beir="data/raw/small")


def test_folder_gives_every_passage_and_every_judgment_with_its_split(folder: Path):
    result = examples(SMALL)
    assert [example[1:5] for example in result if example.query is None] == [
        (None, "Sorting Sort it in place.", 0, UNSPLIT),
        (None, "Close the file.", 0, UNSPLIT),
        (None, "Nobody asks for this.", 0, UNSPLIT),
    ]
    assert {example[1:5] for example in result if example.query is not None} == {
        ("How to sort?", "Sorting Sort it in place.", 2, "train"),
        ("How to sort?", "Close the file.", 0, "train"),
        ("How to close?", "Close the file.", 1, "test"),
    }
    assert "data/raw/small/qrels/test.tsv: row 1" in {example.origin for example in result}


def test_parts_say_how_far_the_corpus_is_read_and_which_columns_nobody_uses(folder: Path, monkeypatch):
    monkeypatch.setattr(streams, "ROWS", 2)
    parts = list(readers.read(SMALL))
    assert len(parts) == 2
    assert parts[-1].share == 1
    assert parts[0].unused == ["metadata"]


def test_unused_columns_of_queries_and_judgments_are_told_once_each(folder: Path):
    (folder / "queries.jsonl").write_bytes(lines([row | {"metadata": {}, "asked": 1} for row in QUERIES]))
    for name, row in (("train", "q1\t1\t2\tme"), ("test", "q2\t2\t1\tme")):
        (folder / f"qrels/{name}.tsv").write_text(f"query-id\tcorpus-id\tscore\tjudge\n{row}\n")
    [part] = readers.read(SMALL)
    assert part.unused == ["metadata", "asked", "judge"]


@pytest.mark.parametrize("missing", [{0, 1, 2}, {0}, {2}])
def test_passage_may_lack_its_title(folder: Path, monkeypatch: pytest.MonkeyPatch, missing: set[int]):
    monkeypatch.setattr(streams, "ROWS", 2)
    rows: list[dict[str, object]] = [
        {"_id": str(number)} | ({} if number in missing else {"title": "A title"}) | {"text": "text"}
        for number in range(3)
    ]
    (folder / "corpus.jsonl").write_bytes(lines(rows))
    passages = [example.passage for example in examples(SMALL) if example.query is None]
    assert passages == ["text" if number in missing else "A title text" for number in range(3)]


def test_title_that_is_named_for_another_collection_must_be_there(folder: Path):
    (folder / "corpus.jsonl").write_bytes(lines([{"_id": "1", "text": "text"}]))
    source = CollectionSource.model_validate(
        {
            "corpus": {
                "files": "data/raw/small/corpus.jsonl",
                "columns": {"id": "_id", "text": "text", "title": "title"},
            },
            "queries": {"files": "data/raw/small/queries.jsonl", "columns": {"id": "_id", "text": "text"}},
            "judgments": {
                "files": "data/raw/small/qrels/train.tsv",
                "columns": {"query": "query-id", "passage": "corpus-id"},
            },
        }
    )
    with pytest.raises(UserError, match="no column 'title'; the columns are _id, text"):
        examples(source)


def test_packed_files_are_found(folder: Path):
    plain = examples(SMALL)
    for name in ("corpus", "queries"):
        path = folder / f"{name}.jsonl"
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert [example[1:5] for example in examples(SMALL)] == [example[1:5] for example in plain]


def test_collection_of_other_formats_gives_the_same(folder: Path):
    raw = Path("data/raw")
    (raw / "corpus.csv").write_text(
        "key,body\n1,Sorting Sort it in place.\n2,Close the file.\n3,Nobody asks for this.\n"
    )
    (raw / "queries.json").write_bytes(json.dumps(QUERIES).encode())
    (raw / "qrels.txt.tsv").write_text("q1\t0\t1\t2\nq1\t0\t2\t0\nq2\t0\t2\t1\n")
    source = CollectionSource.model_validate(
        {
            "corpus": {"files": "data/raw/corpus.csv", "columns": {"id": "key", "text": "body"}},
            "queries": {"files": "data/raw/queries.json", "columns": {"id": "_id", "text": "text"}},
            "judgments": {
                "files": "data/raw/qrels.txt.tsv",
                "header": ["query", "iteration", "passage", "grade"],
                "columns": {"query": "query", "passage": "passage", "label": "grade"},
            },
        }
    )
    assert [example[1:4] for example in examples(source)] == [example[1:4] for example in examples(SMALL)]
    assert {example.split for example in examples(source)} == {UNSPLIT}


def test_hostile_ids_and_texts_are_only_ids_and_texts(folder: Path):
    passages = {"../../secret": "<script>alert(1)</script>", "/etc/passwd": "=cmd|' /C calc'!A0"}
    (folder / "corpus.jsonl").write_bytes(lines([{"_id": key, "text": text} for key, text in passages.items()]))
    (folder / "queries.jsonl").write_bytes(lines([{"_id": "../q", "text": "<img onerror=alert(1)>"}]))
    (folder / "qrels/train.tsv").write_bytes(judgments("../q ../../secret 1"))
    (folder / "qrels/test.tsv").write_bytes(judgments("../q /etc/passwd 1"))
    result = examples(SMALL)
    assert [example.passage for example in result] == [text for text in passages.values() for _ in range(2)]
    assert {example.query for example in result} == {None, "<img onerror=alert(1)>"}


def test_judgments_of_trec_go_with_tables_without_quotation_marks(folder: Path):
    raw = Path("data/raw")
    (raw / "pages.tsv").write_text('1\t"Sort" it.\n2\t"Close it.\n3\tSpam\n')
    (raw / "topics.tsv").write_text('q1\t"How" to?\nq2\tWhy?\n')
    (raw / "dl.qrels").write_text("q1 0 1 3\nq1 0 3 -2\nq2 Q0 2 0\n")
    without_header = {"header": ["id", "text"], "quoted": False, "columns": {"id": "id", "text": "text"}}
    source = CollectionSource.model_validate(
        {
            "corpus": {"files": "data/raw/pages.tsv", **without_header},
            "queries": {"files": "data/raw/topics.tsv", **without_header},
            "judgments": {
                "files": {"test": "data/raw/dl.qrels"},
                "columns": {"query": "query", "passage": "passage", "label": "grade"},
            },
        }
    )
    assert [example[1:5] for example in examples(source)] == [
        (None, '"Sort" it.', 0, UNSPLIT),
        ('"How" to?', '"Sort" it.', 3, "test"),
        (None, '"Close it.', 0, UNSPLIT),
        ("Why?", '"Close it.', 0, "test"),
        (None, "Spam", 0, UNSPLIT),
        ('"How" to?', "Spam", 0, "test"),
    ]


@pytest.mark.parametrize("grade", ["-2", "-2.0", "-2147483648"])
def test_grade_below_zero_is_zero(folder: Path, grade: str):
    (folder / "qrels/test.tsv").write_bytes(judgments(f"q2 2 {grade}"))
    assert [example.relevance for example in examples(SMALL) if example.split == "test"] == [0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "corpus.jsonl",
            lines([*CORPUS, CORPUS[0]]),
            "corpus.jsonl: row 4: the id '1' appears for the second time",
        ),
        ("queries.jsonl", lines(QUERIES[:1] * 2), "queries.jsonl: row 2: the id 'q1' appears for the second time"),
        ("queries.jsonl", lines(QUERIES[1:]), "qrels/train.tsv: row 1: there is no query with the id 'q1'"),
        ("corpus.jsonl", lines(CORPUS[:1]), "qrels/train.tsv: row 2: the corpus has no passage with the id '2'"),
        (
            "corpus.jsonl",
            lines([{"id": "1", "text": ""}]),
            "corpus.jsonl: no column '_id'; the columns are id, text; did you mean",
        ),
        (
            "corpus.jsonl",
            lines([{"_id": None, "title": "", "text": ""}]),
            "corpus.jsonl: row 1: column '_id' holds None",
        ),
        ("corpus.jsonl", lines([{"_id": "1", "title": 3, "text": ""}]), "corpus.jsonl: row 1: column 'title' holds 3"),
        ("queries.jsonl", lines([{"_id": "q1", "text": []}]), "queries.jsonl: row 1: column 'text' holds []"),
        ("qrels/test.tsv", judgments("q2 2 high"), "qrels/test.tsv: row 1: column 'score' holds 'high'"),
        ("qrels/test.tsv", judgments("q2 2"), "qrels/test.tsv: line 2: 2 cells, but the first line names 3 columns"),
    ],
)
def test_problem_is_said_with_the_file_and_the_row(folder: Path, name: str, content: bytes, message: str):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as problem:
        examples(SMALL)
    assert str(problem.value).startswith(f"data/raw/small/{message}")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["corpus.jsonl"], "data/raw/small: no corpus.jsonl, plain or compressed as .gz or .zst"),
        (["qrels/train.tsv", "qrels/test.tsv"], "data/raw/small/qrels: no train.tsv, dev.tsv or test.tsv"),
    ],
)
def test_folder_that_is_none_of_beir_is_refused(folder: Path, missing: list[str], message: str):
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(UserError) as problem:
        examples(SMALL)
    assert str(problem.value).startswith(message)


@pytest.mark.parametrize("name", ["data/raw/../small", "data/raw/small/../../../secret", "/data/raw/small", "data/raw"])
def test_folder_outside_the_watched_one_is_refused(folder: Path, name: str):
    with pytest.raises(UserError, match="is not in data/raw/; move it there"):
        examples(BeirSource(beir=name))


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv"])
def test_link_in_the_folder_to_a_file_elsewhere_is_refused(folder: Path, name: str):
    (folder / name).rename("secret")
    (folder / name).symlink_to(Path("secret").resolve())
    with pytest.raises(UserError, match=f"^data/raw/small/{name}: leads out of data/raw/"):
        examples(SMALL)


def test_folder_whose_name_is_too_long_is_refused(folder: Path):
    with pytest.raises(UserError, match=r"/qrels: no train\.tsv, dev\.tsv or test\.tsv"):
        examples(BeirSource(beir=f"data/raw/{'x' * 300}"))


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv"])
@FUZZED
@given(data=st.data())
def test_damage_anywhere_ends_in_rows_or_one_line(folder: Path, name: str, data: st.DataObject):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(data.draw(damaged(whole)))
    with suppress(UserError):
        result = examples(SMALL)
        if len(clean(result).rows):
            tables(result)
    (folder / name).write_bytes(whole)
