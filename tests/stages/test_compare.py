"""The stages compare and costs as DVC starts them, on tiny models."""

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
from sentence_transformers import CrossEncoder

from comparable import CANDIDATES, PASSAGES, QUERIES, RIGHT, ROOT, Comparable, make_reranker, make_static
from reranker.common.errors import UserError
from reranker.common.model_files import fingerprint
from reranker.common.progress import run_stage
from reranker.common.system_schema import STANDARD_SYSTEMS
from reranker.evaluation.comparison import MODES
from reranker.evaluation.costs import COST_COLUMNS
from reranker.evaluation.systems import reciprocal_rank_fusion, weighted_z_scores
from reranker.inference.compute import Compute
from reranker.inference.export import FILES, ExportedModel, export
from reranker.inference.loading import keep_first_layers, load_retriever
from reranker.inference.reranker import Reranker
from reranker.inference.scoring import pair_cosines, score_pairs
from reranker.retrieval import bm25
from stages import compare
from stages import costs as costs_stage

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
    place.set(
        systems={
            "words": {"retriever": "bm25"},
            "hybrid": {"retriever": ["bm25", "models/static"]},
            "prompted": {"biencoder": biencoder, "query_prompt": "find ", "max_length": 16},
            "embedding": {"static": "models/static"},
            "whole": {"cross_encoder": cross_encoder},
            "cut": {"cross_encoder": cross_encoder, "num_layers": 1},
            "sum": {"fused": {"words": 1.0, "whole": 0.5, "retriever": 0.25}},
            "other": {"run": run},
        },
        baseline="whole",
    )
    assert compare.main([]) == "compare: 16 systems on 3 test queries -> metrics/comparison.csv"
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
    }
    for name, scores in expected.items():
        np.testing.assert_allclose(in_order(place.scores(name)), scores, atol=1e-5, err_msg=name)
    assert len({tuple(np.round(scores, 3)) for scores in expected.values()}) == len(expected)
    table = place.comparison()
    assert list(table.index) == [*STANDARD_SYSTEMS, *expected, "other"]
    kinds = ["bm25", "hybrid", "biencoder", "static", "cross_encoder", "cross_encoder", "fused", "run"]
    assert table["kind"].tolist()[8:] == kinds
    assert table.loc["other", "ndcg@10"] == pytest.approx(2 / 3)  # t2's relevant passage was not retrieved
    assert table["gain_vs_baseline"].isna().to_dict() == {name: name == "whole" for name in table.index}
    by_query = pd.read_csv("metrics/comparison_per_query.csv")
    assert list(by_query) == ["query_id", *table.index]
    assert by_query["other"].tolist() == [1.0, 1.0, 0.0]
    assert by_query.drop(columns="query_id").mean().to_dict() == pytest.approx(table["ndcg@10"].to_dict())
    assert Path("data/compared/other.trec").read_text().splitlines()[0] == "t0 Q0 p0 1 2.5 other"


