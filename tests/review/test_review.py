"""Tests of reviews as CI runs them, in a repository with branches that gain, lose or cannot be compared."""

import json
import os
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import yaml

from reranker.common.revisions import find
from reranker.review.__main__ import main
from reranker.review.page import MARKER
from reranker.review.verdicts import EXIT

ROOT = Path(__file__).resolve().parents[2]
STAGES = """
stages:
  train:
    cmd: python train.py
    deps: [train.py, data/raw]
    params: [lr]
    outs: [{model.json: {cache: false}}, {metrics/train.json: {cache: false}}]
  evaluate:
    cmd: python evaluate.py
    deps: [evaluate.py, model.json]
    params: [top_k]
    outs: [data/prepared/queries.parquet, data/scored/test.qrels, {metrics/per_query.csv: {cache: false}}, {metrics/evaluate.json: {cache: false}}]
  report:
    cmd: python -c "open('page.html', 'w')"
    deps: [data/prepared/queries.parquet, title.txt]
    outs: [page.html]
"""  # noqa: E501
TRAIN = """
import json, os, re
lr = float(re.search("^lr: (\\S+)", open("params.yaml").read(), re.M)[1])
shift, noise = {5e-5: (0.05, 0.02), 9e-5: (0.002, 0.05), 2e-4: (-0.05, 0.02)}.get(lr, (0, 0))
os.makedirs("metrics", exist_ok=True)
json.dump({"shift": shift, "noise": noise}, open("model.json", "w"))
json.dump({"dev_ndcg@10": 0.4 + shift}, open("metrics/train.json", "w"))
"""
EVALUATE = """
import json, math, os, re
import pandas as pd
number = int(re.search("^top_k: (\\S+)", open("params.yaml").read(), re.M)[1])
model = json.load(open("model.json"))
ids = [f"q{n:02}" for n in range(30 - number, 40)]
scores = [0.5 + model["shift"] + model["noise"] * (-1) ** n for n in range(len(ids))]
os.makedirs("data/scored", exist_ok=True)
os.makedirs("data/prepared", exist_ok=True)
pd.DataFrame({"query_id": ids, "text": [f"question {i}" for i in ids]}).to_parquet("data/prepared/queries.parquet")
open("data/scored/test.qrels", "w").write("".join(f"{i} 0 p 1\\n" for i in ids))
rows = [f"{i},0.3,{score}" for i, score in zip(ids, scores)]
open("metrics/per_query.csv", "w").write("\\n".join(["query_id,cross_encoder,reranker", *rows, ""]))
json.dump({"ndcg@10": math.fsum(scores) / len(scores)}, open("metrics/evaluate.json", "w"))
"""
BRANCHES = {"gain": ("lr", "0.00005"), "loss": ("lr", "0.0002"), "untold": ("lr", "0.00009"), "fewer": ("top_k", "9")}
"""The key that each branch changes before it runs the pipeline. The new value has another length, because git may not
notice a change of the same length within a second."""


def shell(folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **more}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=variables)


def succeed(folder: Path, *commands: str) -> None:
    for line in commands:
        done = shell(folder, *line.split())
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"


