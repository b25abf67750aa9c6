from pathlib import Path

import numpy as np
import pytest

from reranker.common.errors import UserError
from reranker.data import text_store
from reranker.data.text_store import Spool


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few rows fill several batches and buckets."""
    monkeypatch.setattr(text_store, "ROWS", 3)
    monkeypatch.setattr(text_store, "CHARS", 40)
    monkeypatch.setattr(text_store, "BUCKET", 4)
    monkeypatch.setattr(text_store, "BUCKETS", 5)


def fill(texts: Spool, number: int) -> None:
    for row in range(number):
        texts.add(f"row {row}", None if row % 3 == 0 else f"query {row}", f"passage {row}\n" + "é" * (row % 50))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("number", [1, 2, 7, 50])
def test_texts_come_back_in_any_order(tmp_path: Path, number: int):
    rows = np.random.default_rng(1).permutation(number)[: number // 2 + 1]
    with Spool(tmp_path / "spool") as texts:
        fill(texts, number)
        assert texts.texts("origin", rows) == [f"row {row}" for row in rows]
        assert texts.texts("query", rows) == [None if row % 3 == 0 else f"query {row}" for row in rows]
        result = [text for run in texts.ordered("passage", rows) for text in run]
        assert result == [f"passage {row}\n" + "é" * (row % 50) for row in rows]


@pytest.mark.usefixtures("small")
def test_there_are_no_more_buckets_than_files_may_be_open(tmp_path: Path):
    with Spool(tmp_path / "spool") as texts:
        fill(texts, 50)
        assert [len(run) for run in texts.ordered("origin", np.arange(50))] == [10] * 5


def test_no_rows_have_no_texts(tmp_path: Path):
    with Spool(tmp_path / "spool") as texts:
        assert texts.texts("passage", np.empty(0, np.int64)) == []
        assert list(texts.ordered("passage", np.empty(0, np.int64))) == []


def fail(texts: Spool, error: BaseException) -> None:
    fill(texts, 5)
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("no rows left"), MemoryError()])
def test_nothing_is_left_behind_whatever_happens(tmp_path: Path, error: BaseException):
    with pytest.raises(type(error)), Spool(tmp_path / "spool") as texts:
        fail(texts, error)
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_run_left_is_taken_away(tmp_path: Path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "rows.parquet").write_text("half of it")
    with Spool(tmp_path / "spool") as texts:
        fill(texts, 2)
        assert texts.texts("origin", np.array([1])) == ["row 1"]


def test_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(UserError, match=r"spool: could not be written"), Spool(tmp_path / "spool"):
        pass
