"""Tests of rerankers of other revisions, in a git and DVC repository whose stages write folders."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reranker.evaluation.experiment_models import fetch, model_hash, same_queries

STAGES = """
stages:
  prepare:
    cmd: python -c "import shutil; shutil.copytree('asked', 'data/prepared')"
    deps: [asked]
    outs: [data/prepared]
  train:
    cmd: python -c "import shutil; shutil.copytree('data/prepared', 'models/reranker')"
    deps: [data/prepared]
    outs: [models/reranker]
"""


def shell(*commands: str) -> None:
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False, env=variables)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a run with the tag `first`, and then a run that differs in leaks.parquet alone."""
    monkeypatch.chdir(tmp_path)
    Path("asked").mkdir()
    Path("asked/queries.parquet").write_text("queries")
    Path("asked/leaks.parquet").write_text("none")
    Path("dvc.yaml").write_text(STAGES)
    shell(
        "git init -q -b main", "git config user.email a@example.org", "git config user.name a", "dvc init -q",
        "dvc config core.analytics false", "dvc repro -q", "git add -A", "git commit -qm first", "git tag first",
    )  # fmt: skip
    Path("asked/leaks.parquet").write_text("one leak")
    shell("dvc repro -q", "git add -A", "git commit -qm second")


def test_queries_are_those_of_the_manifest_and_without_it_those_of_the_folder(repository: None) -> None:
    assert [same_queries(name) for name in ("first", "main")] == [True, True]
    shutil.rmtree(".dvc/cache")
    assert [same_queries(name) for name in ("first", "main")] == [False, True]


def test_other_queries_are_recognised_whatever_dvc_lock_says_of_the_workspace(repository: None) -> None:
    Path("data/prepared/queries.parquet").unlink()
    Path("data/prepared/queries.parquet").write_text("other queries")
    assert [same_queries(name) for name in ("first", "main")] == [False, False]


def test_model_of_a_revision_is_fetched_by_its_name(repository: None, tmp_path: Path) -> None:
    assert model_hash("first") != model_hash("main") == model_hash("HEAD")
    fetch("first", tmp_path / "fetched")
    assert (tmp_path / "fetched/leaks.parquet").read_text() == "none"
