import json
import logging
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import FUZZED, damaged
from reranker.common.errors import UserError
from reranker.common.source_schema import HubSource
from reranker.data.cleaning import UNSPLIT, Example
from reranker.data.sources import hub, readers

COLUMNS = {"query": "question", "passage": "answers", "label": "grades"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `load_dataset` reads like one of the Hub's, with two configurations."""
    monkeypatch.chdir(tmp_path)
    path = Path("data/raw/tools")
    path.mkdir(parents=True)
    for name, number in (("train", 5), ("test", 2), ("more", 1)):
        rows = [
            {"id": n, "question": f"{name} {n}?", "answers": [f"So {n}.", "No."], "grades": [2, 0]}
            for n in range(number)
        ]
        (path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    splits = "".join(f"  - {{split: {name}, path: {name}.jsonl}}\n" for name in ("train", "test"))
    more = "- config_name: more\n  data_files: more.jsonl\n"
    (path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}{more}---\n")
    return path


def source(**values: object) -> HubSource:
    return HubSource.model_validate({"hub": "data/raw/tools", "split": "train", "columns": COLUMNS} | values)


def examples(**values: object) -> list[Example]:
    return [example for part in readers.read(source(**values)) for example in part.examples]


def test_rows_of_a_split_are_examples(folder: Path):
    result = examples()
    assert len(result) == 10
    assert result[:2] == [
        Example("data/raw/tools: row 1", "train 0?", "So 0.", 2, UNSPLIT),
        Example("data/raw/tools: row 1", "train 0?", "No.", 0, UNSPLIT),
    ]


def test_splits_of_the_data_set_are_given_to_those_of_the_experiment(folder: Path):
    result = examples(split={"train": "train", "dev": "test"})
    assert [example.split for example in result[::2]] == ["train"] * 5 + ["dev"] * 2


def test_configuration_is_chosen(folder: Path):
    assert [example.query for example in examples(config="more")[::2]] == ["more 0?"]


def test_limit_keeps_the_first_rows_and_tells_how_far_it_is(folder: Path):
    table = hub.read("data/raw/tools", "train", ["question"], limit=4)
    shares = [table.share() for _ in table.rows]
    assert shares == [0.25, 0.5, 0.75, 1]


def test_other_columns_are_told_and_not_read(folder: Path):
    table = hub.read("data/raw/tools", "train", ["question", "nothing"])
    assert set(table.names) == {"id", "question", "answers", "grades"}
    assert [*next(table.rows)] == ["question"]
    assert next(iter(readers.read(source()))).unused == ["id"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "dev"}, r"data/raw/tools: could not be read: .*dev.*train.*test"),
        ({"config": "less"}, r"data/raw/tools: could not be read: .*less.*default.*more"),
        (
            {"columns": {"query": "questions", "passage": "answers"}},
            r"data/raw/tools: no column 'questions'; .*did you",
        ),
    ],
)
def test_what_the_data_set_lacks_is_named(folder: Path, values: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        examples(**values)


def test_damaged_row_is_one_line(folder: Path):
    (folder / "train.jsonl").write_text('{"question": "a", "answers"\n')
    with pytest.raises(UserError, match=r"^data/raw/tools: could not be read: [^\n]+$"):
        examples()


def test_folder_of_csv_files_is_read_like_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = Path("data/raw/tools")
    path.mkdir(parents=True)
    (path / "train.csv").write_text("id,question,answers\n1,train 0?,So 0.\n")
    assert examples(columns={"query": "question", "passage": "answers"}) == [
        Example("data/raw/tools: row 1", "train 0?", "So 0.")
    ]


def test_empty_file_is_one_line(folder: Path):
    (folder / "train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"^data/raw/tools: could not be read: one of its files has no rows$"):
        examples()


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:39], COMMIT.upper()])
def test_data_set_of_the_hub_needs_a_commit(folder: Path, revision: str | None):
    with pytest.raises(UserError, match=r"params\.yaml: 'some/data': revision: .*: must be the 40 digits of a commit"):
        examples(hub="some/data", revision=revision)


