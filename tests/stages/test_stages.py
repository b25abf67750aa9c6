"""The stages as DVC starts them, on input that is missing or wrong: one line that says what to do, nothing written."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sentence_transformers import CrossEncoder
from torch.nn import Identity
from transformers.utils.import_utils import is_flash_attn_2_available

from reranker.common.bundled.models import BUNDLED
from reranker.common.errors import UserError
from reranker.common.model_files import fingerprint
from reranker.common.params import load_params
from reranker.data import duplicates, leakage
from reranker.data.sampling import set_aside, training_order
from reranker.inference.export import FILES, precisions, read_about
from reranker.inference.fusion import SIGNALS
from reranker.inference.loading import UNTOUCHED, load_biencoder, load_cross_encoder, load_retriever, load_static
from reranker.inference.model_cards import dev_verdict
from reranker.inference.reranker import Reranker
from reranker.inference.scoring import pair_cosines
from reranker.report.tables import verdict
from reranker.retrieval import bm25
from reranker.retrieval.retrievers import Lexical
from settings import place as where
from stages import biencoder as biencoder_stage
from stages import mine, prepare, static, train

ROOT = Path(__file__).resolve().parents[2]
LIGHT = ("prepare", "evaluate", "report")
HEAVY = (
    "static",
    "biencoder",
    "mine",
    "train",
    "train --student 1",
    "score untouched_reranker",
    "score cross_encoder",
    "compare.systems",
    "compare.costs",
    "export",
)
"""Those that import torch, which takes seconds."""


def stages(*names: str) -> list[object]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in names]


class Place:
    """A working directory with copies of the files of parameters."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packages = ROOT
        shutil.copy(ROOT / "params.yaml", path)
        (path / "compare").mkdir()
        shutil.copy(ROOT / "compare" / "params.yaml", path / "compare")
        (path / "data").mkdir()
        shutil.copy(ROOT / "data" / "marked.csv", path / "data")

    def set(self, old: str, new: str) -> None:
        text = (self.path / "params.yaml").read_text(encoding="utf-8")
        assert text.count(old) == 1
        (self.path / "params.yaml").write_text(text.replace(old, new), encoding="utf-8")

    def give(self, **values: object) -> None:
        """Give keys other values, whatever theirs are; a key inside a section may go without it, see `settings`."""
        path = self.path / "params.yaml"
        text = path.read_text(encoding="utf-8")
        for key, value in values.items():
            section, _, name = where(key).rpartition(".")
            start = rf"^{section}:.*\n(?:  .*\n)*?  {name}: " if section else f"^{name}: "
            text, number = re.subn(rf"(?m)({start}).*?(?= +#)", lambda found, value=value: f"{found[1]}{value}", text)
            assert number == 1, key
        path.write_text(text, encoding="utf-8")

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*"))

    def error(self, stage: str) -> str:
        """The one line that the stage ends with; it must have written nothing."""
        before = self.files()
        done = self.start(stage)
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        *progress, line = done.stderr.splitlines()
        assert all(part.startswith(stage.split()[0]) for part in progress), done.stderr
        assert line.startswith("error: ")
        assert self.files() == before
        return line.removeprefix("error: ")

    def run(self, stage: str) -> str:
        """The line that says what the stage made."""
        done = self.start(stage)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, stage: str) -> subprocess.CompletedProcess[str]:
        found = os.pathsep.join(dict.fromkeys([str(self.packages), str(ROOT)]))
        environment = {**os.environ, "PYTHONPATH": found, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", *f"stages.{stage}".split()]
        return subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, check=False, timeout=600
        )

    def write(self, name: str, **columns: list[object]) -> None:
        path = self.path / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_parquet(path)

    def prepared(self) -> None:
        ids = ["q1", "q2", "q3"]
        texts = ["Read a table.", "Sort a list."]
        self.write("prepared/passages", passage_id=["p1", "p2"], text=texts, group=["p1", "p2"])
        self.write(
            "prepared/queries",
            query_id=ids,
            text=["read", "sort", "order"],
            group=ids,
            split=["train", "dev", "test"],
            source="pydocs",
        )
        self.write("prepared/judgments", query_id=ids, passage_id=["p1", "p2", "p2"], relevance=[1, 1, 1])

    def mined(self) -> None:
        self.prepared()
        pairs = {"query_id": ["q2", "q3"], "passage_id": ["p2", "p2"], "bm25": [0.1, 0.2]}
        pairs |= {"static_score": [0.2, 0.3], "biencoder_score": [0.3, 0.4]}
        self.write("mined/candidates", **pairs, rank=[1, 1], score=[0.5, 0.6], split=["dev", "test"])
        self.write("mined/negatives", **pairs, score=[0.5, 0.6], kind=["positive", "positive"], relevance=[1, 1])
        self.write("mined/bm25", query_id=["q3"], passage_id=["p2"], rank=[1], score=[0.2])

    def figures(self, stage: str) -> dict[str, float]:
        return json.loads((self.path / "metrics" / f"{stage}.json").read_text(encoding="utf-8"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def missing(path: str, stage: str) -> str:
    return f"{path} does not exist: run the stage that makes it with `dvc repro {stage}`, or all with `dvc repro`"


@pytest.mark.parametrize("stage", stages("evaluate", *HEAVY))
def test_stage_before_prepare_names_the_first_table_and_prepare(place, stage):
    assert place.error(stage) == missing("data/prepared/passages.parquet", "prepare")


def test_report_before_evaluate_names_its_file_and_evaluate(place):
    assert place.error("report") == missing("metrics/systems.csv", "evaluate")


@pytest.mark.parametrize("stage", stages("evaluate", "train", "score untouched_reranker"))
def test_stage_before_mine_names_the_candidates_and_mine(place, stage):
    place.prepared()
    assert place.error(stage) == missing("data/mined/candidates.parquet", "mine")


@pytest.mark.slow
def test_mine_before_its_models_names_them_and_their_stages(place):
    place.prepared()
    for name in ("static", "biencoder"):
        assert place.error("mine") == missing(f"models/{name}", name)
        (place.path / "models" / name).mkdir(parents=True)


@pytest.mark.slow
def test_train_before_its_models_names_them_and_their_stages(place):
    place.mined()
    assert place.error("train") == missing("models/static", "static")
    (place.path / "models" / "static").mkdir(parents=True)
    assert place.error("train") == missing("models/biencoder", "biencoder")


@pytest.mark.slow
def test_score_before_its_model_names_the_model_and_its_stage(place):
    place.mined()
    assert place.error("score cross_encoder") == missing("models/reranker", "train")


def test_evaluate_before_score_and_before_train_names_what_is_missing(place):
    place.mined()
    for system in ("untouched_reranker", "cross_encoder"):
        assert place.error("evaluate") == missing(f"data/scored/{system}.parquet", f"score@{system}")
        place.write(f"scored/{system}", query_id=["q3"], passage_id=["p2"], score=[0.5])
    assert place.error("evaluate") == missing("models/reranker/fusion.json", "train")
    (place.path / "models" / "reranker").mkdir(parents=True)
    (place.path / "models" / "reranker" / "fusion.json").write_text('{"reranker": {"bm25": 1.0}}')
    assert place.error("evaluate") == "models/reranker/fusion.json: not fusion weights; run `dvc repro train`"


@pytest.mark.parametrize("stage", stages("prepare", "evaluate", "train"))
def test_missing_params_file_is_named(place, stage):
    (place.path / "params.yaml").unlink()
    assert place.error(stage) == "params.yaml does not exist; restore it with `git checkout params.yaml`"


def test_params_that_are_not_yaml_are_refused_with_the_place(place):
    place.set("min_query_words: 3", "min_query_words: [3")
    line = place.error("prepare")
    assert line.startswith("params.yaml: not valid YAML: ")
    assert "line " in line


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "just words\n"])
def test_params_without_keys_are_refused(place, content):
    (place.path / "params.yaml").write_text(content, encoding="utf-8")
    assert place.error("prepare").startswith("params.yaml: must be `key: value` lines, not ")


