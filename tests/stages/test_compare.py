"""The stages of compare/ as DVC starts them, on tiny models."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sentence_transformers import CrossEncoder, SentenceTransformer

from comparable import CANDIDATES, PASSAGES, QUERIES, RIGHT, ROOT, TOP_K, Comparable, make_reranker, make_static
from reranker.common.errors import UserError
from reranker.common.model_files import fingerprint
from reranker.common.progress import run_stage
from reranker.evaluation.comparison import MODES
from reranker.evaluation.costs import COST_COLUMNS
from reranker.evaluation.system_schema import STANDARD_SYSTEMS
from reranker.evaluation.systems import reciprocal_rank_fusion, weighted_z_scores
from reranker.inference.compute import Compute
from reranker.inference.export import FILES, ExportedModel, export
from reranker.inference.loading import keep_first_layers, load_retriever
from reranker.inference.reranker import Reranker
from reranker.inference.scoring import pair_cosines, score_pairs
from reranker.retrieval import bm25
from stages import biencoder as biencoder_stage
from stages.compare import costs as costs_stage
from stages.compare import systems as systems_stage
from trainable import Trainable

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, encoder: str, biencoder: str, cross_encoder: str) -> Path:
    path = tmp_path_factory.mktemp("made")
    Comparable(path, encoder, biencoder, cross_encoder)
    return path


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comparable:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    place = Comparable.__new__(Comparable)
    place.path = tmp_path
    return place


def pairs() -> pd.DataFrame:
    rows = [(query, passage, True) for query, passages in CANDIDATES.items() for passage in passages]
    table = pd.DataFrame([*rows, ("t2", "p2", False)], columns=["query_id", "passage_id", "retrieved"])
    return table.assign(query=table["query_id"].map(QUERIES), passage=table["passage_id"].map(PASSAGES))


def in_order(scores: dict[tuple[str, str], float]) -> list[float]:
    return [scores[row.query_id, row.passage_id] for row in pairs().itertuples()]


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the stage on stderr, without progress bars of libraries that were imported before it."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "compare: "))]


def test_each_kind_scores_the_candidates_as_its_model_does(place, biencoder, cross_encoder):
    run = place.run_file("".join(f"{query} Q0 {passage} 1 {grade}.5 x\n" for query, passage, grade in RIGHT))
    place.compare(
        systems={
            "words": {"retriever": "bm25"},
            "hybrid": {"retriever": ["bm25", "models/static"]},
            "prompted": {"biencoder": biencoder, "query_prompt": "find ", "max_length": 16},
            "embedding": {"static": "models/static"},
            "whole": {"cross_encoder": cross_encoder},
            "cut": {"cross_encoder": cross_encoder, "num_layers": 1},
            "sum": {"fused": {"words": 1.0, "whole": 0.5, "retriever": 0.25}},
            "standard": {"fused": {"bm25": 1.0, "whole": 0.5}},
            "other": {"run": run},
        },
        baseline="whole",
    )
    assert systems_stage.main([]) == "systems: 16 systems on 3 test queries -> metrics/comparison.csv"
    table = pairs()
    queries, passages = table["query"].tolist(), table["passage"].tolist()
    words = bm25.bm25(bm25.statistics(PASSAGES.values()), queries, passages)
    static = pair_cosines(load_retriever("models/static"), queries, passages, label="")
    model = CrossEncoder(cross_encoder)
    whole = score_pairs(model, queries, passages, label="")
    keep_first_layers(model[0].model, 1)
    prompted = pair_cosines(load_retriever(biencoder), [f"find {query}" for query in queries], passages, label="")
    retriever = pd.read_parquet("data/evaluated/retriever.parquet")["score"].to_numpy()
    parts = {"words": words, "whole": whole, "retriever": retriever}
    expected = {
        "words": words,
        "hybrid": reciprocal_rank_fusion([words, static], table),
        "prompted": prompted,
        "embedding": static,
        "whole": whole,
        "cut": score_pairs(model, queries, passages, label=""),
        "sum": weighted_z_scores(parts, {"words": 1.0, "whole": 0.5, "retriever": 0.25}, table),
        "standard": weighted_z_scores(parts, {"words": 1.0, "whole": 0.5}, table),
    }
    for name, scores in expected.items():
        np.testing.assert_allclose(in_order(place.scores(name)), scores, atol=1e-5, err_msg=name)
    assert len({tuple(np.round(scores, 3)) for scores in expected.values()}) == len(expected)
    table = place.comparison()
    assert list(table.index) == [*STANDARD_SYSTEMS, *expected, "other"]
    kinds = ["bm25", "hybrid", "biencoder", "static", "cross_encoder", "cross_encoder", "fused", "fused", "run"]
    assert table["kind"].tolist()[len(STANDARD_SYSTEMS) :] == kinds
    assert table.loc["other", "ndcg@10"] == pytest.approx(2 / 3)  # t2's relevant passage was not retrieved
    assert table["gain_vs_baseline"].isna().to_dict() == {name: name == "whole" for name in table.index}
    by_query = pd.read_csv("metrics/comparison_per_query.csv")
    assert list(by_query) == ["query_id", *table.index]
    assert by_query["other"].tolist() == [1.0, 1.0, 0.0]
    assert by_query.drop(columns="query_id").mean().to_dict() == pytest.approx(table["ndcg@10"].to_dict())
    assert Path("data/compared/other.trec").read_text().splitlines()[0] == "t0 Q0 p0 1 2.5 other"


def test_bm25_is_measured_on_a_ranking_of_its_own_that_is_as_deep_as_the_candidates(place):
    systems_stage.main([])
    table = pd.read_csv("metrics/comparison.csv")
    assert table.loc[table["system"] == "bm25", "mode"].tolist() == ["retrieved"]
    recall = table[table["mode"] == "retrieved"].set_index("system")["recall@30"]
    assert recall["bm25"] == 1.0  # it has the passage that the first stage missed for t2
    assert recall.drop("bm25").tolist() == pytest.approx([2 / 3] * 6)
    own = pd.read_parquet("data/mined/bm25.parquet")
    own.assign(rank=own["rank"] + TOP_K).to_parquet("data/mined/bm25.parquet")
    systems_stage.main([])
    assert place.comparison().loc["bm25", "recall@30"] == 0.0


def test_failure_of_one_system_leaves_the_others_and_ends_with_an_error(place, cross_encoder, capsys):
    Path(shutil.copytree(cross_encoder, "models/mute"), "tokenizer.json").unlink()
    unknown_query = place.run_file("t0 Q0 p0 1 1.0 x\nt7 Q0 p0 1 1.0 x\n")
    place.compare(
        systems={
            "gone": {"cross_encoder": "models/none"},
            "words": {"retriever": "bm25"},
            "needs": {"fused": {"gone": 1.0, "words": 1.0}},
            "deep": {"cross_encoder": cross_encoder, "num_layers": 9},
            "foreign": {"run": unknown_query},
            "student": {"cross_encoder": "models/students/4"},
            "wrong": {"static": cross_encoder},
            "mute": {"cross_encoder": "models/mute"},
        },
        baseline="gone",
    )
    assert run_stage(systems_stage.main, []) == 1
    *lines, last = said(capsys)
    assert [line.split(": ", 2)[1] for line in lines] == [
        f"systems.{name}" for name in ("gone", "needs", "deep", "foreign", "student", "wrong", "mute")
    ]
    about = dict(line.removeprefix("error: systems.").split(": ", 1) for line in lines)
    assert about["gone"].startswith("params.yaml: model 'models/none' is neither bundled")
    assert about["needs"] == "'gone' has no scores, because it failed"
    assert about["deep"] == "params.yaml: num_layers: 9: the model has 2 layers"
    assert about["foreign"] == "data/runs/other.trec: column query_id: 1 ids are none of the test queries: 't7'"
    assert about["student"].startswith("models/students/4 does not exist: student_layers in compare/params.yaml says")
    assert last.startswith("error: systems: 7 of 8 systems failed (gone, needs, deep, foreign, student, wrong, mute)")
    assert about["mute"] == (
        "model 'models/mute' could not be loaded (its tokenizer has no words: a file such as tokenizer.json is "
        "missing); name a folder or a Hub id that holds a whole model"
    )
    table = place.comparison()
    assert list(table.index) == [*STANDARD_SYSTEMS, "words"]
    assert table["gain_vs_baseline"].isna().all()
    assert table["gain_vs_best"].notna().sum() == 7
    assert sorted(path.name for path in Path("data/compared").iterdir()) == ["words.parquet", "words.trec"]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The systems whose models are loaded, in their order."""
    opened: list[str] = []

    def note(system, settings, label):
        opened.append(label.removeprefix("compare "))
        return original(system, settings, label)

    original = systems_stage.open_system
    monkeypatch.setattr(systems_stage, "open_system", note)
    return opened


