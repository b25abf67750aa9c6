import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import FUZZED, damaged
from reranker.common.errors import UserError
from reranker.data.sources import columnar, files, streams

ROWS = [
    {"question": "How to sort?", "answer": 'Say "sort",\nthen wait; ünïcode 漢'},
    {"question": "", "answer": "A passage\twithout a question"},
    {"question": "What is a list?", "answer": "  A row of things.  "},
]
COLUMNS = ["question", "answer"]


def delimited(rows: list[dict[str, str]], delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, str]], row_group_size: int = 2) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=row_group_size)
    return stream.getvalue()


def arrow(rows: list[dict[str, str]], new: Callable[..., pa.ipc.RecordBatchStreamWriter]) -> bytes:
    stream = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with new(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return stream.getvalue()


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


CONTENT = {
    "a.csv": delimited(ROWS, ","),
    "a.tsv": delimited(ROWS, "\t"),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode(),
    "a.parquet": parquet(ROWS),
    "file.arrow": arrow(ROWS, pa.ipc.new_file),
    "stream.arrow": arrow(ROWS, pa.ipc.new_stream),
}
TREC = b"301 0 FR940202-2-00150 1\n301\t0\tFR940405-1-00029 -2\r\n302 Q0 LA0101-90 0\n"
CONTENT |= {"a.ndjson": CONTENT["a.jsonl"], "lines.json": CONTENT["a.jsonl"]}
TEXTS = [name for name, content in CONTENT.items() if not name.endswith(("parquet", "arrow"))]
CONTENT |= {f"{name}.gz": gzip.compress(CONTENT[name]) for name in TEXTS}
CONTENT |= {f"{name}.zst": zstd(CONTENT[name]) for name in TEXTS}
CONTENT |= {
    "marked.csv": b"\xef\xbb\xbf" + CONTENT["a.csv"],
    "marked.json": b"\xef\xbb\xbf" + CONTENT["a.json"],
    "one-line.json": json.dumps(ROWS).encode(),
    "CAPITALS.CSV": CONTENT["a.csv"],
    "unix.csv": CONTENT["a.csv"].replace(b"\r\n", b"\n").rstrip(b"\n"),
    "spaced.jsonl": CONTENT["a.jsonl"].replace(b"\n", b"\r\n\n").rstrip(),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def written(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return written


def problem(path: Path, columns: list[str] = COLUMNS) -> str:
    """The message of the error that reading the file raises, without the path at its start."""
    with pytest.raises(UserError) as caught:
        list(files.read(path, columns).rows)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path)).removeprefix(": ")


@pytest.mark.parametrize("name", CONTENT)
def test_every_format_gives_the_same_rows(write, name):
    path = write(name, CONTENT[name])
    table = files.read(path, COLUMNS)
    assert table.origin == str(path)
    assert list(table.names) == COLUMNS
    assert list(table.rows) == ROWS
    assert table.share() == 1


@pytest.mark.parametrize("several", [False, True])
def test_folder_that_datasets_saved_is_read(tmp_path, several):
    data = datasets.Dataset.from_list([{**row, "source": "here"} for row in ROWS])
    if several:
        data = datasets.DatasetDict(train=data.select([0, 1]), test=data.select([2]))
    data.save_to_disk(tmp_path / "saved")
    table = files.read(tmp_path / "saved", COLUMNS)
    assert list(table.names) == [*COLUMNS, "source"]
    assert list(table.rows) == ROWS


def test_columnar_file_reads_the_wanted_columns_alone(write):
    path = write("a.parquet", parquet([{**row, "vector": "never read"} for row in ROWS]))
    table = files.read(path, COLUMNS)
    assert list(table.names) == [*COLUMNS, "vector"]
    assert list(table.rows) == ROWS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", CONTENT["a.jsonl"] * 30_000),
        ("a.json", json.dumps(ROWS * 30_000).encode()),
        ("a.parquet", parquet(ROWS * 3_000, 700)),
        ("file.arrow", arrow(ROWS * 500, pa.ipc.new_file)),
        ("stream.arrow", arrow(ROWS * 500, pa.ipc.new_stream)),
    ],
)
def test_share_grows_while_a_long_file_is_read(write, name, content):
    path = write(name, content)
    table = files.read(path, COLUMNS)
    shares = [table.share() for _ in table.rows]
    assert shares == sorted(shares)
    assert shares[0] < 0.9
    assert table.share() == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_key_that_the_first_rows_lack_is_a_column(write, name):
    rows = [{"question": "a"}] * 999 + [{"answer": "b", "question": "c"}]
    content = json.dumps(rows) if name == "a.json" else "".join(f"{json.dumps(row)}\n" for row in rows)
    table = files.read(write(name, content.encode()), COLUMNS)
    assert list(table.names) == ["question", "answer"]
    assert list(table.rows) == rows