@pytest.mark.parametrize("stage", stages("prepare", "evaluate", "train"))
def test_unknown_key_is_refused_with_the_one_that_was_meant(place, stage):
    place.set("\nepochs: 1", "\nepoch: 1")
    assert place.error(stage) == "params.yaml: unknown key 'epoch'; did you mean 'epochs'?"


def test_package_that_is_not_installed_is_named(place):
    place.set("- networkx\n", "- no-such-package\n")
    line = place.error("prepare")
    assert line.startswith("params.yaml: sources: 'no-such-package' is not installed; remove it from the list or run ")


def named_sources(place: Place, sources: str) -> Place:
    """The place with other sources in its params.yaml."""
    text = (place.path / "params.yaml").read_text(encoding="utf-8")
    before, _, after = text.partition("sources:")
    _, _, after = after.partition("base_model:")
    (place.path / "params.yaml").write_text(f"{before}sources: {sources}\nbase_model:{after}", encoding="utf-8")
    return place


@pytest.fixture
def small(place: Place) -> Place:
    """The text is one package of a few files."""
    return named_sources(place, "{docs: {packages: [jinja2]}}")


@pytest.fixture
def faq(place: Place) -> Place:
    """The text is a file of 180 labelled rows."""
    kinds = ["long", "short", "red", "blue", "old", "new", "sharp", "dull", "light", "heavy"]
    things = ["saw", "drill", "file", "plane", "rasp", "clamp", "awl", "punch", "chisel", "brush", "fork", "hoe"]
    tools = [f"{kind} {thing}" for thing in things for kind in kinds]
    rows = [
        (f"how to use a {tool}?", f"Take the {tool} by its handle and turn it.", n % 3) for n, tool in enumerate(tools)
    ]
    rows += [(f"how to use a {tool}?", f"Put the {tool} back into the box it came from.", 0) for tool in tools[:60]]
    raw = place.path / "data" / "raw"
    raw.mkdir(parents=True)
    pd.DataFrame(rows, columns=["question", "answer", "good"]).to_csv(raw / "faq.csv", index=False)
    place.give(dev_share=0.2, test_share=0.2)
    columns = "{query: question, passage: answer, label: good}"
    return named_sources(place, f"{{faq: {{files: data/raw/faq.csv, columns: {columns}}}}}")