def test_hub_is_not_asked_unless_it_is_switched_on(folder: Path):
    with pytest.raises(UserError, match=r"some/data: could not be read: .*; set HF_HUB_OFFLINE=0 to reach the Hub"):
        examples(hub="some/data", revision=COMMIT)


@pytest.mark.parametrize(
    "data_file", ["../../../secret.jsonl", "{here}/secret.jsonl", "file://{here}/secret.jsonl", "link.jsonl"]
)
def test_file_elsewhere_that_the_folder_names_is_refused(folder: Path, tmp_path: Path, data_file: str):
    (folder / "train.jsonl").rename("secret.jsonl")
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    data_file = data_file.format(here=tmp_path)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {data_file}\n---\n")
    with pytest.raises(UserError, match=r"/(secret|link)\.jsonl: leads out of data/raw/, to .*/secret\.jsonl"):
        examples()


@pytest.mark.parametrize("part", ["data/train.parquet", "a.zip", "zip://a.csv::hf://datasets/some/data@{commit}/a.zip"])
def test_file_of_a_data_set_of_the_hub_is_part_of_its_commit(folder: Path, part: str):
    place = part if "::" in part else f"hf://datasets/some/data@{{commit}}/{part}"
    hub.check(place.format(commit=COMMIT), "some/data", COMMIT)


@pytest.mark.parametrize(
    "place",
    [
        f"hf://datasets/other/data@{COMMIT}/a.csv",
        "hf://datasets/some/data@main/a.csv",
        "https://example.com/a.csv",
        "zip://a.csv::https://example.com/a.zip",
        "data/raw/tools/train.jsonl",
        "/etc/passwd",
    ],
)
def test_other_file_that_a_data_set_of_the_hub_names_is_refused(folder: Path, place: str):
    with pytest.raises(UserError, match=r"^some/data: names .*, which is not part of it; remove that name"):
        hub.check(place, "some/data", COMMIT)


def test_address_that_a_folder_names_is_refused(folder: Path):
    with pytest.raises(UserError, match=r"^data/raw/tools: names https://example\.com/a\.csv, which is not part of it"):
        hub.check("https://example.com/a.csv", "data/raw/tools", None)


def test_nothing_is_logged_of_a_damaged_file(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "train.jsonl").write_text('{"question": "a", "answers"\n')
    logger = logging.getLogger("datasets")
    logger.addHandler(caplog.handler)
    with pytest.raises(UserError):
        examples()
    logger.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize("name", ["x" * 300, "data/raw/\0"])
def test_name_that_cannot_be_one_is_refused(folder: Path, name: str):
    with pytest.raises(UserError, match="must be the 40 digits of a commit"):
        examples(hub=name)


def test_folder_elsewhere_is_refused(folder: Path):
    folder.rename("tools")
    with pytest.raises(UserError, match="'tools' is not in data/raw/; move it there"):
        examples(hub="tools")


@pytest.fixture
def kinds(folder: Path) -> dict[str, bytes]:
    """The contents of the folder's files by name, with a file of rows in each format."""
    frame = pd.read_json(folder / "train.jsonl", lines=True)
    return {
        "README.md": (folder / "README.md").read_bytes(),
        "train.jsonl": (folder / "train.jsonl").read_bytes(),
        "train.json": frame.to_json(orient="records").encode(),
        "train.csv": frame.to_csv(index=False).encode(),
        "train.parquet": frame.to_parquet(),
    }


@pytest.mark.parametrize("name", ["README.md", "train.jsonl", "train.json", "train.csv", "train.parquet"])
@FUZZED
@given(data=st.data())
def test_damage_anywhere_ends_in_rows_or_one_line(
    folder: Path, kinds: dict[str, bytes], name: str, data: st.DataObject
):
    (folder / name).write_bytes(data.draw(damaged(kinds[name])))
    if name != "README.md":
        readme = kinds["README.md"].replace(b"train.jsonl", name.encode())
        (folder / "README.md").write_bytes(readme)
    with suppress(UserError):
        assert all(isinstance(example, Example) for example in examples())