def test_next_run_computes_what_failed_or_changed_and_nothing_else(place, cross_encoder, computed):
    shutil.copytree(cross_encoder, "models/mine")
    systems = {
        "words": {"retriever": "bm25"},
        "mine": {"cross_encoder": "models/mine"},
        "late": {"cross_encoder": "models/late"},
    }
    place.compare(systems=systems)
    with pytest.raises(UserError, match=r"1 of 3 systems failed \(late\)"):
        systems_stage.main([])
    assert computed == ["words", "mine", "late"]
    first = place.scores("mine")
    shutil.copytree(cross_encoder, "models/late")
    computed.clear()
    systems_stage.main([])
    assert computed == ["late"]
    assert place.scores("mine") == first

    computed.clear()
    model = CrossEncoder("models/mine")
    keep_first_layers(model[0].model, 1)
    model.save_pretrained("models/mine", create_model_card=False)
    systems_stage.main([])
    assert computed == ["mine"]
    assert place.scores("mine") != first

    computed.clear()
    place.compare(systems={**systems, "late": {"cross_encoder": "models/late", "max_length": 16}})
    systems_stage.main([])
    assert computed == ["late"]

    computed.clear()
    place.tables({**QUERIES, "t1": "write the table"})
    systems_stage.main([])
    assert computed == ["words", "mine", "late"]

    computed.clear()
    place.compare(systems={"words": systems["words"]}, judged_only=True)
    systems_stage.main([])
    assert computed == []
    assert sorted(path.stem for path in Path("data/compared").glob("*.parquet")) == ["words"]