def test_file_of_rows_becomes_the_tables(faq):
    line = faq.run("prepare")
    assert line.startswith("prepare: 120 passages, 80 queries (")  # no group is cut, no bound is met
    assert "60 of 180 rows dropped, 60 of them as query_without_right_passage -> " in line
    prepared = faq.path / "data" / "prepared"
    passages, queries, judgments = (
        pd.read_parquet(prepared / f"{name}.parquet") for name in ("passages", "queries", "judgments")
    )
    told = judgments.merge(passages, on="passage_id").merge(queries, on="query_id", suffixes=("_passage", ""))
    right = told[told["relevance"] > 0]
    assert len(told) == 120
    assert sorted(right["relevance"]) == [1] * 40 + [2] * 40
    assert right["text_passage"].str.startswith("Take").all()
    tools = told["text"].str.removeprefix("how to use a ").str.removesuffix("?")
    assert [tool in passage for tool, passage in zip(tools, told["text_passage"], strict=True)] == [True] * 120
    figures = json.loads((faq.path / "metrics" / "prepare.json").read_text())
    assert figures["dropped_query_without_right_passage"] == 60
    assert figures["queries_with_groups_across_splits"] == 0
    groups = passages.set_index("passage_id")["group"]
    assert passages["group"].isin(passages["passage_id"]).all()
    assert (right["passage_id"].map(groups).groupby(right["group"]).nunique() == 1).all()
    lengths = pd.read_csv(faq.path / "metrics" / "lengths.csv")
    assert lengths.groupby("text")["share"].sum().round(9).to_dict() == {"passage": 1, "query": 1}
    assert lengths.loc[lengths["text"] == "passage", "from"].min() >= 8
    dropped = pd.read_parquet(prepared / "dropped.parquet")
    assert dropped["reason"].tolist() == ["query_without_right_passage"] * 60
    assert dropped["origin"][0] == "data/raw/faq.csv: row 1"
    assert pd.read_parquet(prepared / "leaks.parquet").empty


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "passage: answer",
            "passage: anser",
            "data/raw/faq.csv: no column 'anser'; the columns are question, answer, good; ",
        ),
        (
            "label: good",
            "label: answer",
            "data/raw/faq.csv: row 1: column 'answer' holds 'Take the long saw by its handle",
        ),
        ("raw/faq.csv", "raw/faq.tsv", "params.yaml: 'data/raw/faq.tsv' names no file; `dvc checkout` or `dvc pull` "),
        ("data/raw/faq.csv", "faq.csv", "params.yaml: 'faq.csv' is not in data/raw/; move it there, "),
        ("{faq: ", "{faq: {}, more: ", "params.yaml: sources.faq: must have one of the keys packages, files, corpus, "),
    ],
)
def test_source_that_does_not_fit_its_file_is_named_before_anything_is_written(faq, old, new, message):
    faq.set(old, new)
    assert faq.error("prepare").startswith(message)


@pytest.fixture
def beir(place: Place) -> Place:
    """The text is a BEIR folder with a train and a test split of 60 and 20 queries."""
    folder = place.path / "data" / "raw" / "tools"
    (folder / "qrels").mkdir(parents=True)
    kinds, things = ["long", "red", "old", "sharp", "heavy", "blunt", "wet", "dry"], ["saw", "drill", "plane", "rasp"]
    tools = [f"{kind} {thing} of {maker}" for maker in ("iron", "oak", "horn") for thing in things for kind in kinds]
    passages = [
        {"_id": str(n), "title": tool, "text": "Take it by its handle and turn it."} for n, tool in enumerate(tools)
    ]
    queries = [{"_id": f"q{n}", "text": f"how to use a {tool}?"} for n, tool in enumerate(tools[:80])]
    for name, rows in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for split, numbers in (("train", range(60)), ("test", range(60, 80))):
        judged = "".join(f"q{n}\t{n}\t1\n" for n in numbers)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    place.give(dev_share=0.2)
    return named_sources(place, "{tools: {beir: data/raw/tools}}")


def test_folder_of_beir_becomes_the_tables_with_its_own_test_split(beir):
    assert "prepare: 96 passages, 80 queries (" in beir.run("prepare")
    queries = pd.read_parquet(beir.path / "data" / "prepared" / "queries.parquet")
    sizes = queries["split"].value_counts()
    assert sizes["test"] == 20
    assert sizes["dev"] + sizes["train"] == 60
    assert sizes["dev"] > 3


def test_query_in_two_splits_stops_unless_it_is_allowed(beir):
    path = beir.path / "data" / "raw" / "tools" / "qrels" / "test.tsv"
    path.write_text(f"{path.read_text()}q3\t3\t1\n")
    line = beir.error("prepare")
    found = (
        "1 of the queries of dev or test are also in an earlier split (1 in the same words, 0 in nearly the same), "
        "such as 'how to use a sharp saw of iron?' (test, data/raw/tools/qrels/test.tsv: row 21) "
        "and 'how to use a sharp saw of iron?' (train, data/raw/tools/qrels/train.tsv: row 4)"
    )
    assert line == (
        f"params.yaml: sources: {found}; take them out, or set prepare.allow_leakage: true, "
        "with which data/prepared/leaks.parquet lists them"
    )
    beir.set("allow_leakage: false ", "allow_leakage: true ")
    assert beir.run("prepare").startswith(f"prepare: {found}\n")
    listed = pd.read_parquet(beir.path / "data" / "prepared" / "leaks.parquet")
    assert listed[["origin", "other_origin"]].to_numpy().tolist() == [
        ["data/raw/tools/qrels/test.tsv: row 21", "data/raw/tools/qrels/train.tsv: row 4"]
    ]
    figures = json.loads((beir.path / "metrics" / "prepare.json").read_text())
    assert (figures["leaked_equal_queries"], figures["leaked_near_queries"]) == (1, 0)
    assert figures["queries_test"] == 21


