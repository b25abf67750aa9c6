import errno
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from reranker.common.artifacts import (
    PATHS,
    PRODUCER,
    first_texts,
    folder,
    read_csv,
    read_json,
    read_table,
    read_tables,
    record_time,
    require,
    write_json,
    write_parts,
    write_table,
    write_text,
)
from reranker.common.errors import UserError

TABLE = pd.DataFrame({"query_id": ["q1", "q2"], "score": [0.5, 1.5]})


class FullDisk(pd.DataFrame):
    """A table that fills the disk half-way through."""

    def to_parquet(self, path: Path, **_: object) -> None:
        path.write_bytes(b"PAR1 half of it")
        raise OSError(errno.ENOSPC, "No space left on device")


class Interrupted(pd.DataFrame):
    def to_parquet(self, path: Path, **_: object) -> None:
        path.write_bytes(b"PAR1 half of it")
        raise KeyboardInterrupt


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_table_comes_back_as_it_was_written_in_a_new_folder(tmp_path: Path):
    path = tmp_path / "data" / "mined" / "table.parquet"
    write_table(TABLE, path)
    pd.testing.assert_frame_equal(read_table(path, ["score", "query_id"]), TABLE[["score", "query_id"]])
    assert names(path.parent) == ["table.parquet"]


@pytest.mark.parametrize("content", ["", "query_id,passage_id\nq,p\n", 'query_id,passage_id,mark\n"q,p,right\n'])
def test_marks_that_are_no_table_are_to_be_mended_by_hand(content: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PATHS.marked.parent.mkdir()
    PATHS.marked.write_text(content)
    with pytest.raises(UserError, match=r"^data/marked.csv: not a CSV table .*; mend it, or restore it with `git"):
        read_csv(PATHS.marked, ["query_id", "passage_id", "mark"], as_text=True)


def test_table_of_several_parts_comes_back_whole(tmp_path: Path):
    path = tmp_path / "table.parquet"
    write_parts((TABLE[n : n + 1] for n in range(len(TABLE))), path)
    pd.testing.assert_frame_equal(read_table(path, ["query_id", "score"]), TABLE)
    assert names(tmp_path) == ["table.parquet"]


def test_parts_that_end_in_an_error_leave_the_earlier_table(tmp_path: Path):
    def parts() -> Iterator[pd.DataFrame]:
        yield TABLE
        raise UserError("no more")

    path = tmp_path / "table.parquet"
    write_parts([TABLE, TABLE], path)
    with pytest.raises(UserError, match="no more"):
        write_parts(parts(), path)
    assert len(read_table(path, ["query_id"])) == 4
    assert names(tmp_path) == ["table.parquet"]


@pytest.mark.parametrize(("number", "expected"), [(1, ["a"]), (3, ["a", "b", "c"]), (9, ["a", "b", "c"])])
def test_first_texts_are_as_many_as_there_are(tmp_path: Path, number: int, expected: list[str]):
    write_parts(
        [pd.DataFrame({"id": ["1", "2"], "text": ["a", "b"]}), pd.DataFrame({"id": ["3"], "text": ["c"]})],
        tmp_path / "table.parquet",
    )
    assert first_texts(tmp_path / "table.parquet", number) == expected


@pytest.mark.parametrize(("failing", "raised"), [(FullDisk, UserError), (Interrupted, KeyboardInterrupt)])
def test_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path: Path, failing, raised):
    path = tmp_path / "table.parquet"
    write_table(TABLE, path)
    with pytest.raises(raised) as caught:
        write_table(failing(), path)
    if raised is UserError:
        assert str(caught.value).startswith(f"{path}: could not be written (No space left on device)")
    pd.testing.assert_frame_equal(read_table(path, ["query_id", "score"]), TABLE)
    assert names(tmp_path) == ["table.parquet"]


def test_folder_that_cannot_be_made_is_an_error_with_the_path(tmp_path: Path):
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="could not be written"):
        write_text("x", tmp_path / "data" / "text.txt")
    with pytest.raises(UserError, match="could not be written"), folder(tmp_path / "data" / "model"):
        pass


def test_folder_replaces_the_earlier_one_when_its_block_ends(tmp_path: Path):
    path = tmp_path / "models" / "reranker"
    for name in ("old.txt", "new.txt"):
        with folder(path) as temporary:
            (temporary / name).write_text(name)
            assert not (path / name).exists()
    assert names(path) == ["new.txt"]
    assert names(path.parent) == ["reranker"]


def write_half(path: Path, failure: BaseException) -> None:
    with folder(path) as temporary:
        (temporary / "weights").write_text("half")
        raise failure


@pytest.mark.parametrize(
    ("failure", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "full"), UserError)]
)
def test_folder_keeps_the_earlier_one_when_its_block_fails(tmp_path: Path, failure, raised):
    path = tmp_path / "reranker"
    with folder(path) as temporary:
        (temporary / "weights").write_text("earlier")
    with pytest.raises(raised):
        write_half(path, failure)
    assert (path / "weights").read_text() == "earlier"
    assert names(tmp_path) == ["reranker"]


def test_weights_that_cannot_be_written_are_an_error_and_the_earlier_ones_stay(tmp_path: Path):
    path = tmp_path / "reranker"
    write_weights(path, 1.0)
    with pytest.raises(UserError, match=r"could not be written .*Is a directory"):
        write_weights(path, 2.0, in_the_way=True)
    assert load_file(path / "model.safetensors")["head"].tolist() == [1.0]
    assert names(tmp_path) == ["reranker"]


