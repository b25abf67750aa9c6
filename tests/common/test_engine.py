"""Tests that a Ray cluster gives the bytes of one process. Its two machines are processes here, and one may be lost."""

import fcntl
import importlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sentence_transformers import CrossEncoder

from comparable import Comparable
from losable import until_lost
from reranker.common.artifacts import PATHS
from reranker.common.engine import LOCAL, Engine, OnRay, start
from reranker.common.errors import UserError
from reranker.evaluation.system_schema import BiencoderSystem, CrossEncoderSystem, RetrieverSystem, StaticSystem, System
from reranker.evaluation.systems import Settings, open_system, shipped
from reranker.inference import scoring
from reranker.inference.backends import use_backend
from reranker.inference.compute import PLAIN, Compute
from reranker.inference.loading import load_biencoder, load_static
from reranker.inference.scoring import embed, score_pairs
from reranker.mining.embedding_cache import Cache
from reranker.retrieval import bm25, index
from reranker.retrieval.retrievers import Dense
from settings import change
from stages import mine

WORDS = ["sort", "order", "list", "numbers", "read", "csv", "file", "table", "find", "path", "graph", "red", "apples"]
ROOT = Path(__file__).resolve().parents[2]


def sentences(number: int) -> list[str]:
    """Different texts of 2 to 25 words."""
    random = np.random.default_rng(1)
    return [f"{place} " + " ".join(random.choice(WORDS, random.integers(1, 25))) for place in range(number)]


class Machines:
    """A Ray cluster and an engine on it."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = self.cluster.address
        self.engine: Engine = start("ray")

    def stop(self) -> None:
        import ray

        session = self.cluster.head_node.get_session_dir_path()
        ray.shutdown()
        self.cluster.shutdown()
        shutil.rmtree(session, ignore_errors=True)  # Ray leaves it in the temporary folder


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT / "tests" / "helpers"))  # for losable
        threads = scoring.torch.get_num_threads()
        scoring.torch.set_num_threads(1)
        machines = Machines()
        yield machines
        machines.stop()
        scoring.torch.set_num_threads(threads)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make many tasks of a few texts."""
    monkeypatch.setattr(scoring, "BATCH", 4)
    monkeypatch.setattr(scoring, "LENGTHS", 16)
    monkeypatch.setattr(scoring, "TOGETHER", 3)
    monkeypatch.setattr("reranker.retrieval.retrievers.QUERIES", 16)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_vectors_scores_and_rankings_have_the_bytes_of_one_process(
    machines: Machines, biencoder: str, cross_encoder: str, tmp_path: Path
):
    texts = sentences(200)
    model = load_biencoder(biencoder, 32)
    compiled = load_biencoder(biencoder, 32)
    use_backend(compiled, "openvino", "float32")
    for each in (model, compiled):
        expected = embed(each, texts, label="", prompt="find ")
        np.testing.assert_array_equal(
            embed(each, texts, label="", prompt="find ", compute=Compute(engine=machines.engine)), expected
        )
    vectors = Cache(tmp_path / "cluster").embed(model, texts, label="", compute=Compute(engine=machines.engine))
    np.testing.assert_array_equal(vectors, Cache(tmp_path / "here").embed(model, texts, label=""))
    assert shards(tmp_path / "cluster") == shards(tmp_path / "here")

    reranker = CrossEncoder(cross_encoder)
    for precision in ("float32", "bfloat16"):
        scores = score_pairs(reranker, texts, texts[::-1], label="", compute=Compute(precision))
        result = score_pairs(reranker, texts, texts[::-1], label="", compute=Compute(precision, engine=machines.engine))
        np.testing.assert_array_equal(result, scores)

    passages = np.random.default_rng(2).normal(size=(1500, 32)).astype(np.float32)
    for name in ("flat", "ivf_pq", "hnsw"):
        lookup = index.build(name, passages, queries=len(vectors))
        expected, result = (
            Dense(passages, vectors, lookup, engine).search(np.arange(len(vectors)), 10, label="")
            for engine in (LOCAL, machines.engine)
        )
        np.testing.assert_array_equal(result.positions, expected.positions)
        np.testing.assert_array_equal(result.scores, expected.scores)


@pytest.fixture
def minable(tmp_path: Path, biencoder: str, cross_encoder: str) -> Path:
    """A folder with real docstrings, which mine ranks by words and two models and scores with a rescorer."""
    folder = tmp_path / "local"
    shutil.copytree(biencoder, folder / "models" / "biencoder")
    load_static("bundled/static-256").save_pretrained(str(folder / "models" / "static"), create_model_card=False)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "marked.csv", folder / "data")
    shutil.copy(ROOT / "params.yaml", folder)
    values = {
        "sources": {"docs": {"packages": ["networkx"]}},
        "dev_share": 0.02,
        "test_share": 0.03,
        "retriever": ["bm25", "bundled/static-256", biencoder],
        "rescorer": cross_encoder,
        "biencoder.max_length": 32,
        "train_queries": 40,
    }
    change(folder / "params.yaml", **values)
    command = [sys.executable, "-m", "stages.prepare"]  # it forks, which is not safe here with the threads of Ray
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    return folder