def test_query_of_test_with_the_right_passage_of_one_of_train_is_told_and_counted(beir):
    path = beir.path / "data" / "raw" / "tools" / "qrels" / "test.tsv"
    path.write_text(f"{path.read_text()}q60\t3\t1\nq61\t3\t1\nq62\t70\t1\n")
    assert beir.run("prepare").startswith(
        "prepare: 2 of the queries of dev or test share a group (a right passage, or nearly the same text) "
        "with a query of an earlier split, as the sources give the splits\n"
    )
    figures = json.loads((beir.path / "metrics" / "prepare.json").read_text())
    assert figures["queries_with_groups_across_splits"] == 2


def test_bounds_that_leave_texts_out_are_told(beir, monkeypatch, capsys):
    monkeypatch.chdir(beir.path)
    monkeypatch.setattr(leakage, "MAX_EARLIER", 50)
    monkeypatch.setattr(duplicates, "MAX_PASSAGES", 90)
    monkeypatch.setattr(prepare, "COUNTED", 85)
    prepare.main([])
    assert capsys.readouterr().out.splitlines() == [
        "prepare: nearly equal queries were looked for among 20 of 20 queries of test and 50 of 60 of earlier splits",
        "prepare: near-duplicates were looked for among 90 of 96 passages; "
        "of the others those with the same letters were found",
        "prepare: lengths in tokens are of 85 of 96 passages",
    ]


def test_columns_that_nobody_uses_are_told(faq):
    faq.set(", label: good", "")
    assert faq.run("prepare").startswith("prepare: faq: unused columns: good\n")


def test_cleaning_that_leaves_nothing_says_what_was_dropped(small):
    small.give(min_query_words=900, max_query_words=901)
    line = small.error("prepare")
    assert line.startswith("params.yaml: sources: no rows left of ")
    assert "short" in line


def test_split_without_queries_is_named(small):
    small.give(dev_share=0)
    line = small.error("prepare")
    assert line == "params.yaml: the dev split has no queries; add text or raise its share"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["", " nothing", " untouched_reranker cross_encoder"])
def test_score_without_one_of_its_systems_lists_them(place, arguments):
    line = place.error(f"score{arguments}")
    assert line == "python -m stages.score: name one of the systems untouched_reranker, cross_encoder"


@pytest.mark.slow
def test_export_before_train_names_the_model_and_train(place):
    place.mined()
    assert place.error("export") == missing("models/reranker", "train")


@pytest.mark.slow
def test_export_measures_what_it_writes_on_dev_and_rerank_reads_it(place, cross_encoder):
    place.mined()
    reranker = place.path / "models" / "reranker"
    shutil.copytree(cross_encoder, reranker)
    (reranker / "words.json").write_text(bm25.dump(bm25.statistics(["Read a table."])), encoding="utf-8")
    told = place.run("export")
    computed = [f"{backend}, {precision}" for backend in FILES for precision in precisions(backend)]
    assert told.startswith(f"export: NDCG@10 1.0000 on dev; {'; '.join(f'{each} +0.0000' for each in computed)} -> ")
    folders = sorted((place.path / "models" / "export").iterdir())
    assert [folder.name for folder in folders] == ["onnx-int8", "openvino", "openvino-int8"]
    passages = place.path / "passages.txt"
    passages.write_text("sort a list\nread a table\n", encoding="utf-8")
    for folder in folders:
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "\n| dev queries | 1 |\n" in card
        rows = re.findall(r"^\| (.*) \| 1\.0000 \| \+0\.0000 \| [0-9]+ \| [0-9.]+ \|$", card, re.MULTILINE)
        assert rows == ["torch, float32", *(f"{folder.name}, {each}" for each in precisions(folder.name))]
        assert read_about(folder).origin == fingerprint(str(reranker))
        assert (folder / "words.json").read_bytes() == (reranker / "words.json").read_bytes()
        assert len(place.run(f"rerank --query list --model {folder} {passages}").splitlines()) == 2


@pytest.fixture
def modelled(place: Place, biencoder: str) -> Place:
    """Tables whose queries and passages have the same ids, and the models that mine needs."""
    ids = [f"{number}" for number in range(8)]
    things = ["list", "path", "table", "graph", "file", "numbers", "apples", "order"]
    texts = [f"the {thing} of the {thing}" for thing in things]
    place.write("prepared/passages", passage_id=ids, text=texts, group=ids)
    splits = ["train"] * 4 + ["dev", "test"] * 2
    texts = [f"find {thing}" for thing in things]
    place.write("prepared/queries", query_id=ids, text=texts, group=ids, split=splits, source="pydocs")
    place.write("prepared/judgments", query_id=ids, passage_id=ids, relevance=[1] * 8)
    shutil.copytree(biencoder, place.path / "models" / "biencoder")
    load_static("bundled/static-256").save_pretrained(str(place.path / "models" / "static"), create_model_card=False)
    place.give(num_negatives=2, range_max=8, train_max_length=32, retriever_share=0.5, **{"biencoder.max_length": 32})
    return place


