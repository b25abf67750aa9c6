"""Tests that a stage writes the same on several processes of a launcher as on one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

from reranker.retrieval import bm25
from settings import change
from stages import score, train
from trainable import Trainable, without_progress

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
ACCELERATE = (
    "accelerate.commands.launch",
    *("--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
)
MARK = "pineapples"
"""A word that only one query has."""

pytestmark = pytest.mark.slow


def start(folder: Path, stage: str, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Run a stage with a launcher, `python` if there is none."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"TMPDIR": str(folder.parent), "RAY_ADDRESS": ""}  # torchrun leaves its folder of logs there
    before = [*launcher, "-m"] if launcher else []
    command = [sys.executable, "-m", *before, *stage.split()]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread, as each of the processes does, because another number rounds differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scorable(tmp_path_factory: pytest.TempPathFactory, cross_encoder: str) -> Path:
    """A folder with tiny models and with questions on real docstrings, each with 18 candidates and the last with 13."""
    folder = tmp_path_factory.mktemp("launched") / "one"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    values = {
        "sources": {"docs": {"packages": ["networkx"]}},
        "dev_share": 0.05,
        "test_share": 0.2,
        "base_model": cross_encoder,
        "max_length": 32,
        "precision": "float32",
        "backend": "torch",
    }
    change(folder / "params.yaml", **values)
    prepared = start(folder, "stages.prepare")
    assert prepared.returncode == 0, prepared.stderr
    queries, passages = (pd.read_parquet(folder / f"data/prepared/{name}.parquet") for name in ("queries", "passages"))
    tests = queries["query_id"][queries["split"] == "test"].tolist()
    queries.loc[queries["query_id"] == tests[7], "text"] += f" {MARK}"
    queries.to_parquet(folder / "data/prepared/queries.parquet")
    ids = passages["passage_id"].tolist()
    rows = [(query, ids[(31 * n + rank) % len(ids)], rank + 1) for n, query in enumerate(tests) for rank in range(18)]
    candidates = pd.DataFrame(rows[:-5], columns=["query_id", "passage_id", "rank"])  # no whole number of passes
    (folder / "data" / "mined").mkdir()
    candidates.assign(split="test").to_parquet(folder / "data/mined/candidates.parquet")
    shutil.copytree(cross_encoder, folder / "models" / "reranker")
    words = bm25.dump(bm25.statistics(passages["text"]))
    (folder / "models/reranker/words.json").write_text(words, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("system", "launcher"),
    [("untouched_reranker", TORCHRUN), ("cross_encoder", ACCELERATE)],
    ids=["torchrun", "accelerate"],
)
@pytest.mark.usefixtures("one_thread")
def test_two_processes_score_the_rows_of_one_in_their_order(
    scorable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, launcher: tuple[str, ...]
):
    two = tmp_path / "two"
    shutil.copytree(scorable, two, ignore=shutil.ignore_patterns("scored"))
    pairs = pd.read_parquet(two / "data/mined/candidates.parquet")[["query_id", "passage_id"]]
    assert len(pairs) > 2048  # many exchanges
    monkeypatch.chdir(scorable)
    score.main([system])
    done = start(two, f"stages.score {system}", *launcher)
    assert (done.returncode, without_progress(done.stderr)) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"score: {system} scored {len(pairs):,} pairs in ")
    one, shared = (pd.read_parquet(folder / f"data/scored/{system}.parquet") for folder in (scorable, two))
    pd.testing.assert_frame_equal(shared[["query_id", "passage_id"]], pairs)
    pd.testing.assert_frame_equal(shared, one, rtol=0, atol=1e-6)
    assert shared["score"].nunique() > 1000
    names = sorted(path.name for path in (two / "data/scored").iterdir())
    assert names == [f"{system}.parquet", f"{system}.trec"]


def damage(folder: Path) -> None:
    """Damage a weight so that the passes with MARK, which only one process computes, give NaN."""
    path = folder / "models/reranker"
    tokenizer = CrossEncoder(str(path)).tokenizer
    weights = load_file(path / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name] = weights[name].clone()
    weights[name][tokenizer.convert_tokens_to_ids("apples")] = float("nan")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    queries = pd.read_parquet(folder / "data/prepared/queries.parquet")
    queries["text"] = queries["text"].str.replace(MARK, "apples")
    queries.to_parquet(folder / "data/prepared/queries.parquet")


def needs_ray(folder: Path) -> None:
    """Ask for a Ray cluster although there is none."""
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(text.replace("engine: local", "engine: ray"), encoding="utf-8")


@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (damage, "error: score cross_encoder: the model gives a score that is not finite for '"),
        (needs_ray, "error: params.yaml: execution.engine: RAY_ADDRESS is ''; "),
    ],
    ids=["one_process_meets_it_and_tells_the_others", "the_first_meets_it_and_the_other_has_ended"],
)
def test_an_error_ends_all_processes_with_one_line(scorable: Path, tmp_path: Path, break_it, line: str):
    two = tmp_path / "two"
    shutil.copytree(scorable, two, ignore=shutil.ignore_patterns("scored"))
    break_it(two)
    done = start(two, "stages.score cross_encoder", *TORCHRUN)
    assert (done.returncode, done.stdout) == (1, "")
    (error,) = (text for text in done.stderr.splitlines() if text.startswith("error: "))
    assert error.startswith(line)
    assert "stages/score.py" not in done.stderr  # torchrun's own report follows, without a traceback of the stage
    assert not (two / "data" / "scored").exists()


@pytest.mark.usefixtures("one_thread")
def test_student_of_two_processes_is_that_of_one(tmp_path: Path, cross_encoder: str, monkeypatch: pytest.MonkeyPatch):
    one, two = (Trainable(tmp_path / name, cross_encoder, 16).path for name in ("one", "two"))
    monkeypatch.chdir(one)
    train.main(["--student", "1"])
    done = start(two, "stages.train --student 1", *TORCHRUN)
    assert (done.returncode, without_progress(done.stderr)) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("student 1: NDCG@10 ")
    assert not list((two / ".checkpoints").glob("student-*/*"))
    pairs = [("sort a list", "order numbers in a list"), ("sort a list", "green apples")]
    scores = [CrossEncoder(str(folder / "models/students/1")).predict(pairs) for folder in (one, two)]
    np.testing.assert_allclose(*scores, atol=0.01)


@pytest.mark.usefixtures("one_thread")
def test_accelerate_trains_on_two_processes_what_one_does(
    tmp_path: Path, cross_encoder: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    one, two = (Trainable(tmp_path / name, cross_encoder, 16) for name in ("one", "two"))
    monkeypatch.chdir(one.path)
    train.main([])
    assert two.run(*ACCELERATE, "-m") == ""
    for table in ("curve_loss", "curve_dev"):
        pd.testing.assert_frame_equal(
            *(pd.read_csv(place.path / "metrics" / f"{table}.csv") for place in (one, two)), atol=1e-5
        )