def test_dvc_leaves_cached_scores_to_the_next_run(repository):
    body = yaml.safe_load((ROOT / "compare" / "dvc.yaml").read_text())["stages"]["systems"]
    params = [{"compare/params.yaml": ["compare.systems"]}]
    stage = {"cmd": f"PYTHONPATH={ROOT} {body['cmd']}", "wdir": "..", "params": params, "outs": body["outs"]}
    Path("compare/dvc.yaml").write_text(yaml.safe_dump({"stages": {"systems": stage}}))
    systems = {"words": {"retriever": "bm25"}, "late": {"cross_encoder": "models/late"}}
    repository.compare(systems=systems)
    with pytest.raises(AssertionError, match=r"systems\.late"):
        shell(repository.path, "dvc", "repro", "-q", "--single-item", "compare/dvc.yaml:systems")
    before = Path("data/compared/words.parquet").stat().st_mtime_ns
    shutil.copytree("models/reranker", "models/late")
    shell(repository.path, "dvc", "repro", "-q", "--single-item", "compare/dvc.yaml:systems")
    assert Path("data/compared/words.parquet").stat().st_mtime_ns == before
    assert list(repository.comparison().index) == [*STANDARD_SYSTEMS, *systems]


def test_damaged_scores_are_computed_again(place, computed):
    place.compare(systems={"words": {"retriever": "bm25"}})
    systems_stage.main([])
    first = place.scores("words")
    Path("data/compared/words.parquet").write_bytes(b"PAR1")
    systems_stage.main([])
    assert computed == ["words", "words"]
    assert place.scores("words") == first


@pytest.fixture
def exported(place: Comparable, cross_encoder: str) -> dict[str, str]:
    """Export the reranker of the workspace, and return the folders by backend."""
    folders = {backend: Path("models/export") / backend for backend in FILES}
    for backend, folder in folders.items():
        folder.mkdir(parents=True)
        export(CrossEncoder(cross_encoder), backend, folder, fingerprint("models/reranker"))
    return {backend: str(folder) for backend, folder in folders.items()}