def test_key_that_comes_later_is_no_column(write):
    content = b'{"question": "a"}\n' * 1_000 + b'{"question": "a", "answer": "b"}\n'
    assert list(files.read(write("a.jsonl", content), COLUMNS).names) == ["question"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"", "unknown ending; it must be one of .csv, .tsv,"),
        ("noending", b"", "unknown ending; "),
        ("a.parquet.gz", b"", "unknown ending; "),
        ("a.csv", b"", "the first line must name the columns; it is empty"),
        ("a.csv", b"\nq,a\n", "the first line must name the columns; it is empty"),
        ("a.csv", b"question,answer,question\n", "the first line names the column 'question' twice"),
        ("a.csv", b"question,answer\none,two\nthree\n", "line 3: 1 cells, but the first line names 2 columns"),
        ("a.csv", b"question,answer\none,two,three\n", "line 2: 3 cells, but the first line names 2 columns"),
        ("a.csv", b'question,answer\none,"two\nthree', "lines 2 to 3: unexpected end of data; is a quotation "),
        ("a.csv", b'question,answer\none,"two', "line 2: unexpected end of data; is a quotation mark missing? "),
        ("a.csv", b'"question,answer\none,two\n', "lines 1 to 2: unexpected end of data; is a quotation mark "),
        (
            "a.csv",
            b'question,answer\none,"two"three\n',
            "line 2: ',' expected after '\"'; is a quotation mark missing? "
            "If quotation marks are plain text, set quoted: false",
        ),
        ("a.csv", b"question,answer\none,caf\xe9\n", "line 2: byte 23 (0xe9) is not UTF-8; convert the file, "),
        ("a.csv", "question,answer\n".encode("utf-16"), "line 1: byte 0 (0xff) is not UTF-8"),
        ("a.jsonl", b'{"question": 1}\n\n{"question": }\n', "line 3: not JSON (Expecting value)"),
        ("a.jsonl", b"[1]\n", "row 1: not an object with the columns as keys"),
        ("a.jsonl", b'{"a": 1}\n"text"\n', "row 2: not an object with the columns as keys"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON ("),
        ("a.jsonl", b'{"a": ' + b"9" * 5_000 + b"}", "line 1: not JSON ("),
        ("a.jsonl", b"", "holds no rows"),
        ("a.json", b"  \n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.json", b'[{"question": "a"}, 3]', "row 2: not an object with the columns as keys"),
        ("a.json", b'[{"question": "a"}, {"question": "b"', "could not be read (parse error: premature EOF"),
        ("a.json", b'[\n{"question": "caf\xe9"}]', "byte 19 (0xe9) is not UTF-8; convert the file, "),
        ("a.json", b'\xef\xbb\xbf["' + "é".encode() * 50_000 + b'\xc3"', "byte 100005 (0xc3) is not UTF-8"),
        ("a.json", b'[{"question": "' + "é".encode()[:1], "byte 15 (0xc3) is not UTF-8"),
        ("a.parquet", b"PAR1" + b"x" * 50 + b"PAR1", "could not be read ("),
        ("a.parquet", CONTENT["a.parquet"][:-20], "could not be read ("),
        ("a.arrow", CONTENT["file.arrow"][:40], "could not be read ("),
        ("a.arrow", b"no arrow at all", "could not be read ("),
        ("a.arrow", CONTENT["stream.arrow"].replace(b"answer", b"\x80nswer"), "could not be read ("),
        ("a.arrow", CONTENT["file.arrow"].replace(b"answer", b"\x80nswer"), "could not be read ("),
        ("a.csv.gz", gzip.compress(CONTENT["a.csv"] * 99)[:-20], "could not be read ("),
        ("a.csv.gz", CONTENT["a.csv"], "begins like text, not like gzip; correct the ending of its name"),
        ("a.csv", CONTENT["a.parquet"], "begins like Parquet, not like text; correct the ending of its name"),
        ("a.parquet", CONTENT["a.csv"], "begins like text, not like Parquet; correct the ending of its name"),
        ("a.json", gzip.compress(b"[]"), "begins like gzip, not like text; correct the ending of its name"),
        ("a.csv", b"PK\x03\x04 a workbook", "begins like zip, not like text; correct the ending of its name"),
    ],
)
def test_damaged_file_is_named_with_the_place(write, name, content, message):
    assert problem(write(name, content)).startswith(message)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_line_without_an_end_is_refused_before_it_fills_the_memory(write, monkeypatch, name):
    monkeypatch.setattr(streams, "MAX_LINE", 2**21)
    assert problem(write(name, b"x" * 2**23)) == "line 1 is longer than 2 MiB"


