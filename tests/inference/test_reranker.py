"""Ranking with each kind of model folder, by the command and in the programs of the docs; searching a corpus."""

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
from sentence_transformers import CrossEncoder, SentenceTransformer

from reranker.common.errors import UserError
from reranker.inference.compute import PLAIN
from reranker.inference.export import export
from reranker.inference.loading import load_static
from reranker.inference.reranker import Reranker, Search, load_ranker
from reranker.inference.scoring import pair_cosines, score_pairs
from reranker.retrieval import bm25

ROOT = Path(__file__).resolve().parents[2]
PASSAGES = ["green apples", "order numbers in a list", "sort the table", "write csv", "find the path " * 30]
QUERY = "sort a list"
WEIGHTS = {"bm25": 0.5, "cross_encoder": 2.0, "static_score": 4.0, "biencoder_score": 3.0}
FIRST_STAGE = {"bm25": 0.25, "models/static": 3.0, "models/biencoder": 2.0}
CORPUS = [
    f"{verb} the {what} {where}"
    for verb in ("sort", "order", "read", "write", "find")
    for what in ("list", "numbers", "csv file", "table", "path")
    for where in ("of apples", "from a graph")
]
QUERIES = ["sort a list", "how to read a csv file", "shortest path", "green apples"]
PROGRAMS = [
    (page, place)
    for page in ("README.md", "docs/how-to/serve.md")
    for place in range(len(re.findall("^```python$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)))
]
"""The programs of the docs that use a reranker."""


@pytest.fixture(scope="module")
def project(cross_encoder: str, biencoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models in the layout that the pipeline writes."""
    top = tmp_path_factory.mktemp("project")
    folder = Path(shutil.copytree(cross_encoder, top / "models" / "reranker"))
    (folder / "words.json").write_text(bm25.dump(bm25.statistics(PASSAGES)), encoding="utf-8")
    shutil.copytree(folder, top / "alone")
    exported = top / "models" / "export" / "openvino"
    exported.mkdir(parents=True)
    export(CrossEncoder(cross_encoder), "openvino", exported, "")
    shutil.copy(folder / "words.json", exported)
    shutil.copytree(biencoder, folder / "biencoder")
    load_static("bundled/static-256").save_pretrained(str(folder / "static"), create_model_card=False)
    weights = {"reranker": WEIGHTS, "retriever": FIRST_STAGE}
    (folder / "fusion.json").write_text(json.dumps(weights), encoding="utf-8")
    tables = top / "data" / "prepared"
    tables.mkdir(parents=True)
    pd.DataFrame({"passage_id": [*"abcde"], "text": PASSAGES}).to_parquet(tables / "passages.parquet")
    return top


def start(project: Path, *arguments: str, stdin: str | bytes = "") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    content = stdin.encode() if isinstance(stdin, str) else stdin
    command = [sys.executable, "-m", "stages.rerank", *arguments]
    return subprocess.run(
        command, cwd=project, env=environment, input=content, capture_output=True, check=False, timeout=120
    )


def test_each_kind_of_folder_ranks_by_its_scores(project: Path, cross_encoder: str):
    scores = score_pairs(CrossEncoder(cross_encoder), [QUERY] * 4, PASSAGES[:4], label="")
    expected = [PASSAGES[place] for place in (-scores).argsort()]
    for name in ("alone", "models/export/openvino"):
        ranked = load_ranker(project / name).rank(QUERY, PASSAGES[:4])
        assert [item.passage for item in ranked] == expected
        assert [item.score for item in ranked] == pytest.approx(sorted(scores, reverse=True), abs=0.05)
    shipped = load_ranker(project / "models" / "reranker")
    assert isinstance(shipped, Reranker)
    assert len(shipped.rank(QUERY, PASSAGES)) == 5


def test_cross_encoder_alone_reads_excerpts_where_word_statistics_lie_beside_it(project: Path, tmp_path: Path):
    without = Path(shutil.copytree(project / "alone", tmp_path / "without"))
    (without / "words.json").unlink()
    passages = ["a list of numbers " + "green " * 40 + "sort sort sort"]
    folders = project / "alone", without
    (excerpt,), (truncated,) = (load_ranker(folder).rank("sort", passages) for folder in folders)
    assert abs(excerpt.score - truncated.score) > 1e-3


def test_folder_without_a_model_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="model 'gone' does not exist; name a folder"):
        load_ranker(Path("gone"))
    with pytest.raises(UserError, match="models/reranker does not exist: run the stage"):
        load_ranker(Path("models/reranker"))
    with pytest.raises(UserError, match="could not be loaded"):
        load_ranker(tmp_path)


@pytest.mark.slow
def test_command_prints_ranks_scores_and_passages_of_lines(project: Path):
    done = start(project, "--query", QUERY, "--top", "2", stdin="\n".join(["", *PASSAGES, "  ", "a\tb"]) + "\r\n")
    assert done.returncode == 0, done.stderr
    ranked = load_ranker(project / "models" / "reranker").rank(QUERY, [*(text.strip() for text in PASSAGES), "a\tb"])
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]
    for line, item in zip(lines, ranked, strict=False):
        assert float(line.split()[1]) == pytest.approx(item.score, abs=1e-3)
        assert line.endswith(item.passage.replace("\t", "\\t"))


@pytest.mark.slow
def test_command_gives_json_with_the_lines_of_a_file(project: Path, tmp_path: Path):
    path = tmp_path / "passages.txt"
    path.write_text("\ufeffgreen apples\n\nsort the table ö\n", encoding="utf-8")
    done = start(project, "--query", QUERY, "--json", "--model", "models/export/openvino", str(path))
    actual = json.loads(done.stdout)
    assert sorted((item["line"], item["passage"]) for item in actual) == [(1, "green apples"), (3, "sort the table ö")]
    assert [item["rank"] for item in actual] == [1, 2]
    assert actual[0]["score"] >= actual[1]["score"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--query", "a"], "", "standard input: no passage; give one passage a line"),
        (["--query", "a"], " \n\r\n", "standard input: no passage; give one passage a line"),
        (["--query", "a"], b"one\ntw\xff", "standard input: line 2 is not UTF-8 (byte 6); convert the file to UTF-8"),
        (["--query", "a", "gone.txt"], "", "gone.txt: could not be read (No such file or directory)"),
        (["--query", " "], "a", "python -m stages.rerank: --query: the query is empty"),
        (["--query", "a", "--top", "0"], "a", "python -m stages.rerank: --top: 0 is below 1"),
        (
            ["--query", "a", "--top", "x"],
            "a",
            "python -m stages.rerank: argument --top: invalid int value: 'x'; --help",
        ),
        ([], "a", "python -m stages.rerank: the following arguments are required: --query; --help lists"),
        (["--query", "a", "--model", "gone"], "a", "model 'gone' does not exist; name a folder with a model in it"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(project: Path, arguments: list[str], stdin: str | bytes, message: str):
    done = start(project, *arguments, stdin=stdin)
    assert done.returncode == 1
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.slow
@pytest.mark.parametrize(("page", "place"), PROGRAMS)
def test_program_of_the_docs_runs_and_prints_passages_best_first(project: Path, page: str, place: int):
    text = (ROOT / page).read_text(encoding="utf-8")
    program = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)[place]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(lines) == (3 if "print(" in program else 0)
    assert scores == sorted(scores, reverse=True)
    assert all(line.partition(" ")[2] in [repr(passage[:80]) for passage in PASSAGES] for line in lines)


def test_docs_have_programs():
    assert {page for page, _ in PROGRAMS} == {"README.md", "docs/how-to/serve.md"}


def with_first_stage(project: Path, folder: Path, weights: dict[str, float]) -> Path:
    """A copy of the reranker with another first stage."""
    shutil.copytree(project / "models" / "reranker", folder)
    (folder / "fusion.json").write_text(json.dumps({"reranker": WEIGHTS, "retriever": weights}), encoding="utf-8")
    return folder


def first_stage_scores(folder: Path, query: str) -> np.ndarray:
    """The score of every passage of the corpus by the three parts of the first stage."""
    queries = [query] * len(CORPUS)
    parts = {"bm25": bm25.bm25(bm25.statistics(CORPUS), queries, CORPUS)}
    for name in ("static", "biencoder"):
        parts[f"models/{name}"] = pair_cosines(SentenceTransformer(str(folder / name)), queries, CORPUS, label="")
    return sum(weight * parts[name] for name, weight in FIRST_STAGE.items())


@pytest.mark.slow
def test_search_finds_what_the_first_stage_ranks_highest_and_orders_it_as_the_reranker_does(project: Path):
    folder = project / "models" / "reranker"
    search, reranker = Search(folder, CORPUS, PLAIN), Reranker(folder, PLAIN)
    orders, best_of_all = [], []
    for query in QUERIES:
        found = np.argsort(-first_stage_scores(folder, query), kind="stable")[:6]
        ranked = reranker.rank(query, [CORPUS[place] for place in found])
        result = search.search(query, results=4, candidates=6)
        assert [item.position for item in result] == [found[item.position] for item in ranked[:4]]
        assert [item.score for item in result] == pytest.approx([item.score for item in ranked[:4]], abs=1e-4)
        assert [item.passage for item in result] == [CORPUS[item.position] for item in result]
        assert len(search.search(query, results=9, candidates=6)) == 6
        orders.append([item.position for item in ranked] == [*range(6)])
        best_of_all.append(reranker.rank(query, CORPUS)[:4] == result)
    assert not all(orders)  # the reranker changes the order
    assert not all(best_of_all)  # and ranks only what the first stage has found


@pytest.mark.slow
def test_search_by_words_alone_finds_passages_with_a_word_of_the_query(project: Path, tmp_path: Path):
    search = Search(with_first_stage(project, tmp_path / "model", {"bm25": 1.0}), CORPUS, PLAIN)
    statistics = bm25.statistics(CORPUS)
    for query in QUERIES:
        scores = bm25.bm25(statistics, [query] * len(CORPUS), CORPUS)
        found = [item.position for item in search.search(query, candidates=6)]
        assert len({*found}) == 6
        assert sorted(scores[found]) == pytest.approx(sorted(scores)[-6:])  # of passages with equal scores, any
        assert {item.position for item in search.search(query, 50, 50)} == {*np.flatnonzero(scores > 0).tolist()}
    assert 0 < (scores > 0).sum() < len(CORPUS)
    assert search.search("zebra") == []


@pytest.mark.slow
def test_first_stage_that_search_does_not_serve_is_one_line(project: Path, tmp_path: Path):
    folder = with_first_stage(project, tmp_path / "model", {"bm25": 1.0, "bundled/static-256": 2.0})
    with pytest.raises(
        UserError, match=r"first stage has the part 'bundled/static-256'.*rank .* with Reranker"
    ) as caught:
        Search(folder, CORPUS)
    assert "\n" not in str(caught.value)
    (folder / "fusion.json").write_text(json.dumps({"reranker": WEIGHTS}), encoding="utf-8")
    with pytest.raises(UserError, match=r"fusion\.json: not fusion weights; run `dvc repro train`"):
        Search(folder, CORPUS)