def run_mine(folder: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Run the stage and return the files that it writes, except for times."""
    monkeypatch.chdir(folder)
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(text.replace("engine: local", f"engine: {engine}"), encoding="utf-8")
    mine.main([])
    paths = [*(folder / "data" / "mined").iterdir(), folder / "metrics" / "mine.json"]
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.slow
@pytest.mark.usefixtures("machines", "small")
def test_stage_mine_finds_on_the_cluster_what_it_finds_in_one_process(
    minable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    there = tmp_path / "cluster"
    shutil.copytree(minable, there)
    computed: list[str] = []
    run = OnRay.map

    def watched(self: OnRay, work: Any, resource: object, items: Iterable[Any], *, together: int) -> Iterator[Any]:
        computed.append(type(resource).__name__)
        return run(self, work, resource, items, together=together)

    monkeypatch.setattr(OnRay, "map", watched)
    local = run_mine(minable, "local", monkeypatch)
    assert computed == []
    assert run_mine(there, "ray", monkeypatch) == local
    assert {*computed} > {"SentenceTransformer", "CrossEncoder"}  # and an index
    rows = pd.read_parquet(there / "data" / "mined" / "negatives.parquet")
    assert rows["query_id"].nunique() == 40
    assert set(rows["kind"]) == {"positive", "hard"}
    assert set(pd.read_parquet(there / "data" / "mined" / "candidates.parquet")["split"]) == {"dev", "test"}


class CountingEngine:
    """An engine that counts the calls of `map`."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.maps = engine, 0

    def map(self, work: Any, resource: Any, items: Iterable[Any], *, together: int) -> Iterator[Any]:
        self.maps += 1
        return self.engine.map(work, resource, items, together=together)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_systems_that_are_compared_have_the_bytes_of_one_process(
    machines: Machines,
    encoder: str,
    biencoder: str,
    cross_encoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    Comparable(tmp_path, encoder, biencoder, cross_encoder)
    monkeypatch.chdir(tmp_path)
    texts = sentences(100)
    pairs = pd.DataFrame({"query_id": "q", "query": texts, "passage": texts[::-1], "retrieved": True})
    settings = Settings(bm25.statistics(texts), 32, None, None, PLAIN)
    systems: dict[str, tuple[System, int]] = {
        "retriever": (RetrieverSystem(retriever=["bm25", "models/static"]), 1),
        "biencoder": (BiencoderSystem(biencoder=biencoder), 2),
        "static": (StaticSystem(static="models/static"), 1),
        "cross_encoder": (CrossEncoderSystem(cross_encoder=cross_encoder), 2),
    }
    for name, (system, maps) in systems.items():
        engine = CountingEngine(machines.engine)
        elsewhere = settings._replace(compute=Compute(engine=engine))
        with open_system(system, settings, name) as here, open_system(system, elsewhere, name) as there:
            np.testing.assert_array_equal(there.scores(pairs), here.scores(pairs), err_msg=name)
        assert engine.maps == maps, name
    engine = CountingEngine(machines.engine)
    result = shipped(PATHS.reranker, settings._replace(compute=Compute(engine=engine))).scores(pairs)
    np.testing.assert_array_equal(result, shipped(PATHS.reranker, settings).scores(pairs))
    assert engine.maps == 5  # lengths and passes of both transformers, the static embedding


def shards(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.glob("*/*.npy"))


@pytest.mark.slow
def test_vector_that_is_not_finite_is_the_same_line_as_here(machines: Machines, biencoder: str):
    model = load_biencoder(biencoder, 32)
    model[0].model.embeddings.word_embeddings.weight.data[:] = np.nan
    with pytest.raises(UserError) as here:
        embed(model, ["sort a list"], label="mine")
    with pytest.raises(UserError) as there:
        embed(model, ["sort a list"], label="mine", compute=Compute(engine=machines.engine))
    assert str(there.value) == str(here.value)


@pytest.mark.slow
def test_machine_that_lacks_a_package_is_one_line(machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "only_here.py").write_text("def same(resource, items):\n    yield from items\n")
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("only_here").same
    message = r"^params.yaml: execution.engine: a machine .* cannot run this \(.*No module named 'only_here'\); install"
    with pytest.raises(UserError, match=message):
        list(machines.engine.map(work, Path, [1], together=1))


@pytest.mark.slow
def test_nothing_is_lost_or_twice_when_a_machine_dies(machines: Machines, biencoder: str, tmp_path: Path):
    model, texts = load_biencoder(biencoder, 32), sentences(120)
    parts = [texts[start : start + 4] for start in range(0, len(texts), 4)]
    expected = list(scoring._vectors(model, parts, label="", prompt="", precision="float32"))
    pipe, lock = tmp_path / "pipe", tmp_path / "lock"
    os.mkfifo(pipe)
    lost = machines.cluster.add_node(num_cpus=1)
    messages: list[bytes] = []
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def kill_when_it_has_started() -> None:
            messages.append(pipe.read_bytes())
            machines.cluster.remove_node(lost, allow_graceful=False)
            fcntl.flock(file, fcntl.LOCK_UN)

        killer = threading.Thread(target=kill_when_it_has_started, daemon=True)
        killer.start()
        work = partial(until_lost, doomed=lost.node_id, pipe=pipe, lock=lock)
        result = list(machines.engine.map(work, model, parts, together=1))
        killer.join()
    assert messages == [b"started"]
    assert len(result) == len(expected)
    np.testing.assert_array_equal(np.concatenate(result), np.concatenate(expected))


def test_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"^params.yaml: execution.engine: no Ray cluster answers at 127.0.0.1:9 \(.*ray start"
    ):
        start("ray")


@pytest.mark.parametrize("address", ["", "auto", "127.0.0.1"])
def test_address_without_a_port_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        UserError, match=rf"^params.yaml: execution.engine: RAY_ADDRESS is '{address}'; start a cluster with"
    ):
        start("ray")


def test_missing_ray_is_one_line_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^params.yaml: execution.engine: Ray is not installed; run .*pip install ray"):
        start("ray")


def test_this_process_does_without_ray():
    code = (
        "import sys, stages.mine, stages.score; from reranker.common.engine import start; start('local'); "
        "assert 'ray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