def write_weights(path: Path, value: float, *, in_the_way: bool = False) -> None:
    with folder(path) as temporary:
        if in_the_way:
            (temporary / "model.safetensors").mkdir()
        save_file({"head": np.array([value])}, temporary / "model.safetensors")


def test_earlier_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path: Path):
    path = tmp_path / "reranker"
    write_weights(path, 1.0)
    with pytest.raises(UserError, match="could not be written"), folder(path) as temporary:
        temporary.rmdir()  # so that the last rename fails
    assert names(path) == ["model.safetensors"]
    assert names(tmp_path) == ["reranker"]


PREPARED = {
    "passages": pd.DataFrame({"passage_id": ["p1", "p2"], "text": ["one", "two"], "group": ["p1", "p2"]}),
    "queries": pd.DataFrame(
        {
            "query_id": ["q1", "q2"],
            "text": ["1", "2"],
            "group": ["q1", "q2"],
            "split": ["train", "test"],
            "source": "docs",
        }
    ),
    "judgments": pd.DataFrame({"query_id": ["q1", "q2"], "passage_id": ["p1", "p2"], "relevance": [1, 1]}),
}


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, table in PREPARED.items():
        write_table(table, getattr(PATHS, name))


@pytest.mark.usefixtures("prepared")
def test_tables_come_back_as_prepare_wrote_them():
    for name, table in read_tables()._asdict().items():
        pd.testing.assert_frame_equal(table, PREPARED[name])


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(
    ("name", "column", "values", "message"),
    [
        ("passages", "text", ["one", None], "column text: row 1 has no value"),
        ("passages", "passage_id", ["p1", "p1"], "column passage_id: 'p1' appears twice"),
        ("queries", "query_id", ["q2", "q2"], "column query_id: 'q2' appears twice"),
        ("queries", "split", ["train", "testing"], "column split: 'testing' is none of train, dev, test"),
        ("judgments", "query_id", ["q1", "q3"], "column query_id: 'q3' is not in data/prepared/queries.parquet"),
        ("judgments", "passage_id", ["p0", "p1"], "column passage_id: 'p0' is not in data/prepared/passages.parquet"),
    ],
)
def test_table_that_contradicts_itself_or_another_is_named(name: str, column: str, values: list[str], message: str):
    write_table(PREPARED[name].assign(**{column: values}), getattr(PATHS, name))
    with pytest.raises(UserError) as caught:
        read_tables()
    assert str(caught.value).startswith(f"data/prepared/{name}.parquet: {message}")


@pytest.mark.usefixtures("prepared")
def test_judgment_that_is_there_twice_is_named():
    write_table(pd.concat([PREPARED["judgments"]] * 2), PATHS.judgments)
    with pytest.raises(UserError, match="query 'q1' and passage 'p1' appear twice"):
        read_tables()


def test_stage_that_an_error_names_is_the_one_that_writes_the_file():
    root = Path(__file__).resolve().parents[2]
    for path, stage in PRODUCER.items():
        file, _, name = stage.rpartition(":")
        name, _, item = name.partition("@")
        entry = yaml.safe_load((root / (file or "dvc.yaml")).read_text(encoding="utf-8"))["stages"][name]
        outs = [out if isinstance(out, str) else next(iter(out)) for out in entry.get("do", entry)["outs"]]
        written = {out.replace("${key}", item) for out in outs}
        written |= {out.removesuffix("/${item}") for out in outs}  # the folder of a stage for each item
        assert {str(path), str(path.parent)} & written, path


@pytest.mark.parametrize("path", PRODUCER, ids=str)
def test_error_for_a_missing_input_tells_which_stage_to_run(path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        require(path)
    assert str(caught.value).startswith(f"{path} does not exist")
    assert f"`dvc repro {PRODUCER[path]}`" in str(caught.value)


def test_error_for_missing_figures_tells_which_stage_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"metrics/evaluate\.json does not exist: .*`dvc repro evaluate`"):
        read_json(PATHS.metrics / "evaluate.json")


def test_corrupt_table_is_an_error_of_one_line(tmp_path: Path):
    path = tmp_path / "table.parquet"
    write_table(TABLE, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a Parquet table with the columns query_id") as caught:
        read_table(path, ["query_id"])
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_column_is_named(tmp_path: Path):
    write_table(TABLE, tmp_path / "table.parquet")
    with pytest.raises(UserError, match="columns query_id, relevance") as caught:
        read_table(tmp_path / "table.parquet", ["query_id", "relevance"])
    assert "\n" not in str(caught.value)


def test_figures_are_sorted_and_unrounded(tmp_path: Path):
    path = tmp_path / "metrics.json"
    write_json({"b": 0.1 + 0.2, "a": 1}, path)
    assert path.read_text() == '{\n  "a": 1,\n  "b": 0.30000000000000004\n}\n'
    assert read_json(path) == {"a": 1, "b": 0.1 + 0.2}


def test_figure_that_is_not_a_number_is_refused_and_the_earlier_file_stays(tmp_path: Path):
    path = tmp_path / "metrics.json"
    write_json({"a": 1}, path)
    with pytest.raises(ValueError, match="JSON"):
        write_json({"a": float("nan")}, path)
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("text", ["{", "[1]", "3", '{"a": \xff'])
def test_broken_figures_are_an_error_with_the_path(tmp_path: Path, text: str):
    path = tmp_path / "metrics.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(path)


def test_times_of_other_stages_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for stage, seconds in (("mine", 1.26), ("train", 2.0), ("mine", 3.1404)):
        record_time(stage, seconds)
    assert json.loads(PATHS.timing.read_text()) == {"mine_seconds": 3.14, "train_seconds": 2.0}