def test_exported_folders_are_scored_by_their_own_graphs_in_both_modes_and_timed(
    place, exported, computed, cross_encoder, capsys
):
    place.set(backend="onnx-int8")
    place.compare(systems={name: {"cross_encoder": folder} for name, folder in exported.items()})
    systems_stage.main([])
    assert computed == list(exported)
    table = pairs()
    queries, passages = table["query"].tolist(), table["passage"].tolist()
    for name, folder in exported.items():
        wanted = ExportedModel(Path(folder), "float32").scores(queries, passages)
        np.testing.assert_allclose(in_order(place.scores(name)), wanted, atol=1e-6, err_msg=name)
    whole = score_pairs(CrossEncoder(cross_encoder), queries, passages, label="")
    assert 0 < np.abs(in_order(place.scores("openvino-int8")) - whole).max() < 0.1 * np.ptp(whole)
    every = pd.read_csv("metrics/comparison.csv").set_index(["system", "mode"])
    assert {mode for system, mode in every.index if system == "openvino"} == {*MODES}
    assert place.comparison().loc[list(exported), "kind"].tolist() == ["cross_encoder"] * 3

    computed.clear()
    systems_stage.main([])
    assert computed == []
    with Path(exported["onnx-int8"], "README.md").open("w") as card:
        card.write("another")
    systems_stage.main([])
    assert computed == ["onnx-int8"]
    assert said(capsys) == []

    costs_stage.main([])
    table = pd.read_csv("metrics/costs.csv").set_index("system")
    assert table.loc[list(exported), "parameters"].tolist() == [table.loc["cross_encoder", "parameters"]] * 3
    for name, folder in exported.items():
        graph = Path(folder, FILES[name])
        size = sum(path.stat().st_size for path in graph.parent.iterdir())
        assert table.loc[name, "megabytes"] == pytest.approx(size / 1e6)
    assert (table.loc[list(exported), "p50_ms_30"] > 0).all()


def test_exported_folder_that_is_missing_cut_short_or_changed_is_one_line_and_the_others_stay(place, exported, capsys):
    cut = Path(exported["openvino"], FILES["openvino"]).with_suffix(".bin")
    cut.write_bytes(cut.read_bytes()[:100])
    shutil.copytree("models/export/onnx-int8", "models/export/without_graph")
    Path("models/export/without_graph", FILES["onnx-int8"]).unlink()
    shutil.copytree("models/export/onnx-int8", "models/export/without_words")
    Path("models/export/without_words/tokenizer.json").unlink()
    systems = {
        "gone": {"cross_encoder": "models/export/int4"},
        "cut": {"cross_encoder": exported["openvino"]},
        "graphless": {"cross_encoder": "models/export/without_graph"},
        "wordless": {"cross_encoder": "models/export/without_words"},
        "shallow": {"cross_encoder": exported["openvino-int8"], "num_layers": 1},
        "short": {"cross_encoder": exported["openvino-int8"], "max_length": 16},
        "int8": {"cross_encoder": exported["onnx-int8"]},
    }
    place.compare(systems=systems)
    for stage in (systems_stage, costs_stage):
        assert run_stage(stage.main, []) == 1
        *lines, last = said(capsys)
        about = dict(line.removeprefix("error: systems.").split(": ", 1) for line in lines)
        assert about["gone"] == (
            "models/export/int4 does not exist: run `dvc repro export/dvc.yaml`, or name a folder of models/export"
        )
        assert re.match(r"model '.*' could not be loaded \(.*\); run `python -m stages.export`$", about["cut"])
        assert about["wordless"] == (
            "model 'models/export/without_words' is incomplete: it has no tokenizer.json; run `python -m stages.export`"
        )
        assert about["graphless"] == (
            "model 'models/export/without_graph' is not an exported model; run `python -m stages.export`"
        )
        for name, key in (("shallow", "num_layers"), ("short", "max_length")):
            assert about[name].endswith(f"has the {key} that it was exported with; leave {key} out")
        assert list(about) == list(systems)[:-1]
        assert "6 of 7 systems failed" in last or "6 systems failed" in last
    assert list(place.comparison().index) == [*STANDARD_SYSTEMS, "int8"]
    assert pd.read_csv("metrics/costs.csv")["system"].tolist() == [*STANDARD_SYSTEMS, "int8"]


