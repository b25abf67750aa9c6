"""Tests with files that other people wrote. They are skipped where the files do not lie beside the repository."""

import shutil
from pathlib import Path

import pytest

from prepared import clean, leaks, tables
from reranker.common.source_schema import BeirSource, Columns, FileSource
from reranker.data.sources import readers

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "columns", "rows", "queries"),
    [
        ("medquad/qa.jsonl.gz", Columns(query="question", passage="answer"), 16_407, 14_000),
        ("tldr/examples.jsonl.gz", Columns(query="description", passage="command"), 32_135, 20_000),
        ("covid/faq.csv", Columns(query="question", passage="answer"), 213, 200),
    ],
)
def test_file_is_read_to_its_last_row_and_becomes_tables(tmp_path, monkeypatch, name, columns, rows, queries):
    if not (DATA / name).exists():
        pytest.skip(f"{DATA.name}/{name} is not there")
    monkeypatch.chdir(tmp_path)
    raw = Path("data/raw")
    raw.mkdir(parents=True)
    shutil.copy(DATA / name, raw)
    source = FileSource(files={"unsplit": [str(raw / Path(name).name)]}, columns=columns)
    parts = list(readers.read(source))
    assert sum(len(part.examples) for part in parts) == rows
    assert parts[-1].share == 1
    examples = [example for part in parts for example in part.examples]
    clean_rows, dropped, _ = clean(examples)
    assert len(clean_rows) + sum(dropped.values()) == rows
    result = tables(examples, dev_share=0.1, test_share=0.1).queries
    assert len(result) > queries
    assert set(result["split"]) == {"train", "dev", "test"}


def test_folder_of_beir_keeps_its_own_split(tmp_path, monkeypatch):
    if not (DATA / "scifact").exists():
        pytest.skip(f"{DATA.name}/scifact is not there")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA / "scifact", "data/raw/scifact")
    examples = [example for part in readers.read(BeirSource(beir="data/raw/scifact")) for example in part.examples]
    result = tables(examples, dev_share=0.1, test_share=0.1)
    sizes = result.queries["split"].value_counts()
    assert len(result.passages) == 5_183
    assert sizes["test"] == 300
    assert sizes["train"] + sizes["dev"] == 805  # of 809: two are in the test split as well, two have a twin
    assert 40 < sizes["dev"] < 130
    assert leaks(examples)[:2] == (2, 31)