def set_key(folder: Path, key: str, value: str) -> None:
    params = folder / "params.yaml"
    params.write_text(re.sub(rf"^( *{key}): \S+", rf"\g<1>: {value}", params.read_text(), flags=re.MULTILINE))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a branch of each kind; main is checked out, and DVC tracks its data file."""
    folder = tmp_path_factory.mktemp("review") / "repository"
    (folder / "data/raw").mkdir(parents=True)
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/review", folder / ".ci")
    shutil.copy(ROOT / "params.yaml", folder)
    texts = {"dvc.yaml": STAGES, "train.py": TRAIN, "evaluate.py": EVALUATE, "data/raw/a.csv": "a", "title.txt": "a"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    succeed(
        folder, "git init -q -b main", "git config user.email a@example.org", "git config user.name a", "dvc init -q",
        "dvc config core.analytics false", "dvc config core.autostage true", "dvc add -q data/raw/a.csv",
        "dvc repro -q", "git add -A", "git commit -qm run",
    )  # fmt: skip
    for name, (key, value) in BRANCHES.items():
        succeed(folder, f"git checkout -q -b {name} main")
        set_key(folder, key, value)
        succeed(folder, "dvc repro -q", "git add -A", f"git commit -qm {name}")
    succeed(folder, "git checkout -q -b stale main")
    set_key(folder, "top_k", "9")  # evaluate is stale, and a clone lacks its outputs, which report needs
    succeed(folder, "git commit -qam stale", "git checkout -q main", "dvc checkout -q")
    return folder


@pytest.fixture
def copy(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository that a test may change, as the current folder."""
    folder = tmp_path / "copy"
    shutil.copytree(repository, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error message in one line."""
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"error: .+\n", shown.err), shown.err
    return shown.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("branch", "failed", "verdict"),
    [
        ("gain", 0, r"\*\*pass: \+0\.050 NDCG@10, 95% \[\+0\.044, \+0\.056\], p < 0\.001: real\*\*"),
        ("loss", 1, r"\*\*regression: −0\.050 NDCG@10, .+ p < 0\.001: real, and beyond the loss of 0\.005 .+\*\*"),
        ("untold", 0, r"\*\*noise: \+0\.002 NDCG@10, .+: within noise; needs about [\d,]+ more .+\*\*"),
        ("fewer", 0, r"\*\*incomparable: other test queries \(0 new, 21 gone\): only the 19 common ones .+\*\*"),
        (
            "stale",
            0,
            r"\*\*incomparable: the figures are older than the change: evaluate did not .+\*\*",
        ),
    ],
)
def test_ci_reviews_a_branch_of_a_fresh_clone(
    repository: Path, tmp_path: Path, branch: str, failed: int, verdict: str
) -> None:
    """Like a CI runner, the clone has no DVC cache, and so neither data nor models."""
    clone = tmp_path / "clone"
    succeed(tmp_path, f"git clone -q --branch {branch} {repository} {clone}")
    summary = tmp_path / "summary.md"
    done = shell(clone, ".ci/review", "origin/main", GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == failed, done.stderr
    page = (clone / "review.md").read_text(encoding="utf-8")
    assert re.fullmatch(verdict, page.splitlines()[0]), page
    assert summary.read_text(encoding="utf-8") == page == done.stdout
    assert page.rstrip().endswith("<!-- reranker-review -->")


@pytest.mark.slow
def test_ci_without_the_base_fails_and_says_so(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    succeed(tmp_path, f"git clone -q {repository} {clone}")
    done = shell(clone, ".ci/review", "origin/nowhere")
    assert done.returncode == 1
    assert "fetch the whole history" in done.stderr


@pytest.mark.slow
def test_workspace_is_reviewed_with_texts_parameters_and_what_is_stale(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(copy, "git checkout -q gain", "dvc checkout -q")
    assert main(["main", "--output", "review.md"]) == EXIT["pass"]
    page = capsys.readouterr().out
    assert page == (copy / "review.md").read_text(encoding="utf-8")
    assert "`workspace` against `main (" in page
    assert "| `lr` | `7e-05` | `5e-05` |" in page
    assert re.search(r"\| `q\d\d` \| 0\.500 \| 0\.570 \| `question q\d\d` \|", page)
    set_key(copy, "lr", "1e-5")
    assert main(["main"]) == EXIT["incomparable"]
    assert "train did not run with it" in capsys.readouterr().out
    set_key(copy, "lr", "0.00005")
    (copy / "title.txt").write_text("another")
    assert main(["main"]) == EXIT["pass"]
    assert "stages that do not affect the figures are stale: report" in capsys.readouterr().out


@pytest.mark.slow
def test_data_added_behind_the_run_makes_it_stale(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "data/raw/a.csv").write_text("b")
    succeed(copy, "dvc add -q data/raw/a.csv", "git commit -qam data")
    assert main(["HEAD~1", "--head", "HEAD"]) == EXIT["incomparable"]
    assert "older than the change: train did not run with it" in capsys.readouterr().out


@pytest.mark.slow
def test_experiment_is_reviewed_by_its_name_and_counts_as_a_look(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(copy, "dvc exp run -q --name tried -S lr=2e-4", "dvc exp run -q --name again -S lr=2e-4")
    succeed(copy, "git checkout -q -f gain", "dvc checkout -q")
    set_key(copy, "test_looks", "1")
    assert main(["main", "--head", "tried"]) == EXIT["regression"]
    assert "`tried (" in capsys.readouterr().out
    assert main(["main", "--head", "gain"]) == EXIT["pass"]
    assert "test was looked at 2 times since the base" in capsys.readouterr().out  # tried and again are one figure


@pytest.mark.slow
def test_changed_files_in_folders_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("same.py", "edited.py", "renamed.py"):
        (copy / "code").mkdir(exist_ok=True)
        (copy / "code" / name).write_text(f"{name} = 1\n")
    (copy / "data/teachers").mkdir()
    (copy / "data/teachers/scores.csv").write_text("a")
    stages = STAGES.replace("train.py, data/raw", "code, train.py, data/raw").replace(
        "outs: [data/prepared/queries.parquet", "outs: [data/prepared"
    )
    (copy / "dvc.yaml").write_text(stages.replace("[data/prepared/queries.parquet, title", "[data/prepared, title"))
    succeed(
        copy, "git rm -q data/prepared/.gitignore", "dvc add -q data/teachers/scores.csv", "dvc repro -q",
        "git add -A", "git commit -qm folders", "git tag folders",
    )  # fmt: skip
    (copy / "code/edited.py").write_text("edited = 2\n")
    (copy / "code/renamed.py").rename(copy / "code/another.py")
    (copy / "data/teachers/scores.csv").write_text("b")
    set_key(copy, "lr", "0.00005")
    succeed(copy, "dvc add -q data/teachers/scores.csv", "dvc repro -q")
    changed = "- train: `code/another.py`, `code/edited.py`, `code/renamed.py`"

    assert main(["folders"]) == EXIT["pass"]
    page = capsys.readouterr().out
    assert changed in page.splitlines()
    assert "`data/teachers/scores.csv.dvc`" in page
    assert "`data/prepared" not in page
    succeed(copy, "git add -A", "git commit -qm edited")
    (copy / "data/prepared/queries.parquet").unlink()
    assert main(["folders", "--head", "HEAD"]) == EXIT["pass"]
    page = capsys.readouterr().out
    assert changed in page.splitlines()
    assert re.search(r"\| `q\d\d` \| 0\.500 \| 0\.570 \| `question q\d\d` \|", page)
    assert main(["folders~1", "--head", "HEAD"]) == EXIT["pass"]
    assert "- train: `code/another.py`, `code/edited.py`, `code/same.py`" in capsys.readouterr().out.splitlines()


def test_revision_that_nobody_knows_is_an_error(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere: git knows no such revision and DVC no such experiment" in message(capsys, "nowhere")
    assert "--x: git knows no such" in message(capsys, "main", "--head=--x")
    assert find("main").commit == find("HEAD").commit


def test_commit_without_figures_is_an_error(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    succeed(copy, "git checkout -q -b without", "git rm -q metrics/evaluate.json", "git commit -qm without")
    assert "no ndcg@10 in metrics/evaluate.json; name a commit that has the results" in message(
        capsys, "main", "--head", "HEAD"
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("metrics/per_query.csv", ""),
        ("metrics/per_query.csv", "query_id,cross_encoder\nq00,0.3\n"),
        ("metrics/per_query.csv", "query_id,reranker\nq00,0.3\nq00,0.4\n"),
        ("metrics/per_query.csv", "query_id,reranker\nq00,\n"),
        ("metrics/per_query.csv", "query_id,reranker\nq00,good\n"),
        ("metrics/per_query.csv", "query_id,reranker\n"),
        ("metrics/evaluate.json", "[]"),
        ("metrics/evaluate.json", '{"ndcg@10": "good"}'),
        ("metrics/evaluate.json", "<<<<<<< ours"),
        ("metrics/costs.csv", "megabytes\n1\n"),
        ("dvc.lock", "stages: []"),
    ],
)
def test_broken_file_is_named(copy: Path, capsys: pytest.CaptureFixture[str], path: str, text: str) -> None:
    (copy / path).write_text(text)
    assert f"workspace: its {path} cannot be read" in message(capsys, "main")


def test_run_without_evaluate_is_an_error(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "dvc.lock").write_text("stages: {}")
    assert "workspace: the stage evaluate did not run" in message(capsys, "main")


def test_runs_without_a_common_query_are_an_error(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "metrics/per_query.csv").write_text("query_id,reranker\nx,0.5\n")
    assert "have no test query in common" in message(capsys, "main")


def test_folder_without_git_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "git rev-parse: not a git repository" in message(capsys, "main")


def test_review_needs_no_model_library() -> None:
    heavy = "torch", "transformers", "sentence_transformers", "sklearn", "scipy", "matplotlib", "openvino"
    code = f"import sys, reranker.review.__main__; heavy = {{*{heavy}}} & {{*sys.modules}}; assert not heavy, heavy"
    done = shell(ROOT, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/review.yml").read_text(encoding="utf-8"))


def test_workflow_reads_the_history_and_runs_on_pull_requests_without_their_rights() -> None:
    assert [*WORKFLOW[True]] == ["pull_request"]  # YAML 1.1 takes `on` for true
    checkout, *_ = WORKFLOW["jobs"]["review"]["steps"]
    assert checkout["with"]["fetch-depth"] == 0
    assert checkout["with"]["persist-credentials"] is False
    assert any(step.get("run") == '.ci/review "$BASE"' for step in WORKFLOW["jobs"]["review"]["steps"])


def test_only_the_job_that_runs_nothing_of_the_pull_request_may_write() -> None:
    review, comment = WORKFLOW["jobs"]["review"], WORKFLOW["jobs"]["comment"]
    assert WORKFLOW["permissions"] == {}
    assert review["permissions"] == {"contents": "read"}
    assert comment["permissions"] == {"pull-requests": "write"}
    assert "github.event.pull_request.head.repo.full_name == github.repository" in comment["if"]
    assert not any("checkout" in step.get("uses", "") for step in comment["steps"])
    secrets = re.findall(r"secrets\.(\w+)", (ROOT / ".github/workflows/review.yml").read_text(encoding="utf-8"))
    assert {*secrets} == {"GITHUB_TOKEN"}


def test_text_of_a_pull_request_is_not_part_of_a_script() -> None:
    scripts = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    assert scripts
    assert [script for script in scripts if "${{" in script] == []


def test_gitlab_template_reviews_merge_requests_with_the_history() -> None:
    job = yaml.safe_load((ROOT / ".gitlab/review.gitlab-ci.yml").read_text(encoding="utf-8"))["review"]
    assert job["variables"]["GIT_DEPTH"] == "0"
    assert job["script"] == ['.ci/review "$CI_MERGE_REQUEST_DIFF_BASE_SHA"']
    assert job["artifacts"]["paths"] == ["review.md"]


@pytest.mark.parametrize(("comments", "method"), [("", "POST comments"), ("17\n23\n", "PATCH comment/17")])
def test_github_comment_is_written_once_and_then_anew(tmp_path: Path, comments: str, method: str) -> None:
    """A stand-in for gh records its arguments, because the real one needs a network."""
    gh = tmp_path / "gh"
    gh.write_text('#!/bin/sh\necho "$*" >>"$LOG"\ncase "$*" in *--jq*) printf "%s" "$FOUND" ;; esac\n')
    gh.chmod(0o755)
    (script,) = (step["run"] for step in WORKFLOW["jobs"]["comment"]["steps"] if "run" in step)
    log = tmp_path / "log"
    variables = {"COMMENTS": "comments", "COMMENT": "comment", "LOG": str(log), "FOUND": comments}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = shell(tmp_path, "bash", "-eo", "pipefail", "-c", script, **variables, PATH=path)
    assert done.returncode == 0, done.stderr
    listed, wrote = log.read_text().splitlines()
    assert listed.startswith("api --paginate comments?per_page=100 --jq")
    assert wrote == f"api --silent --method {method} -F body=@review.md"


class Notes(BaseHTTPRequestHandler):
    """A server with the notes of a merge request, like GitLab's API."""

    notes: ClassVar[list[dict[str, object]]] = []

    def do_GET(self) -> None:
        self.answer(self.notes)

    def do_POST(self) -> None:
        self.notes.append({"id": 10 + len(self.notes), **self.sent()})
        self.answer({})

    def do_PUT(self) -> None:
        (note,) = (note for note in self.notes if self.path.endswith(f"/notes/{note['id']}"))
        note |= self.sent()
        self.answer({})

    def sent(self) -> dict[str, object]:
        assert self.headers["PRIVATE-TOKEN"] == "token"
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, value: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_gitlab_note_is_written_once_and_then_anew(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Notes) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/api/v4"
        variables = {
            "CI_API_V4_URL": address,
            "CI_PROJECT_ID": "1",
            "CI_MERGE_REQUEST_IID": "2",
            "REVIEW_TOKEN": "token",
        }
        Notes.notes[:] = [{"id": 3, "body": "looks good"}]
        for text in ("first", "second"):
            (tmp_path / "review.md").write_text(f"{text}\n{MARKER}\n")
            done = shell(tmp_path, sys.executable, str(ROOT / ".ci/gitlab_note.py"), **variables)
            assert done.returncode == 0, done.stderr
        server.shutdown()
    assert Notes.notes == [{"id": 3, "body": "looks good"}, {"id": 11, "body": f"second\n{MARKER}\n"}]
