"""The whole pipeline as a user runs it, on a tiny configuration: real text, real models, a few steps."""

import csv
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import yaml

from reranker.review.runs import HEADLINE
from settings import change

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "sources": {"docs": {"packages": ["networkx"]}, "web": {"packages": ["jinja2", "aiohttp"], "weight": 3.0}},
    "prepare.dev_share": 0.03,
    "prepare.test_share": 0.05,
    "max_length": 32,
    "static.epochs": 2,
    "static.batch_size": 64,
    "biencoder.max_length": 32,
    "biencoder.queries": 64,
    "biencoder.batch_size": 16,
    "biencoder.train_max_length": 24,
    "top_k": 10,
    "train_queries": 8,
    "warmup": 0.0,  # else the first of so few steps changes nothing, and may be the best
    "num_negatives": 3,
    "negatives.range_max": 20,
    "dev.queries": 4,
}
"""The models stay those that a user has: the bundled ones."""

pytestmark = pytest.mark.slow


class Hub:
    """A model hub on loopback that answers nothing and counts who asks."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Refuse(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


class Repo:
    """A clone with a tiny params.yaml, and the commands of the environment that runs the tests."""

    def __init__(self, path: Path, hub: Hub) -> None:
        self.path, self.hub = path, hub
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_ENDPOINT": hub.url,
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.org",
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        assert self.hub.asked == [], command
        return done.stdout + done.stderr

    def json(self, name: str) -> dict[str, float]:
        return json.loads((self.path / "metrics" / f"{name}.json").read_text())

    def tracked_metrics(self) -> dict[str, bytes]:
        files = (self.path / "metrics").iterdir()
        return {file.name: file.read_bytes() for file in files if file.name != "timing.json"}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Repo:
    """A committed tiny repository whose pipeline has run once."""
    path = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.split("\n"):
        if name and (ROOT / name).is_file() and not name.startswith(("metrics/", "report/", "tests/")):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
    (path / "dvc.lock").unlink(missing_ok=True)
    change(path / "params.yaml", **TINY)
    repo = Repo(path, hub)
    repo.run("git", "init", "-q")
    repo.output = repo.run("dvc", "repro")
    repo.run("git", "add", "-A")
    repo.run("git", "commit", "-qm", "a run")
    return repo


def test_repro_ends_with_the_result_table_and_lets_no_library_chatter_through(repo: Repo) -> None:
    lines = repo.output.splitlines()
    assert any("Results on" in line for line in lines[-30:])
    for stage in ("prepare", "static", "biencoder", "mine", "train", "score", "evaluate", "report"):
        assert any(line.startswith(f"{stage}:") for line in lines), stage
    for noise in ("Warning", "Loading weights", "example/s", "Traceback"):
        assert noise not in repo.output


def test_no_output_that_dvc_keeps_is_in_git(repo: Repo) -> None:
    stages = yaml.safe_load((repo.path / "dvc.yaml").read_text())["stages"].values()
    outs = [out for stage in stages for out in stage.get("do", stage)["outs"] if isinstance(out, str)]
    kept = [out.split("${")[0] for out in outs]
    assert "data/prepared" in kept
    tracked = repo.run("git", "ls-files").split()
    assert [name for name in tracked if name.startswith(tuple(kept)) and not name.endswith(".gitignore")] == []


def test_changed_byte_of_the_source_runs_prepare_again_and_the_same_bytes_do_not(repo: Repo) -> None:
    path = repo.path / "data" / "raw" / "README.md"
    before = path.read_bytes()
    assert "Running stage" not in repo.run("dvc", "repro", "--dry")
    path.write_bytes(before.swapcase())
    assert "Running stage 'prepare'" in repo.run("dvc", "repro", "--dry")
    path.write_bytes(before)
    assert "Running stage" not in repo.run("dvc", "repro", "--dry")


def test_every_promised_figure_is_in_the_metrics(repo: Repo) -> None:
    figures = repo.json("evaluate")
    others = ("bm25", "retriever", "untouched_reranker", "fusion_without_cross_encoder")
    wanted = {"queries", "mrr@10", "map", "recall@30", "ndcg@10_all_positives", "ndcg@10_perfect"}
    wanted |= {"ndcg@10", "ndcg@10_cross_encoder", *(f"ndcg@10_{other}" for other in others)}
    for other in others:
        wanted |= {f"gain_vs_{other}", f"gain_vs_{other}_low", f"gain_vs_{other}_high", f"p_vs_{other}"}
    wanted |= {"tuning_gain", "tuning_low", "tuning_high", "tuning_p"}
    assert wanted <= set(figures)
    assert {"dev_ndcg@10", "dev_ndcg@10_before", "dev_ndcg@10_best"} <= set(repo.json("train"))
    reviewed = {(file, name) for name, (file, _) in HEADLINE.items()}
    assert [name for file, name in reviewed if name not in repo.json(file)] == []
    assert figures["queries"] == repo.json("prepare")["queries_test"]
    assert figures["ndcg@10"] <= figures["ndcg@10_perfect"] < 1
    assert figures["ndcg@10_bm25"] < figures["ndcg@10_all_positives"]
    assert figures["tuning_gain"] == pytest.approx(
        figures["ndcg@10_cross_encoder"] - figures["ndcg@10_untouched_reranker"]
    )


def test_each_source_is_judged_by_itself_too(repo: Repo) -> None:
    figures = repo.json("evaluate")
    sizes = [figures[f"queries_of_{source}"] for source in ("docs", "web")]
    assert sum(sizes) == figures["queries"]
    means = [figures[f"ndcg@10_of_{source}"] for source in ("docs", "web")]
    together = sum(size * mean for size, mean in zip(sizes, means, strict=True)) / sum(sizes)
    assert together == pytest.approx(figures["ndcg@10"])


def test_a_second_repro_runs_nothing(repo: Repo) -> None:
    output = repo.run("dvc", "repro")
    assert "Running stage" not in output
    assert "up to date" in output


def test_two_runs_give_the_same_bytes(repo: Repo) -> None:
    before = repo.tracked_metrics()
    repo.run("dvc", "repro", "--force")
    assert repo.tracked_metrics() == before


def test_exp_run_brings_the_learning_rate_to_the_optimiser_and_repeats_no_earlier_stage(repo: Repo) -> None:
    output = repo.run("dvc", "exp", "run", "-S", "lr=2e-5", "--name", "slower")
    ran = {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}
    assert ran == {"train", "score@cross_encoder", "evaluate", "report"}, output
    assert repo.json("train")["learning_rate"] == 2e-05
    shown = list(csv.DictReader(StringIO(repo.run("dvc", "exp", "show", "--csv"))))
    rates = {row["Experiment"]: float(row["lr"]) for row in shown if row["Experiment"] == "slower"}
    assert rates == {"slower": 2e-05}
    assert all(row["ndcg@10"] for row in shown)


def test_the_model_is_used_as_the_readme_says(repo: Repo) -> None:
    program = (
        "from reranker import Reranker\n"
        "passages = ['Apples are red.', 'Find the shortest path.']\n"
        "ranked = Reranker('models/reranker').rank('shortest path', passages)\n"
        "from sentence_transformers import CrossEncoder\n"
        "alone = CrossEncoder('models/reranker', local_files_only=True)\n"
        "scores = alone.predict([('shortest path', passages[1])])\n"
        "print(ranked[0].passage, float(scores[0]))\n"
    )
    lines = repo.run(sys.executable, "-c", program).splitlines()
    assert any(line.startswith("Find the shortest path. ") for line in lines)