@pytest.mark.slow
def test_mine_takes_the_text_of_the_passage_where_a_query_has_the_same_id(modelled, biencoder):
    modelled.give(precision="float32")
    modelled.run("mine")
    mined = pd.read_parquet(modelled.path / "data/mined/negatives.parquet")
    assert set(mined["kind"]) == {"positive", "hard"}
    queries, passages = (
        pd.read_parquet(modelled.path / f"data/prepared/{name}.parquet") for name in ("queries", "passages")
    )
    shown = [
        mined[f"{name}_id"].map(table.set_index(f"{name}_id")["text"]).tolist()
        for name, table in (("query", queries), ("passage", passages))
    ]
    models = {"static_score": load_static("bundled/static-256"), "biencoder_score": load_biencoder(biencoder, 32)}
    for signal, model in models.items():
        np.testing.assert_allclose(mined[signal], pair_cosines(model, *shown, label=""), atol=1e-5)
    words = Lexical(*(table["text"].tolist() for table in (passages, queries)))
    found = words.search(np.flatnonzero(queries["split"] == "test"), 100, label="")
    own = pd.read_parquet(modelled.path / "data/mined/bm25.parquet")
    assert (
        own["query_id"].tolist()
        == own["passage_id"].tolist()
        == queries.loc[queries["split"] == "test", "query_id"].tolist()
    )
    np.testing.assert_array_equal(own["score"], found.scores[found.positions >= 0])


@pytest.mark.slow
def test_mine_takes_only_queries_that_the_first_stage_has_not_seen(modelled, monkeypatch, capsys):
    monkeypatch.chdir(modelled.path)
    queries = pd.read_parquet("data/prepared/queries.parquet")
    _, unseen = set_aside(training_order(queries, load_params(Path("params.yaml")).sources), 0.5)
    assert len(unseen) == 2
    for number, retriever in ((1, "[bm25, models/static]"), (2, "models/biencoder"), (3, "bm25")):
        modelled.give(train_queries=number, retriever=retriever)
        mine.main([])
        mined = pd.read_parquet("data/mined/negatives.parquet")
        assert {*mined["query_id"]} == {*unseen[:number]}
        said = capsys.readouterr().out
        assert said.startswith("mine: 2 queries in place of train_queries 3: of the 2 that ") == (number == 3)


@pytest.mark.slow
def test_models_of_the_first_stage_are_tuned_on_their_share_of_the_queries(modelled, biencoder, monkeypatch):
    monkeypatch.chdir(modelled.path)
    tuning = {"base_model": biencoder, "batch_size": 2, "lr": 0.01}
    modelled.give(retriever_share=0.75, **{f"biencoder.{key}": value for key, value in tuning.items()})
    assert static.main([]).startswith("static: embedding tuned on 3 queries in ")
    assert biencoder_stage.main([]).startswith("biencoder: bi-encoder tuned on 3 queries in ")
    for name, before in (("biencoder", load_biencoder(biencoder, 32)), ("static", load_static("bundled/static-256"))):
        texts = ["find the shortest path"]
        assert not np.allclose(load_retriever(f"models/{name}").encode(texts), before.encode(texts), atol=1e-4)
    modelled.give(**{"biencoder.queries": 2})
    assert biencoder_stage.main([]).startswith("biencoder: bi-encoder tuned on 2 queries in ")


@pytest.mark.slow
def test_length_that_the_biencoder_cannot_read_is_refused_before_training(modelled, encoder):
    modelled.give(**{"biencoder.max_length": 65, "biencoder.base_model": encoder})
    expected = "params.yaml: biencoder.max_length: 65 is more than the 64 tokens that the model can read"
    assert modelled.error("biencoder") == expected


@pytest.mark.slow
def test_query_whose_candidates_are_all_refused_gets_random_negatives(modelled):
    modelled.set("max_score: null ", "max_score: -1000 ")
    modelled.run("mine")
    mined = pd.read_parquet(modelled.path / "data/mined/negatives.parquet")
    assert set(mined["kind"]) == {"positive", "random"}
    figures = modelled.figures("mine")
    assert figures["queries_without_hard_negatives"] == figures["mined_queries"] == mined["query_id"].nunique()


@pytest.mark.slow
def test_mine_that_cannot_end_has_written_nothing(modelled, monkeypatch):
    ids = [f"{number}" for number in range(8)]
    relevance = [1, 1, 1, 1, 0, 1, 0, 1]  # of dev all are 0: its figures are computed last
    modelled.write("prepared/judgments", query_id=ids, passage_id=ids, relevance=relevance)
    modelled.give(retriever="bm25")
    monkeypatch.chdir(modelled.path)
    with pytest.raises(UserError, match="no query of dev has a relevant passage"):
        mine.main([])
    assert not Path("data/mined").exists()
    assert not Path("metrics").exists()


