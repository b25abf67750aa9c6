"""Tests of dvc.lock: stages and files that a result depends on, stale stages, and files of folders in DVC's cache."""

import json
from pathlib import Path

import pytest

from reranker.common.revisions import Lock, cache_path

STAGES = {
    "prepare": {"deps": [{"path": "data/raw", "md5": "r"}], "outs": [{"path": "data/prepared", "md5": "abcd.dir"}]},
    "train": {
        "deps": [{"path": "stages/train.py", "md5": "t"}, {"path": "data/prepared", "md5": "abcd.dir"}],
        "params": {"params.yaml": {"lr": 1e-4}},
        "outs": [{"path": "models/reranker", "md5": "m.dir"}],
    },
    "score": {
        "deps": [{"path": "models/reranker/fusion.json", "md5": "f"}, {"path": "models/reranker", "md5": "m.dir"}],
        "outs": [{"path": "data/scored/a.parquet", "md5": "a"}, {"path": "data/scored/b.parquet", "md5": "b"}],
    },
    "evaluate": {"deps": [{"path": "data/scored", "md5": "s.dir"}]},
    "report": {"deps": [{"path": "stages/report.py", "md5": "r"}]},
}  # fmt: skip
LOCK = Lock(STAGES)


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What DVC's cache has of data/prepared."""
    monkeypatch.chdir(tmp_path)
    path = cache_path("abcd.dir")
    path.parent.mkdir(parents=True)
    files = [{"md5": "q", "relpath": "queries.parquet"}, {"md5": "p", "relpath": "more/passages.parquet"}]
    path.write_text(json.dumps(files))
    return path


def with_params(**used: object) -> Lock:
    return Lock({**STAGES, "train": {**STAGES["train"], "params": {"params.yaml": used}}})


def test_stages_upstream_are_those_that_write_the_files_their_folders_or_files_in_them() -> None:
    assert LOCK.upstream("evaluate") == ["evaluate", "prepare", "score", "train"]
    assert LOCK.upstream("prepare") == ["prepare"]


def test_files_that_a_stage_writes_are_no_source_files() -> None:
    assert LOCK.source_files("evaluate") == {"data/raw": "r", "stages/train.py": "t"}


def test_stage_that_did_not_run_after_its_input_or_with_the_parameters_is_stale() -> None:
    assert LOCK.stale({"lr": 1e-4}, "evaluate") == []
    assert LOCK.stale({"lr": 2e-5}, "evaluate") == LOCK.stale({}, "evaluate") == ["train"]
    trained = Lock({**STAGES, "train": {**STAGES["train"], "outs": [{"path": "models/reranker", "md5": "m2.dir"}]}})
    assert trained.stale({"lr": 1e-4}, "evaluate") == ["score"]


@pytest.mark.parametrize("used", [{"a.b": None, "a.c.d": 2}, {"a": {"b": None, "c": {"d": 2}}}])
def test_parameters_are_looked_up_by_dotted_keys_and_by_whole_sections(used: dict[str, object]) -> None:
    lock = with_params(**used)
    assert lock.stale({"a": {"b": None, "c": {"d": 2}}}, "train") == []
    for section in ({"b": 1, "c": {"d": 2}}, {"b": None, "c": {"d": 3}}, {"c": {"d": 2}}, 2):
        assert lock.stale({"a": section}, "train") == ["train"]


def test_hash_of_a_file_in_a_folder_is_that_of_the_manifest(manifest: Path) -> None:
    assert LOCK.out_hash("data/prepared") == "abcd.dir"
    assert LOCK.out_hash("data/prepared/queries.parquet") == "q"
    assert LOCK.out_hash("data/prepared/more/passages.parquet") == "p"
    assert LOCK.out_hash("data/prepared/judgments.parquet") is None
    assert LOCK.out_hash("data/prepared_2/queries.parquet") is None
    manifest.write_text("")
    assert LOCK.out_hash("data/prepared/queries.parquet") is None


def test_stage_that_read_another_file_of_a_folder_is_stale_where_the_manifest_tells(manifest: Path) -> None:
    reads = {"deps": [{"path": "data/prepared/queries.parquet", "md5": "q0"}]}
    lock = Lock({**STAGES, "train": reads})
    assert lock.stale({}, "train") == ["train"]
    manifest.unlink()
    assert lock.stale({}, "train") == []