def repeated(length: int, rows: int, kind: pa.DataType) -> pa.Table:
    """A table whose cells are all the same long text, which is stored once."""
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * rows), pa.array(["x" * length]))
    if pa.types.is_list(kind):
        cells = pa.ListArray.from_arrays(list(range(rows + 1)), cells)
    return pa.table({"question": ["a"] * rows, "answer": cells})


def bomb(name: str, length: int = 2**10, rows: int = 2**13, kind: pa.DataType = None) -> bytes:
    """A file that has at most a hundredth of the size of its content."""
    kind = kind or pa.string()
    text = b"question,answer\n" + (b"a," + b"x" * length + b"\n") * rows
    if name == "a.csv.gz":
        return gzip.compress(text)
    if name == "a.csv.zst":
        return zstd(text)
    stream = io.BytesIO()
    if name == "a.parquet":
        pq.write_table(repeated(length, rows, kind), stream, compression="zstd", dictionary_pagesize_limit=2**30)
    else:
        with pa.ipc.new_stream(stream, repeated(length, rows, kind).schema) as writer:
            writer.write_table(repeated(length, rows, kind))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.zst", "a.parquet", "a.arrow"])
def test_file_that_expands_out_of_proportion_is_refused(write, monkeypatch, name):
    monkeypatch.setattr(streams, "MAX_UNCHECKED", 2**20)
    content = bomb(name, length=2**14 if name == "a.arrow" else 2**10)
    assert problem(write(name, content)).startswith("expands to more than 200 times its size; ")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.string())], ids=["text", "list"])
def test_long_cells_are_read_in_bounded_memory(write, monkeypatch, name, kind):
    monkeypatch.setattr(streams, "MAX_LINE", 2**20)
    path = write(name, bomb(name, 2**18, 200, kind))
    before, arrow_held = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    lengths = []
    for row in files.read(path, COLUMNS).rows:
        arrow_held = max(arrow_held, pa.total_allocated_bytes() - before)
        lengths.append(len(str(row["answer"])) // 2**18)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == [1] * 200
    assert max(held, arrow_held) < 2**23  # all rows hold 50 MiB


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.string())], ids=["text", "list"])
def test_row_that_is_too_long_is_refused(write, monkeypatch, name, kind):
    monkeypatch.setattr(streams, "MAX_LINE", 2**20)
    rows = pa.Table.from_pylist([{"question": "a", "answer": "b"}] * 1_500).to_pylist()
    rows[1_200]["answer"] = "x" * 2**22
    if pa.types.is_list(kind):
        rows = [{**row, "answer": [row["answer"]]} for row in rows]
    content = {
        "a.json": json.dumps(rows).encode(),
        "a.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows).encode(),
        "a.parquet": parquet(rows, 700),
        "a.arrow": arrow(rows, pa.ipc.new_file),
    }
    kind_of_row = "line" if name == "a.jsonl" else "row"
    assert problem(write(name, content[name])) == f"{kind_of_row} 1201 is longer than 1 MiB"


NESTED = st.lists(st.none() | st.lists(st.none() | st.text(max_size=5), max_size=3), min_size=1, max_size=9)