@pytest.mark.slow
def test_marked_pair_is_a_judgment_from_then_on(modelled):
    modelled.give(precision="float32")
    modelled.run("mine")
    audit = pd.read_csv(modelled.path / "data/mined/audit.csv", dtype=str, keep_default_na=False)
    drawn = audit[audit["verdict"] == "hard negative"]
    right, wrong = drawn.iloc[0], drawn[drawn["query_id"] != drawn["query_id"].iloc[0]].iloc[0]
    marked = pd.DataFrame([right, wrong]).assign(mark=["right", "wrong"])
    marked.to_csv(modelled.path / "data/marked.csv", index=False)
    modelled.run("mine")
    mined = pd.read_parquet(modelled.path / "data/mined/negatives.parquet").set_index(["query_id", "passage_id"])[
        "kind"
    ]
    assert mined.get((right["query_id"], right["passage_id"])) in (None, "positive")
    assert mined[wrong["query_id"], wrong["passage_id"]] == "judged"
    assert modelled.figures("mine")["marked"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("retriever", ["bm25", "bundled/static-256", "[bm25, bundled/static-256]"])
def test_retriever_by_words_by_vectors_or_of_both_ranks_the_candidates(modelled, retriever):
    modelled.give(retriever=retriever)
    modelled.run("mine")
    candidates = pd.read_parquet(modelled.path / "data/mined/candidates.parquet")
    first = candidates[candidates["rank"] == 1]
    assert (first["query_id"] == first["passage_id"]).all()
    assert candidates.groupby("query_id")["score"].is_monotonic_decreasing.all()


@pytest.mark.slow
def test_cross_encoder_scores_the_candidates_anew(modelled, cross_encoder):
    modelled.set("rescorer: null ", f"rescorer: {cross_encoder} ")
    modelled.set("precision: auto ", "precision: float32 ")
    modelled.run("mine")
    mined = pd.read_parquet(modelled.path / "data/mined/negatives.parquet")
    queries, passages = (
        pd.read_parquet(modelled.path / f"data/prepared/{file}.parquet").set_index(key)["text"]
        for file, key in (("queries", "query_id"), ("passages", "passage_id"))
    )
    pairs = zip(mined["query_id"].map(queries), mined["passage_id"].map(passages), strict=True)
    expected = CrossEncoder(cross_encoder).predict(list(pairs), show_progress_bar=False)
    np.testing.assert_allclose(mined["score"], expected, atol=1e-5)


@pytest.fixture
def mined(modelled, cross_encoder, monkeypatch) -> Place:
    """The place after mine, with params of train that suit the tiny models."""
    modelled.give(base_model=cross_encoder, max_length=32, frozen_layers=0, distillation=0.5, precision="float32")
    monkeypatch.chdir(modelled.path)
    mine.main([])
    return modelled


@pytest.mark.slow
@pytest.mark.parametrize("base", ["cross_encoder", "encoder"])
@pytest.mark.parametrize(
    "changes",
    [
        {"loss: group_softmax ": "loss: cross_entropy ", "evaluators: [retrieved] ": "evaluators: [all_positives] "},
        {"loss: group_softmax ": "loss: margin_mse ", "teacher: fused ": "teacher: data/teachers/scores.csv "},
        {
            "loss: group_softmax ": "loss: lambda ",
            "loss_arguments: {} ": "loss_arguments: {k: 2, weighting_scheme: LambdaRankScheme} ",
            "targets: relevance ": "targets: teacher ",
            "teacher: fused ": "teacher: ENCODER ",
            "num_layers: null ": "num_layers: 1 ",
        },
        {
            "loss: group_softmax ": "loss: {pydocs: list_net} ",
            "lora: null ": "lora: {r: 2, lora_alpha: 4, lora_dropout: 0.0, target_modules: [query]} ",
            "evaluators: [retrieved] ": "evaluators: [retrieved, all_positives] ",
            "trainer: {} ": "trainer: {max_steps: 3, gradient_accumulation_steps: 2} ",
        },
    ],
    ids=["two outputs", "file", "student", "adapters"],
)
def test_train_makes_a_model_of_one_output_however_it_is_told_to(mined, cross_encoder, changes, base, request, capsys):
    mined.give(base_model=request.getfixturevalue(base))
    for old, new in changes.items():
        mined.set(old, new.replace("ENCODER", cross_encoder))
    negatives = pd.read_parquet("data/mined/negatives.parquet")
    Path("data/teachers").mkdir()
    negatives[["query_id", "passage_id", "score"]].to_csv("data/teachers/scores.csv", index=False)
    capsys.readouterr()
    assert train.main([]).startswith(f"train: {len(negatives)} pairs in ")
    assert ("has no trained ranking head, so it gets a new one" in capsys.readouterr().out) == (base == "encoder")
    model = CrossEncoder("models/reranker")
    assert model.num_labels == 1
    pairs = [("find list", "the list of the list"), ("find list", "the path of the path")]
    assert len(set(model.predict(pairs, show_progress_bar=False))) == 2
    curve = pd.read_csv("metrics/curve_dev.csv")
    others = ["ndcg@10_all_positives"] if "lora: null " in changes else []
    assert curve.columns.tolist() == ["step", "ndcg@10", *others]
    figures = mined.figures("train")
    assert figures["steps"] == curve["step"].iloc[-1] == (3 if "trainer: {} " in changes else 1)
    assert curve["step"].iloc[0] == 0  # the model before training
    assert figures["dev_ndcg@10_before"] == curve["ndcg@10"].iloc[0]
    assert figures["dev_ndcg@10_best"] == curve["ndcg@10"].iloc[1:].max()
    layers = model.transformers_model.config.num_hidden_layers
    assert layers == (1 if "num_layers: null " in changes else 2)


@pytest.mark.slow
def test_train_writes_the_models_and_the_weights_that_the_search_needs(mined):
    line = train.main([])
    weights = json.loads(Path("models/reranker/fusion.json").read_text(encoding="utf-8"))
    assert {name: [*part] for name, part in weights.items()} == {
        "fusion_without_cross_encoder": sorted(SIGNALS),
        "reranker": sorted([*SIGNALS, "cross_encoder"]),
        "retriever": ["bm25", "models/biencoder", "models/static"],
    }
    said = dev_verdict(mined.figures("train"))
    assert f" {said} -> models/reranker" in line
    assert said in Path("models/reranker/README.md").read_text(encoding="utf-8").splitlines()
    scores = Reranker("models/reranker").scores(["find list"] * 2, ["the list of the list", "the path of the path"])
    assert scores[0] > scores[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trainer: {} ", "trainer: {seed: 3} ", "trainer: seed: is not given here; use seed at the top level"),
        ("evaluators: [retrieved] ", "evaluators: [test] ", "dev.evaluators: there is no 'test'; use retrieved, "),
        ("loss_arguments: {} ", "loss_arguments: {k: 3} ", "loss_arguments: group_softmax has no argument 'k'; "),
        ("targets: relevance ", "targets: teacher ", "targets: teacher: the loss group_softmax takes no scores "),
        ("loss: group_softmax ", "loss: {faq: mse} ", "loss: no loss for the source 'pydocs', which has mined "),
        ("num_layers: null ", "num_layers: 5 ", "num_layers: 5: the model has 2 layers"),
        ("\nmax_length: 32 ", "\nmax_length: 65 ", "max_length: 65 is more than the 64 tokens that the model can read"),
        (
            "teacher: fused ",
            "teacher: data/teachers/none.csv ",
            "data/teachers/none.csv does not exist; name a file ",
        ),
        pytest.param(
            *(
                "attention: auto ",
                "attention: flash_attention_2 ",
                "compute.attention: flash_attention_2 needs a GPU ",
            ),
            marks=pytest.mark.skipif(is_flash_attn_2_available(), reason="flash attention is there"),
        ),
    ],
)
def test_train_that_cannot_do_as_it_is_told_says_so_before_it_starts(mined, old, new, message):
    mined.set(old, new)
    before = mined.files()
    with pytest.raises(UserError) as caught:
        train.main([])
    assert str(caught.value).removeprefix("params.yaml: ").startswith(message)
    assert mined.files() == before


