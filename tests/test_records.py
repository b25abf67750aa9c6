import errno
import json
from pathlib import Path

import pandas as pd
import pytest

from reranker.errors import UserError
from reranker.records import (
    PATHS,
    PRODUCER,
    folder,
    read_json,
    read_table,
    record_time,
    require,
    write_json,
    write_table,
    write_text,
)

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
    for stage, seconds in (("mine", 1.26), ("train", 2.0), ("mine", 3.14)):
        record_time(stage, seconds)
    assert json.loads(PATHS.timing.read_text()) == {"mine_seconds": 3.1, "train_seconds": 2.0}