@settings(max_examples=30, deadline=None, database=None)
@given(NESTED, st.data())
def test_size_of_a_cell_is_that_of_its_texts(rows, data):
    texts = [None if row is None else "".join(item or "" for item in row) for row in rows]
    lists = [8 * len(row or []) + sum(len((item or "").encode()) for item in row or []) for row in rows]
    start = data.draw(st.integers(0, len(rows) - 1))
    coded = pa.array([item for row in rows for item in row or []], pa.string()).dictionary_encode()
    offsets = np.cumsum([0] + [len(row or []) for row in rows])
    arrays = [
        (pa.array(texts, pa.string()), [len((text or "").encode()) for text in texts]),
        (pa.array(texts, pa.large_string()), [len((text or "").encode()) for text in texts]),
        (pa.array(texts, pa.string_view()), [len((text or "").encode()) for text in texts]),
        (pa.array(texts, pa.string()).dictionary_encode(), [len((text or "").encode()) for text in texts]),
        (pa.array(rows, pa.list_(pa.string())), lists),
        (pa.array(rows, pa.large_list(pa.string())), lists),
        (pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), coded), lists),
        (pa.array([[row, row] for row in rows]), [16 + 2 * size for size in lists]),
        (pa.array([[1] * len(row or []) for row in rows], pa.list_(pa.int8())), [8 * len(row or []) for row in rows]),
        (pa.array(range(len(rows))), [0] * len(rows)),
    ]
    for array, sizes in arrays:
        assert columnar.sizes(array.slice(start)).tolist() == sizes[start:], array.type


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_column_of_another_type_is_named(write, name):
    rows = [{"question": "a", "answer": {"text": "b"}}]
    content = parquet(rows) if name == "a.parquet" else arrow(rows, pa.ipc.new_file)
    message = "column 'answer' has the type struct<text: string>; it must hold texts, numbers or lists"
    assert problem(write(name, content)) == message
    assert [dict(row) for row in files.read(write(name, content), ["question"]).rows] == [{"question": "a"}]