@pytest.mark.slow
def test_bundled_weights_that_differ_are_not_loaded(place, tmp_path_factory):
    place.prepared()
    place.packages = tmp_path_factory.mktemp("packages")
    installed = metadata.distribution("wordllama")
    (info,) = {file.parts[0] for file in installed.files if file.name == "METADATA"}
    (place.packages / info).mkdir()
    shutil.copy(installed.locate_file(f"{info}/METADATA"), place.packages / info)
    weights = place.packages / BUNDLED["bundled/static-256"].weights
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"other weights")
    line = place.error("static")
    assert line.startswith(f"{weights}: sha256 ")
    assert "is not the published 64b47a2dc493…; reinstall it with " in line


@pytest.mark.slow
def test_unknown_model_lists_the_bundled_ones(place):
    place.mined()
    place.give(base_model="bundled/other")
    expected = f"params.yaml: there is no model 'bundled/other'; the bundled ones are {', '.join(BUNDLED)}"
    assert place.error("score untouched_reranker") == expected


@pytest.mark.slow
@pytest.mark.parametrize("base", ["cross_encoder", "biencoder"])
def test_untouched_reranker_is_the_base_model_or_the_bundled_one_where_that_has_no_head(place, base, request):
    place.mined()
    place.write(
        "mined/candidates", query_id=["q3", "q3"], passage_id=["p2", "p1"], rank=[1, 31], split=["test", "test"]
    )
    name = request.getfixturevalue(base)
    place.give(base_model=name, max_length=32, precision="float32")
    *said, line = place.run("score untouched_reranker").splitlines()
    assert line.startswith("score: untouched_reranker scored 2 pairs in ")
    untouched = name if base == "cross_encoder" else UNTOUCHED
    told = f"score: '{name}' has no trained ranking head: {UNTOUCHED} is the untouched reranker"
    assert said == ([] if base == "cross_encoder" else [told])
    scored = pd.read_parquet(place.path / "data" / "scored" / "untouched_reranker.parquet")
    assert scored["passage_id"].tolist() == ["p2", "p1"]
    pairs = [("order", "Sort a list."), ("order", "Read a table.")]
    expected = load_cross_encoder(untouched).predict(pairs, activation_fn=Identity(), show_progress_bar=False)
    np.testing.assert_allclose(scored["score"], expected, rtol=1e-3)
    assert not (place.path / "models").exists()