def test_exported_folder_of_another_reranker_is_a_warning_in_every_run(place, exported, computed, capsys):
    place.compare(systems={"int8": {"cross_encoder": exported["openvino-int8"]}})
    Path("models/reranker/fusion.json").write_text(Path("models/reranker/fusion.json").read_text() + "\n")
    for _ in range(2):
        systems_stage.main([])
        assert said(capsys) == [
            "compare: models/export/openvino-int8 was exported from another models/reranker; "
            "run `dvc repro export/dvc.yaml`"
        ]
    assert computed == ["int8"]


def test_engine_of_params_computes(place, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    place.set(engine="ray")
    place.compare(systems={"words": {"retriever": "bm25"}})
    with pytest.raises(UserError, match=r"params\.yaml: execution\.engine: RAY_ADDRESS is ''"):
        systems_stage.main([])


def test_params_without_systems_are_fine_and_so_is_a_single_query(place):
    place.tables({"t0": QUERIES["t0"]})
    assert systems_stage.main([]) == "systems: 7 systems on 1 test queries -> metrics/comparison.csv"
    table = place.comparison()
    assert table["queries"].tolist() == [1] * 7
    assert table["ndcg@10_low"].tolist() == table["ndcg@10_high"].tolist() == table["ndcg@10"].tolist()
    assert table["detectable"].isna().all()
    assert list(Path("data/compared").iterdir()) == []


def test_without_test_queries_there_is_nothing_to_compare_or_time(place):
    place.tables({})
    for stage in (systems_stage, costs_stage):
        with pytest.raises(UserError, match=r"candidates\.parquet: has no test query .*; raise test_share"):
            stage.main([])


def test_scores_of_evaluate_that_are_missing_are_named(place):
    Path("data/scored/untouched_reranker.parquet").unlink()
    missing = r"untouched_reranker\.parquet does not exist: .*`dvc repro score@untouched_reranker`"
    with pytest.raises(UserError, match=missing):
        systems_stage.main([])


def shell(folder: Path, *command: str) -> None:
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, f"{command}: {done.stderr}"


TRAIN = """
import json, re, shutil
seed = int(re.search("^seed: (.+)", open("params.yaml").read(), re.M)[1])
shutil.copytree("made", "models/reranker")
weights = json.load(open("made/fusion.json"))
weights["reranker"]["bm25"] = seed
json.dump(weights, open("models/reranker/fusion.json", "w"))
shutil.copy("asked.parquet", "data/prepared/queries.parquet")
"""
STAGES = """
stages:
  train:
    cmd: python train.py
    deps: [train.py, asked.parquet]
    params: [seed]
    outs: [models/reranker, data/prepared/queries.parquet]
"""


@pytest.fixture(scope="module")
def revisions(made: Path, tmp_path_factory: pytest.TempPathFactory, encoder: str, cross_encoder: str) -> Path:
    """A repository whose first commit has no model, with a run in the second one and two experiments."""
    path = tmp_path_factory.mktemp("revisions") / "repository"
    shutil.copytree(made, path)
    shutil.rmtree(path / "models" / "reranker")
    make_static(encoder, path / "static")
    make_reranker(path / "made", cross_encoder, path / "static", path / "models" / "biencoder")
    (path / "data" / "prepared" / "queries.parquet").rename(path / "asked.parquet")
    (path / "train.py").write_text(TRAIN)
    (path / ".gitignore").write_text("/made\n/static\n/models/static\n/models/biencoder\n")
    for command in (
        "git init -q -b main", "git config user.email a@example.org", "git config user.name a", "dvc init -q",
        "dvc config core.analytics false", "git add -A", "git commit -qm start", "git tag start",
    ):  # fmt: skip
        shell(path, *command.split())
    (path / "dvc.yaml").write_text(STAGES)
    for command in ("dvc repro -q", "git add -A", "git commit -qm run"):
        shell(path, *command.split())
    for seed in (13, 14):
        shell(path, "dvc", "exp", "run", "-q", "--name", f"seed-{seed}", "-S", f"seed={seed}")
        shell(path, "git", "checkout", "-q", ".")
    shell(path, "dvc", "checkout", "-q")
    return path


@pytest.fixture
def repository(revisions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comparable:
    shutil.copytree(revisions, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    place = Comparable.__new__(Comparable)
    place.path = tmp_path / "copy"
    return place


def test_experiment_is_that_revisions_reranker_or_its_cross_encoder_and_a_list_is_repeats(repository, capsys):
    repository.compare(
        systems={
            "one": {"experiment": "seed-13"},
            "alone": {"experiment": "main", "model": "cross_encoder"},
            "seeds": {"experiment": ["main", "seed-13", "seed-14"]},
        }
    )
    systems_stage.main([])
    assert said(capsys) == []
    table = pairs()
    texts = table["query"].tolist(), table["passage"].tolist()
    words = bm25.bm25(bm25.statistics(PASSAGES.values()), *texts)
    here = Reranker("models/reranker", Compute()).scores(*texts)
    np.testing.assert_allclose(in_order(repository.scores("seeds@1")), here, atol=1e-5)
    for name, more in (("one", 1), ("seeds@2", 1), ("seeds@3", 2)):  # the fixture weighs BM25 by the seed, here 12
        np.testing.assert_allclose(in_order(repository.scores(name)), here + more * words, atol=1e-4)
    alone = score_pairs(CrossEncoder("models/reranker"), *texts, label="")
    np.testing.assert_allclose(in_order(repository.scores("alone")), alone, atol=1e-5)
    table = repository.comparison()
    assert table["kind"].tolist()[len(STANDARD_SYSTEMS) :] == ["fused", "cross_encoder", "fused"]
    assert table["ndcg@10_sd_of_repeats"].notna().to_dict() == {name: name == "seeds" for name in table.index}
    assert not Path("data/compared/seeds.parquet").exists()


def test_revision_that_is_unknown_or_has_no_model_or_whose_model_is_nowhere_is_named(repository, capsys):
    for folder in Path(".dvc/cache/files/md5").iterdir():
        shutil.rmtree(folder)
    systems = {"unknown": "seed-99", "without": "start", "nowhere": "seed-14"}
    repository.compare(systems={name: {"experiment": revision} for name, revision in systems.items()})
    with pytest.raises(UserError, match="3 of 3 systems failed"):
        systems_stage.main([])
    lines = dict(line.removeprefix("error: systems.").split(": ", 1) for line in said(capsys))
    assert lines["unknown"].startswith("seed-99: git knows no such revision and DVC no such experiment")
    assert lines["without"].startswith("start: it has no dvc.lock; name a commit that has the results of `dvc repro`")
    assert lines["nowhere"].startswith("experiment 'seed-14': models/reranker is in no cache and no remote")
    assert list(repository.comparison().index) == list(STANDARD_SYSTEMS)


def test_model_is_fetched_from_a_remote_and_other_queries_are_a_warning(repository, tmp_path, capsys):
    shell(repository.path, "dvc", "remote", "add", "-q", "-d", "far", str(tmp_path / "far"))
    shell(repository.path, "dvc", "push", "-q", "--all-commits")
    shell(repository.path, "git", "tag", "first")
    for folder in Path(".dvc/cache/files/md5").iterdir():
        shutil.rmtree(folder)
    repository.tables({**QUERIES, "t1": "write the table"})
    repository.compare(systems={"one": {"experiment": "first"}})
    systems_stage.main([])
    assert said(capsys) == [
        "compare: experiment 'first' has other queries or splits: it may have been trained on "
        "some of these test queries"
    ]
    assert len(repository.scores("one")) == 13


def test_costs_are_of_every_system_that_can_score_a_query(place, cross_encoder):
    run = place.run_file("t0 Q0 p0 1 1.0 x\n")
    place.compare(
        systems={
            "hybrid": {"retriever": ["bm25", "models/static"]},
            "cut": {"cross_encoder": cross_encoder, "num_layers": 1},
            "sum": {"fused": {"cut": 1.0, "hybrid": 0.5}},
            "other": {"run": run},
            "with_other": {"fused": {"cut": 1.0, "other": 0.5}},
        },
        usd_per_hour=3.6,
    )
    assert costs_stage.main([]).startswith("costs: 10 systems, at most 3 queries each")
    table = pd.read_csv("metrics/costs.csv")
    assert tuple(table) == COST_COLUMNS
    table = table.set_index("system")
    assert list(table.index) == [*STANDARD_SYSTEMS, "hybrid", "cut", "sum"]
    sizes = table["parameters"].to_dict()
    static, biencoder = sizes["hybrid"], sizes["tuned_biencoder"]
    assert sizes["bm25"] == 0
    assert 0 < static < biencoder
    assert sizes["fusion_without_cross_encoder"] == sizes["retriever"] == static + biencoder
    assert sizes["untouched_reranker"] == sizes["cross_encoder"] == sizes["reranker"] - static - biencoder
    assert sizes["cut"] < sizes["cross_encoder"]
    assert sizes["sum"] == sizes["cut"] + static
    stored = table["megabytes"].to_dict()
    files = {name: Path("models", name, "model.safetensors") for name in ("static", "biencoder")}
    of_static, of_biencoder = (file.stat().st_size / 1e6 for file in files.values())
    assert (stored["hybrid"], stored["tuned_biencoder"]) == pytest.approx((of_static, of_biencoder))
    assert stored["reranker"] == pytest.approx(stored["cross_encoder"] + of_static + of_biencoder)
    assert table.loc["cut", "megabytes"] == pytest.approx(4 * sizes["cut"] / 1e6)
    assert (table.drop(columns=["parameters", "megabytes"]) > 0).all(axis=None)


def test_failure_of_one_system_leaves_the_costs_of_the_others(place, capsys):
    place.compare(systems={"gone": {"cross_encoder": "models/none"}, "words": {"retriever": "bm25"}})
    with pytest.raises(UserError, match=r"costs: 1 systems failed \(gone\)"):
        costs_stage.main([])
    (line,) = said(capsys)
    assert line.startswith("error: systems.gone: params.yaml: model 'models/none'")
    assert pd.read_csv("metrics/costs.csv")["system"].tolist() == [*STANDARD_SYSTEMS, "words"]


def test_control_is_tuned_on_so_many_queries_and_leaves_the_first_stage_alone(
    tmp_path: Path, biencoder: str, monkeypatch: pytest.MonkeyPatch
):
    settings = {"base_model": biencoder, "batch_size": 4, "max_length": 24, "train_max_length": 16, "lr": 0.001}
    place = Trainable(tmp_path, biencoder, 32, sources=("pydocs",))
    place.set(**{f"biencoder.{key}": value for key, value in settings.items()})
    monkeypatch.chdir(place.path)
    texts = ["sort a list", "green apples"]
    vectors = []
    for queries in (16, 40):  # there are 32, so the first eight are used again
        line = biencoder_stage.main(["--control", str(queries)])
        assert line.startswith(f"control: bi-encoder tuned on {queries} queries in ")
        tuned = SentenceTransformer("models/control")
        assert tuned.max_seq_length == 24
        vectors.append(tuned.encode(texts))
    untuned = SentenceTransformer(biencoder).encode(texts)
    assert not np.allclose(vectors[0], untuned, atol=1e-3)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)
    assert list(Path("models/biencoder").iterdir()) == []
    assert not Path(".checkpoints/control").exists()
    assert "control_training_seconds" in json.loads(Path("metrics/timing.json").read_text())
    place.set(**{"biencoder.max_length": 65})
    with pytest.raises(UserError, match=r"biencoder\.max_length: 65 is more than the 64 tokens"):
        biencoder_stage.main(["--control", "16"])
    for arguments in (["--control"], ["--control", "0"], ["--control", "-1"], ["--control", "x"], ["16"]):
        with pytest.raises(UserError, match="the only argument is --control QUERIES"):
            biencoder_stage.main(arguments)