def test_failure_of_one_system_leaves_the_others_and_ends_with_an_error(place, cross_encoder, capsys):
    Path(shutil.copytree(cross_encoder, "models/mute"), "tokenizer.json").unlink()
    unknown_query = place.run_file("t0 Q0 p0 1 1.0 x\nt7 Q0 p0 1 1.0 x\n")
    place.set(
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
    assert run_stage(compare.main, []) == 1
    *lines, last = said(capsys)
    assert [line.split(": ", 2)[1] for line in lines] == [
        f"systems.{name}" for name in ("gone", "needs", "deep", "foreign", "student", "wrong", "mute")
    ]
    about = dict(line.removeprefix("error: systems.").split(": ", 1) for line in lines)
    assert about["gone"].startswith("params.yaml: model 'models/none' is neither bundled")
    assert about["needs"] == "'gone' has no scores, because it failed"
    assert about["deep"] == "params.yaml: num_layers: 9: the model has 2 layers"
    assert about["foreign"] == "data/runs/other.trec: column query_id: 1 ids are none of the test queries: 't7'"
    assert about["student"].startswith(
        "models/students/4 does not exist: evaluation.student_layers in params.yaml says"
    )
    assert last.startswith("error: compare: 7 of 8 systems failed (gone, needs, deep, foreign, student, wrong, mute)")
    assert about["mute"] == (
        "model 'models/mute' could not be loaded (its tokenizer has no words: a file such as tokenizer.json is "
        "missing); name a folder or a Hub id that holds a whole model"
    )
    table = place.comparison()
    assert list(table.index) == [*STANDARD_SYSTEMS, "words"]
    assert table["gain_vs_baseline"].isna().all()
    assert table["gain_vs_best"].notna().sum() == 8
    assert sorted(path.name for path in Path("data/compared").iterdir()) == ["words.parquet", "words.trec"]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The systems whose models are loaded, in their order."""
    opened: list[str] = []

    def note(system, settings, label):
        opened.append(label.removeprefix("compare "))
        return original(system, settings, label)

    original = compare.open_system
    monkeypatch.setattr(compare, "open_system", note)
    return opened


def test_next_run_computes_what_failed_or_changed_and_nothing_else(place, cross_encoder, computed):
    shutil.copytree(cross_encoder, "models/mine")
    systems = {
        "words": {"retriever": "bm25"},
        "mine": {"cross_encoder": "models/mine"},
        "late": {"cross_encoder": "models/late"},
    }
    place.set(systems=systems)
    with pytest.raises(UserError, match=r"1 of 3 systems failed \(late\)"):
        compare.main([])
    assert computed == ["words", "mine", "late"]
    first = place.scores("mine")
    shutil.copytree(cross_encoder, "models/late")
    computed.clear()
    compare.main([])
    assert computed == ["late"]
    assert place.scores("mine") == first

    computed.clear()
    model = CrossEncoder("models/mine")
    keep_first_layers(model[0].model, 1)
    model.save_pretrained("models/mine", create_model_card=False)
    compare.main([])
    assert computed == ["mine"]
    assert place.scores("mine") != first

    computed.clear()
    place.set(systems={**systems, "late": {"cross_encoder": "models/late", "max_length": 16}})
    compare.main([])
    assert computed == ["late"]

    computed.clear()
    place.tables({**QUERIES, "t1": "write the table"})
    compare.main([])
    assert computed == ["words", "mine", "late"]

    computed.clear()
    place.set(systems={"words": systems["words"]}, judged_only=True)
    compare.main([])
    assert computed == []
    assert sorted(path.stem for path in Path("data/compared").glob("*.parquet")) == ["words"]


def test_dvc_leaves_cached_scores_to_the_next_run(repository):
    (stage,) = re.findall(r"^  compare:\n.*?(?=^  \w)", (ROOT / "dvc.yaml").read_text(), re.M | re.S)
    body = yaml.safe_load(stage)["compare"]
    named = {"cmd": f"PYTHONPATH={ROOT} {body['cmd']}", "params": ["systems"], "outs": body["outs"]}
    Path("dvc.yaml").write_text(STAGES + yaml.safe_dump({"stages": {"compare": named}}).removeprefix("stages:\n"))
    systems = {"words": {"retriever": "bm25"}, "late": {"cross_encoder": "models/late"}}
    repository.set(systems=systems)
    with pytest.raises(AssertionError, match=r"systems\.late"):
        shell(repository.path, "dvc", "repro", "-q", "--single-item", "compare")
    before = Path("data/compared/words.parquet").stat().st_mtime_ns
    shutil.copytree("models/reranker", "models/late")
    shell(repository.path, "dvc", "repro", "-q", "--single-item", "compare")
    assert Path("data/compared/words.parquet").stat().st_mtime_ns == before
    assert list(repository.comparison().index) == [*STANDARD_SYSTEMS, *systems]


def test_damaged_scores_are_computed_again(place, computed):
    place.set(systems={"words": {"retriever": "bm25"}})
    compare.main([])
    first = place.scores("words")
    Path("data/compared/words.parquet").write_bytes(b"PAR1")
    compare.main([])
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
    place.set(systems={name: {"cross_encoder": folder} for name, folder in exported.items()}, backend="onnx-int8")
    compare.main([])
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
    compare.main([])
    assert computed == []
    with Path(exported["onnx-int8"], "README.md").open("w") as card:
        card.write("another")
    compare.main([])
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
    place.set(systems=systems)
    for stage in (compare, costs_stage):
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
    place.set(systems={"int8": {"cross_encoder": exported["openvino-int8"]}})
    Path("models/reranker/fusion.json").write_text(Path("models/reranker/fusion.json").read_text() + "\n")
    for _ in range(2):
        compare.main([])
        assert said(capsys) == [
            "compare: models/export/openvino-int8 was exported from another models/reranker; "
            "run `dvc repro export/dvc.yaml`"
        ]
    assert computed == ["int8"]


def test_engine_of_params_computes(place, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    place.set(systems={"words": {"retriever": "bm25"}}, engine="ray")
    with pytest.raises(UserError, match=r"params\.yaml: execution\.engine: RAY_ADDRESS is ''"):
        compare.main([])


def test_params_without_systems_are_fine_and_so_is_a_single_query(place):
    place.tables({"t0": QUERIES["t0"]})
    assert compare.main([]) == "compare: 8 systems on 1 test queries -> metrics/comparison.csv"
    table = place.comparison()
    assert table["queries"].tolist() == [1] * 8
    assert table["ndcg@10_low"].tolist() == table["ndcg@10_high"].tolist() == table["ndcg@10"].tolist()
    assert table["detectable"].isna().all()
    assert list(Path("data/compared").iterdir()) == []


def test_without_test_queries_there_is_nothing_to_compare_or_time(place):
    place.tables({})
    for stage in (compare, costs_stage):
        with pytest.raises(UserError, match=r"candidates\.parquet: has no test query .*; raise test_share"):
            stage.main([])


def test_scores_of_evaluate_that_are_missing_are_named(place):
    Path("data/scored/zero_shot.parquet").unlink()
    with pytest.raises(UserError, match=r"zero_shot\.parquet does not exist: .*`dvc repro score@zero_shot`"):
        compare.main([])


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
def revisions(
    made: Path, tmp_path_factory: pytest.TempPathFactory, encoder: str, biencoder: str, cross_encoder: str
) -> Path:
    """A repository whose first commit has no model, with a run in the second one and two experiments."""
    path = tmp_path_factory.mktemp("revisions") / "repository"
    shutil.copytree(made, path)
    shutil.rmtree(path / "models" / "reranker")
    make_static(encoder, path / "static")
    make_reranker(path / "made", cross_encoder, biencoder, path / "static")
    (path / "data" / "prepared" / "queries.parquet").rename(path / "asked.parquet")
    (path / "train.py").write_text(TRAIN)
    (path / ".gitignore").write_text("/made\n/static\n/models/static\n/models/control\n/models/biencoder\n")
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
    repository.set(
        systems={
            "one": {"experiment": "seed-13"},
            "alone": {"experiment": "main", "model": "cross_encoder"},
            "seeds": {"experiment": ["main", "seed-13", "seed-14"]},
        }
    )
    compare.main([])
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
    assert table["kind"].tolist()[8:] == ["fused", "cross_encoder", "fused"]
    assert table["ndcg@10_sd_of_repeats"].notna().to_dict() == {name: name == "seeds" for name in table.index}
    assert not Path("data/compared/seeds.parquet").exists()


def test_revision_that_is_unknown_or_has_no_model_or_whose_model_is_nowhere_is_named(repository, capsys):
    for folder in Path(".dvc/cache/files/md5").iterdir():
        shutil.rmtree(folder)
    systems = {"unknown": "seed-99", "without": "start", "nowhere": "seed-14"}
    repository.set(systems={name: {"experiment": revision} for name, revision in systems.items()})
    with pytest.raises(UserError, match="3 of 3 systems failed"):
        compare.main([])
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
    repository.set(systems={"one": {"experiment": "first"}})
    compare.main([])
    assert said(capsys) == [
        "compare: experiment 'first' has other queries or splits: it may have been trained on "
        "some of these test queries"
    ]
    assert len(repository.scores("one")) == 13


def test_costs_are_of_every_system_that_can_score_a_query(place, cross_encoder):
    run = place.run_file("t0 Q0 p0 1 1.0 x\n")
    place.set(
        systems={
            "hybrid": {"retriever": ["bm25", "models/static"]},
            "cut": {"cross_encoder": cross_encoder, "num_layers": 1},
            "sum": {"fused": {"cut": 1.0, "hybrid": 0.5}},
            "other": {"run": run},
            "with_other": {"fused": {"cut": 1.0, "other": 0.5}},
        },
        usd_per_hour=3.6,
    )
    assert costs_stage.main([]).startswith("costs: 11 systems, at most 3 queries each")
    table = pd.read_csv("metrics/costs.csv")
    assert tuple(table) == COST_COLUMNS
    table = table.set_index("system")
    assert list(table.index) == [*STANDARD_SYSTEMS, "hybrid", "cut", "sum"]
    sizes = table["parameters"].to_dict()
    parts = sum(sizes[name] for name in ("cross_encoder", "tuned_biencoder", "tuned_static"))
    assert (sizes["bm25"], sizes["retriever"], sizes["reranker"]) == (0, 0, parts)
    assert sizes["cut"] < sizes["cross_encoder"]
    assert sizes["sum"] == sizes["cut"] + sizes["tuned_static"]
    stored = Path("models/static/model.safetensors").stat().st_size / 1e6
    assert table.loc["hybrid", "megabytes"] == pytest.approx(stored)
    assert table.loc["cut", "megabytes"] == pytest.approx(4 * sizes["cut"] / 1e6)
    assert (table.drop(columns=["parameters", "megabytes"]) > 0).all(axis=None)


def test_failure_of_one_system_leaves_the_costs_of_the_others(place, capsys):
    place.set(systems={"gone": {"cross_encoder": "models/none"}, "words": {"retriever": "bm25"}})
    with pytest.raises(UserError, match=r"costs: 1 systems failed \(gone\)"):
        costs_stage.main([])
    (line,) = said(capsys)
    assert line.startswith("error: systems.gone: params.yaml: model 'models/none'")
    assert pd.read_csv("metrics/costs.csv")["system"].tolist() == [*STANDARD_SYSTEMS, "words"]