@pytest.fixture
def scored(place: Place) -> Place:
    """Three test queries with as many retrieved candidates each, of which the first lack the right passage."""
    ids = [f"p{number}" for number in range(1, 9)]
    place.write("prepared/passages", passage_id=ids, text=ids, group=ids)
    asked = ["q1", "q2", "q3"]
    place.write("prepared/queries", query_id=asked, text=asked, group=asked, split=["test"] * 3, source="pydocs")
    place.write("prepared/judgments", query_id=asked, passage_id=["p8", "p3", "p1"], relevance=[1, 1, 1])
    candidates = pd.DataFrame(
        [("q1", "p1", 1), ("q1", "p2", 2), ("q1", "p3", 3), ("q1", "p8", 7)]
        + [(query, f"p{rank}", rank) for query in ("q2", "q3") for rank in (1, 2, 3)],
        columns=["query_id", "passage_id", "rank"],
    )
    pairs = candidates[["query_id", "passage_id"]].to_dict("list")
    falling, rising = -candidates["rank"].astype(float), candidates["rank"].astype(float)
    signals = {"score": falling, "bm25": falling, "static_score": falling, "biencoder_score": rising}
    place.write("mined/candidates", **candidates.to_dict("list"), split="test", **signals)
    own = [("q1", "p8"), ("q1", "p1"), ("q1", "p2"), ("q1", "p3"), ("q2", "p1"), ("q2", "p3")]
    own += [("q3", passage) for passage in ("p4", "p5", "p6", "p1")]  # the right one is behind the depth of the others
    query_ids, passage_ids = zip(*own, strict=True)
    ranks = [1, 2, 3, 4, 1, 2, 1, 2, 3, 4]
    place.write("mined/bm25", query_id=query_ids, passage_id=passage_ids, rank=ranks, score=[9.0 - r for r in ranks])
    place.write("scored/untouched_reranker", **pairs, score=falling)
    place.write("scored/cross_encoder", **pairs, score=rising)
    (place.path / "models" / "reranker").mkdir(parents=True)
    weights = {"reranker": {"cross_encoder": 2.0, "bm25": 1.0}, "fusion_without_cross_encoder": {"bm25": 1.0}}
    (place.path / "models" / "reranker" / "fusion.json").write_text(json.dumps(weights), encoding="utf-8")
    place.give(top_k=3)
    return place


def test_bm25_is_judged_by_its_own_ranking_and_the_others_by_that_of_the_candidates(scored):
    line = scored.run("evaluate")
    figures = scored.figures("evaluate")
    second, third = 1 / np.log2(3), 0.5  # NDCG of a single right passage on these ranks
    expected = {
        "bm25": (1 + second + 0) / 3,
        "retriever": (0 + third + 1) / 3,
        "tuned_biencoder": (0 + 1 + third) / 3,
        "untouched_reranker": (0 + third + 1) / 3,
        "cross_encoder": (0 + 1 + third) / 3,
        "fusion_without_cross_encoder": (0 + third + 1) / 3,
        "perfect": 2 / 3,  # no order of the candidates finds the passage that they lack
    }
    assert {name: figures[f"ndcg@10_{name}"] for name in expected} == pytest.approx(expected)
    assert figures["ndcg@10"] == pytest.approx(expected["cross_encoder"])
    for name in ("bm25", "retriever", "untouched_reranker", "tuned_biencoder", "fusion_without_cross_encoder"):
        assert figures[f"gain_vs_{name}"] == pytest.approx(expected["cross_encoder"] - expected[name])
        assert figures[f"gain_vs_{name}_low"] <= figures[f"gain_vs_{name}"] <= figures[f"gain_vs_{name}_high"]
        assert 0 < figures[f"p_vs_{name}"] <= 1
    assert figures["tuning_gain"] == pytest.approx(expected["cross_encoder"] - expected["untouched_reranker"])
    assert figures["tuning_low"] <= figures["tuning_gain"] <= figures["tuning_high"]
    assert 0 < figures["tuning_p"] <= 1
    table = pd.read_csv(scored.path / "metrics" / "systems.csv")
    systems = [*[*expected][:-1], "reranker"]
    assert table.loc[table["mode"] == "retrieved", "system"].tolist() == systems
    assert table.loc[table["mode"] == "all_positives", "system"].tolist() == systems[1:]
    assert line == f"evaluate: {verdict(figures)} -> metrics/evaluate.json\n"


def test_verdict_of_each_comparison_is_better_worse_or_no_proven_difference():
    figures = {"ndcg@10": 0.5, "queries": 300, "tuning_gain": 0.1, "tuning_p": 0.2}
    outcomes = {
        "bm25": (0.25, 0.0001, "better than BM25 (+0.250, p < 0.001)"),
        "retriever": (-0.0312, 0.049, "worse than the first stage (−0.031, p = 0.049)"),
        "untouched_reranker": (
            *(-0.2, 0.051),
            "no proven difference from the published reranker left untouched (−0.200, p = 0.051)",
        ),
        "fusion_without_cross_encoder": (
            *(0.0, 1.0),
            "no proven difference from the same fusion without the cross-encoder (+0.000, p = 1.000)",
        ),
    }
    for other, (gain, p, _) in outcomes.items():
        figures |= {f"gain_vs_{other}": gain, f"p_vs_{other}": p}
    said = ", ".join(text for *_, text in outcomes.values())
    assert verdict(figures).startswith(f"NDCG@10 0.500 on 300 test queries: {said}. Whether fine-tuning ")


@pytest.mark.parametrize("stage", stages("evaluate", "train"))
def test_damaged_table_is_named(place, stage):
    place.mined()
    (place.path / "data" / "mined" / "candidates.parquet").write_bytes(b"PAR1 cut off")
    assert place.error(stage).startswith("data/mined/candidates.parquet: not a Parquet table with the columns ")


@pytest.mark.parametrize("stage", stages(*LIGHT, *HEAVY))
def test_stage_can_be_imported_without_running(place, stage):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", f"import stages.{stage.split()[0]}"]
    before = place.files()
    done = subprocess.run(command, cwd=place.path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert place.files() == before