def test_folder_that_datasets_did_not_save_is_named(tmp_path):
    assert problem(tmp_path).startswith(
        "is a folder without the state.json of `datasets.save_to_disk`; name files in it, as "
    )


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """The folder of two splits."""
    both = {"train": datasets.Dataset.from_list(ROWS[:2]), "test": datasets.Dataset.from_list(ROWS[2:])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "both")
    return tmp_path / "both"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a data set in two files."""
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=2)
    return tmp_path / "saved"


def test_saved_files_follow_each_other_with_the_share_that_is_read(saved):
    table = files.read(saved, COLUMNS)
    assert [table.share() for _ in table.rows] == pytest.approx([0.5, 0.5, 1], abs=0.02)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", "[]", "/state.json: '_data_files' is no list of names"),
        ("state.json", "3", "/state.json: '_data_files' is no list of names"),
        ("state.json", '{"_data_files": []}', "/state.json: '_data_files' is no list of names"),
        ("state.json", '{"_data_files": [{"filename": 3}]}', "/state.json: '_data_files' is no list of names"),
        ("state.json", '{"_data_files": [{"filename"', "/state.json: could not be read (Expecting"),
        ("state.json", '{"_data_files": [{"filename": "none.arrow"}]}', "/none.arrow: could not be read ("),
        ("state.json", '{"_data_files": [{"filename": "a\\u0000"}]}', "/a\\x00: leads out of "),
        ("state.json", '{"_data_files": [{"filename": "../secret.arrow"}]}', "/../secret.arrow: leads out of "),
        ("state.json", '{"_data_files": [{"filename": "/etc/passwd"}]}', None),
        ("dataset_dict.json", '{"splits": ["../../elsewhere"]}', "/../../elsewhere/state.json: leads out of "),
        ("dataset_dict.json", '{"splits": {"train": 1}}', "/dataset_dict.json: 'splits' is no list of names"),
    ],
)
def test_saved_folder_with_a_damaged_list_of_files_is_named(saved, name, content, message):
    if name == "dataset_dict.json":
        (saved / "state.json").unlink()
    (saved / name).write_text(content)
    with pytest.raises(UserError) as caught:
        files.read(saved, COLUMNS)
    assert str(caught.value).startswith(f"{saved}{message}" if message else "/etc/passwd: leads out of ")


@pytest.mark.parametrize("content", ["[]", '{"features": 3}', "{"])
def test_what_a_saved_folder_says_of_its_types_does_not_matter(saved, content):
    (saved / "dataset_info.json").write_text(content)
    assert list(files.read(saved, COLUMNS).rows) == ROWS


def test_saved_file_that_is_a_link_to_elsewhere_is_refused(saved, tmp_path):
    file = saved / "data-00000-of-00002.arrow"
    file.rename(tmp_path / "secret.arrow")
    file.symlink_to(tmp_path / "secret.arrow")
    assert "data-00000-of-00002.arrow: leads out of" in problem(saved)


@pytest.mark.parametrize("name", [*CONTENT, "a.qrels"])
@FUZZED
@given(data=st.data())
def test_damage_anywhere_ends_in_rows_or_one_line(write, name, data):
    content = TREC if name == "a.qrels" else CONTENT[name]
    path = write(name, data.draw(damaged(content)))
    with suppress(UserError):
        assert all(isinstance(row, dict) for row in files.read(path, COLUMNS).rows)


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json", "data-00000-of-00001.arrow"])
@FUZZED
@given(data=st.data())
def test_damage_of_a_saved_folder_ends_in_rows_or_one_line(splits, name, data):
    file = splits / (name if name == "dataset_dict.json" else f"train/{name}")
    whole = file.read_bytes()
    file.write_bytes(data.draw(damaged(whole)))
    with suppress(UserError):
        assert all(isinstance(row, dict) for row in files.read(splits, COLUMNS).rows)
    file.write_bytes(whole)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / files.RAW
    (folder / "sub").mkdir(parents=True)
    (folder / ".cache").mkdir()
    kept_beside = ("README.md", ".gitignore", "a.csv.dvc", "sub.dvc", "sub/.gitignore", ".cache/d.csv")
    for name in ("b.csv", "a.csv", "a.json", "sub/c.csv", *kept_beside):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["data/raw/a.csv"], ["a.csv"]),
        (["data/raw/*.csv"], ["a.csv", "b.csv"]),
        (["data/raw/**/*.csv"], ["a.csv", "b.csv", "sub/c.csv"]),
        (["data/raw/b.csv", "./data/raw/*.csv"], ["b.csv", "a.csv"]),
        (["data/raw/sub"], ["sub"]),
        (["data/raw/a*"], ["a.csv", "a.json"]),
        (["data/raw/*"], ["a.csv", "a.json", "b.csv", "sub"]),
        (["data/raw/sub/*"], ["sub/c.csv"]),
        (["data/raw/README.md"], ["README.md"]),
    ],
)
def test_files_are_found_by_name_and_by_pattern_once_each(raw, patterns, expected):
    assert files.find(patterns) == [files.RAW / name for name in expected]


@pytest.mark.parametrize(
    "name",
    ["elsewhere/a.csv", "/data/raw/a.csv", "data/raw/../a.csv", "data/raw", "data/raw/../../secret.csv", "~/a.csv"],
)
def test_file_outside_the_watched_folder_is_refused(raw, name):
    with pytest.raises(UserError, match=r"is not in data/raw/; move it there"):
        files.find([name])


def test_link_is_followed_inside_the_watched_folder_and_into_the_cache_of_dvc(raw, tmp_path):
    cached = tmp_path / "cache/files/md5/c7/96c191140b5f9ce61892fab185f8d3"
    cached.parent.mkdir(parents=True)
    cached.touch()
    (raw / "cached.tsv").symlink_to(cached)
    (raw / "near.tsv").symlink_to("a.csv")
    assert files.find(["data/raw/*.tsv"]) == [files.RAW / "cached.tsv", files.RAW / "near.tsv"]


def test_name_of_a_file_in_the_cache_of_dvc_is_no_link_of_dvc(saved, tmp_path):
    cached = tmp_path / "cache/files/md5/c7/96c191140b5f9ce61892fab185f8d3"
    cached.parent.mkdir(parents=True)
    cached.touch()
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": str(cached)}]}))
    with pytest.raises(UserError, match="leads out of"):
        files.read(saved, COLUMNS)


@pytest.mark.parametrize("target", ["../../secret.csv", "/etc/passwd", "..", "loop.tsv"])
def test_link_that_leads_elsewhere_is_refused(raw, tmp_path, target):
    (tmp_path / "secret.csv").touch()
    (raw / "loop.tsv").symlink_to(target)
    with pytest.raises(UserError, match=r"^data/raw/loop\.tsv: leads out of data/raw/, to .*; move that file into it"):
        files.find(["data/raw/*.tsv"])


@pytest.mark.parametrize("name", ["data/raw/**.csv", "data/raw/a**/b.csv"])
def test_stars_inside_a_name_are_refused(raw, name):
    with pytest.raises(UserError, match=r"write \*\* alone between two slashes, as in data/raw/\*\*/\*\.csv"):
        files.find([name])


@pytest.mark.parametrize(
    "name", ["data/raw/none.csv", "data/raw/*.tsv", "data/raw/*.dvc", f"data/raw/{'x' * 300}.csv", "data/raw/\0"]
)
def test_name_of_no_file_is_refused(raw, name):
    with pytest.raises(UserError, match=r"names no file; `dvc checkout` or `dvc pull` brings"):
        files.find([name])


@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_header_names_the_columns_of_a_file_without_one(write, ending, delimiter):
    path = write(f"a.{ending}", f"How?{delimiter}So.\nWhy?{delimiter}No.\n".encode())
    table = files.read(path, COLUMNS, ["question", "answer"])
    assert list(table.names) == COLUMNS
    assert [dict(row) for row in table.rows] == [
        {"question": "How?", "answer": "So."},
        {"question": "Why?", "answer": "No."},
    ]


def test_header_that_does_not_fit_the_rows_is_refused(write):
    path = write("a.csv", b"How?,So.,7\n")
    with pytest.raises(UserError, match=r"a\.csv: line 1: 3 cells, but `header` in params\.yaml names 2 columns"):
        list(files.read(path, COLUMNS, COLUMNS).rows)


def test_header_that_names_a_column_twice_is_refused(write):
    with pytest.raises(UserError, match=r"a\.csv: `header` in params\.yaml names the column 'question' twice"):
        files.read(write("a.csv", b"How?,So.\n"), COLUMNS, ["question", "question"])


@pytest.mark.parametrize(("ending", "delimiter"), [("tsv", "\t"), ("csv", ",")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quotation_marks_are_text_where_it_is_said(write, ending, delimiter, end):
    rows = [["question", "answer"], ['"When" is it?', '"Now'], ["", 'a "'], ['"', '""'], ["Why?", "\x85\u2028\rSo."]]
    text = end.join(delimiter.join(row) for row in rows) + end + end
    path = write(f"a.{ending}", text.encode())
    table = files.read(path, COLUMNS, quoted=False)
    assert [[row["question"], row["answer"]] for row in table.rows] == rows[1:]


def test_quotation_mark_that_ends_rows_later_is_no_reason_to_lose_them(write):
    """With quotation marks, the text is one cell of three lines."""
    path = write("a.tsv", b'question\tanswer\na\t"b\nc\td\ne\tf"\n')
    assert len(list(files.read(path, COLUMNS).rows)) == 1
    assert len(list(files.read(path, COLUMNS, quoted=False).rows)) == 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.qrels"])
def test_format_without_quotation_marks_is_named(write, name):
    content = b"1 0 2 1\n" if name == "a.qrels" else CONTENT[name]
    with pytest.raises(UserError, match="has no quotation marks around cells; remove `quoted`"):
        files.read(write(name, content), COLUMNS, quoted=False)


@pytest.mark.parametrize("name", ["a.qrels", "a.qrels.gz", "a.dev.QRELS", "a.qrels.zst"])
def test_judgments_of_trec_have_the_columns_of_their_format(write, name):
    content = b'301\t0 FR940202-2-00150 1\r\n\n 301 Q0   "x  -2\n'
    packed = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)(content)
    table = files.read(write(name, packed), ["query", "passage", "grade"])
    assert list(table.names) == ["query", "iteration", "passage", "grade"]
    assert [list(row.values()) for row in table.rows] == [
        ["301", "0", "FR940202-2-00150", "1"],
        ["301", "Q0", '"x', "-2"],
    ]


def test_line_of_judgments_with_another_number_of_cells_is_named(write):
    message = "line 2: 3 cells, but the format of TREC names 4 columns"
    assert problem(write("a.qrels", b"301 0 a 1\n301 a 1\n")) == message


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.qrels"])
def test_header_of_a_format_that_names_its_columns_is_refused(write, name):
    content = b"1 0 2 1\n" if name == "a.qrels" else CONTENT[name]
    with pytest.raises(UserError, match="names its columns itself; remove `header`"):
        files.read(write(name, content), COLUMNS, COLUMNS)
