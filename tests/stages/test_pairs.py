"""The pipeline of pair tasks on small files: each task from rows to figures, and bad input as one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sentence_transformers import CrossEncoder

from reranker.common.errors import UserError
from reranker.inference.compute import Compute
from reranker.pairs.model import PairModel, fuse
from reranker.pairs.params import PairParams, read_params
from tools.recipe import apply_recipe

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["saw", "drill", "file", "plane", "clamp", "awl", "punch", "chisel", "brush", "fork", "hoe", "rake"]
COLOURS = ["red", "blue", "green", "black", "white", "yellow", "brown", "grey"]


def rows(task: str) -> pd.DataFrame:
    """Pairs about tools: the same thing in other words, or two things."""
    pairs = []
    for place, kind in enumerate(KINDS):
        for colour in COLOURS:
            pairs.append((f"the {colour} {kind}", f"a {kind} that is {colour}", 1))
            pairs.append((f"the {colour} {kind}", f"a {KINDS[place - 1]} for the garden, in {colour}", 0))
    table = pd.DataFrame(pairs, columns=["one", "two", "label"])
    split = ["train" if place % 4 else ("dev", "test")[place // 4 % 2] for place in range(len(table) // 2)]
    table["split"] = [name for name in split for _ in range(2)]
    if task == "class":
        table["label"] = table["label"].map({0: "other", 1: "same"})
    return table


class Place:
    """A working directory with the pair parameters of a task, its data given by split."""

    def __init__(self, path: Path, task: str) -> None:
        self.path = path
        raw = path / "data" / "raw"
        raw.mkdir(parents=True)
        for split, part in rows(task).groupby("split"):
            part.drop(columns="split").to_csv(raw / f"{split}.csv", index=False)
        (path / "pairs").mkdir()
        values = yaml.safe_load((ROOT / "pairs" / "params.yaml").read_text(encoding="utf-8"))["pairs"]
        files = {split: f"data/raw/{split}.csv" for split in ("train", "dev", "test")}
        values["source"] = {"files": files, "columns": {"first": "one", "second": "two", "label": "label"}}
        self.values = values | {"task": task, "epochs": 1, "max_length": 32, "evaluations": 1, "batch_size": 16}
        self.values["precision"] = "float32"
        self.set()

    def set(self, **values: object) -> None:
        self.values |= values
        (self.path / "pairs" / "params.yaml").write_text(yaml.safe_dump({"pairs": self.values}), encoding="utf-8")

    def start(self, stage: str, *launcher: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", *launcher, f"stages.pairs.{stage}"]
        return subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    def run(self, stage: str) -> str:
        done = self.start(stage)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def error(self, stage: str) -> str:
        done = self.start(stage)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        return line.removeprefix("error: ")

    def figures(self, stage: str) -> dict[str, float]:
        return dict(json.loads((self.path / "metrics" / "pairs" / f"{stage}.json").read_text())["pairs"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "headline", "baseline"),
    [
        ("score", "spearman", "zero_shot"),
        ("duplicates", "average_precision", "zero_shot"),
        ("class", "accuracy", "linear_probe"),
    ],
)
def test_task_goes_from_rows_to_figures(tmp_path: Path, task: str, headline: str, baseline: str):
    place = Place(tmp_path, task)
    assert "192 of 192 pairs kept (144 train, 24 dev, 24 test)" in place.run("prepare")
    assert "144 pairs in " in place.run("train")
    shown = place.run("evaluate")
    assert headline in shown
    figures = place.figures("evaluate")
    assert figures["pairs"] == 24
    assert figures[f"{headline}_low"] <= figures[headline] <= figures[f"{headline}_high"]
    gain = figures[headline] - figures[f"{headline}_{baseline}"]
    assert figures[f"gain_vs_{baseline}"] == pytest.approx(gain)
    assert 0 < figures[f"p_vs_{baseline}"] <= 1
    named = [name for stage in ("prepare", "train", "evaluate") for name in place.figures(stage)]
    # else `dvc exp show` puts the name of the file before both columns
    assert len({*named, *PairParams.model_fields}) == len(named) + len(PairParams.model_fields)
    scored = pd.read_parquet(tmp_path / "data" / "pairs_scored.parquet")
    assert len(scored) == 24
    model = CrossEncoder(str(tmp_path / "models" / "pairs"))
    scores = model.predict([("the red saw", "a saw that is red"), ("the red saw", "a hoe")])
    if task == "class":
        assert scores.shape == (2, 2)
        assert json.loads((tmp_path / "models" / "pairs" / "classes.json").read_text()) == ["other", "same"]
        assert set(scored["fine_tuned"]) <= {0, 1}
    else:
        assert ((scores >= 0) & (scores <= 1)).all()
        pairs = pd.read_parquet(tmp_path / "data" / "pairs" / "pairs.parquet").set_index("pair_id")
        shown = pairs.loc[scored["pair_id"]]
        shipped = PairModel(tmp_path / "models" / "pairs", Compute())
        again = shipped.scores(shown["first"].tolist(), shown["second"].tolist())
        np.testing.assert_allclose(again, scored["fine_tuned"], atol=1e-5)
        assert ((again >= 0) & (again <= 1)).all()
        features = scored[["zero_shot", "cross_encoder"]].to_dict("series")
        np.testing.assert_allclose(fuse(features, shipped.weights), scored["fine_tuned"])


@pytest.mark.slow
def test_training_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path: Path):
    results = []
    for name, minutes in (("whole", None), ("killed", 0)):
        place = Place(tmp_path / name, "class")
        place.set(checkpoint_minutes=minutes)
        place.run("prepare")
        if name == "killed":
            # while the checkpoint after step 4 is written, and when the result is
            for end, goes_on in (
                ("checkpoint-4/trainer_state.json", ""),
                ("classes.json", "train: goes on from step 3"),
            ):
                died = place.start("train", "dying", "open", end)
                assert died.returncode == -signal.SIGKILL
                assert died.stdout.endswith("no trained ranking head, so it gets a new one with random weights\n")
                assert goes_on in died.stderr.splitlines() or not goes_on
                assert not (place.path / "models" / "pairs").exists()
            assert "train: goes on from step 9" in place.start("train").stderr.splitlines()
        else:
            place.run("train")
        files = ("models/pairs/model.safetensors", "metrics/pairs/train.json", "metrics/pairs/curve_dev.csv")
        results.append([(place.path / file).read_bytes() for file in files])
    assert results[0] == results[1]


def test_pair_on_two_sides_of_a_given_split_stops_unless_it_is_allowed(tmp_path: Path):
    place = Place(tmp_path, "duplicates")
    test = tmp_path / "data" / "raw" / "test.csv"
    test.write_text(test.read_text() + "A saw that is blue,the blue saw,1\n")
    line = place.error("prepare")
    assert line.startswith("pairs/params.yaml: source: 1 of the pairs of dev or test are also in an earlier split")
    assert "such as 'A saw that is blue' and 'the blue saw' (data/raw/test.csv: row 25); remove them" in line
    assert not (tmp_path / "metrics").exists()
    place.set(allow_leakage=True)
    place.run("prepare")
    assert place.figures("prepare")["leaked"] == 1


def test_leaks_name_the_first_three_places(tmp_path: Path):
    place = Place(tmp_path, "duplicates")
    raw = tmp_path / "data" / "raw"
    (raw / "dev.csv").write_text((raw / "train.csv").read_text())
    line = place.error("prepare")
    assert "144 of the pairs of dev or test are also in an earlier split" in line
    assert "(data/raw/dev.csv: row 1, data/raw/dev.csv: row 2, data/raw/dev.csv: row 3, …)" in line


def test_unused_columns_of_all_files_are_told_once(tmp_path: Path):
    place = Place(tmp_path, "duplicates")
    raw = tmp_path / "data" / "raw"
    for split, more in (("train", ["who", "when"]), ("test", ["when", "why"])):
        path = raw / f"{split}.csv"
        pd.read_csv(path).assign(**dict.fromkeys(more, "x")).to_csv(path, index=False)
    lines = [line for line in place.run("prepare").splitlines() if "unused" in line]
    assert lines == ["prepare: source: unused columns: when, why, who"]


def test_file_of_the_committed_parameters_that_is_not_there_is_one_line_that_says_what_to_do(tmp_path: Path):
    place = Place(tmp_path, "score")
    shutil.copy(ROOT / "pairs" / "params.yaml", tmp_path / "pairs" / "params.yaml")
    line = place.error("prepare")
    assert line.startswith("pairs/params.yaml: source: 'data/raw/pairs.csv' names no file; ")
    assert line.endswith("; docs/how-to/pairs.md says how to use your own files")
    assert (ROOT / "docs" / "how-to" / "pairs.md").is_file()


def test_split_of_one_label_stops(tmp_path: Path):
    place = Place(tmp_path, "duplicates")
    (tmp_path / "data" / "raw" / "dev.csv").write_text("one,two,label\na hammer,a nail,1\nsome pliers,some wire,1\n")
    assert "the dev split has 2 pairs and 1 different labels, but needs at least two of both" in place.error("prepare")


def test_no_pair_left_says_why(tmp_path: Path):
    place = Place(tmp_path, "score")
    for path in (tmp_path / "data" / "raw").iterdir():
        path.write_text("one,two,label\na,,1\n")
    assert place.error("prepare").endswith("source: no pairs are left of 3 rows; dropped 3 as empty")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "ranking"}, "pairs.task: 'ranking' is not allowed: it should be 'score', 'duplicates' or 'class'"),
        ({"lr": 0}, "pairs.lr: 0 is not allowed: it should be greater than 0"),
        ({"learning_rate": 1}, "pairs: unknown key 'learning_rate'"),
        ({"lowest_score": 1.0}, "pairs.highest_score: 1.0: must be above lowest_score"),
        ({"evaluations": [8, 4]}, "pairs.evaluations: [8, 4]: must be ascending steps, each once"),
        ({"source": {"files": "data/raw/a.csv"}}, "pairs.source: key 'columns' is missing"),
    ],
)
def test_parameter_that_is_not_allowed_is_named(tmp_path: Path, values: dict[str, object], message: str):
    place = Place(tmp_path, "score")
    place.set(**values)
    assert place.error("prepare").startswith(f"pairs/params.yaml: {message}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "path"), [("train", "data/pairs/pairs.parquet"), ("evaluate", "data/pairs/pairs.parquet")]
)
def test_stage_before_prepare_names_it(tmp_path: Path, stage: str, path: str):
    line = Place(tmp_path, "score").error(stage)
    assert line.startswith(
        f"{path} does not exist: run the stage that makes it with `dvc repro pairs/dvc.yaml:prepare`"
    )


def test_committed_parameters_are_valid_and_in_the_order_of_the_schema():
    path = ROOT / "pairs" / "params.yaml"
    read_params(path)
    assert list(yaml.safe_load(path.read_text(encoding="utf-8"))["pairs"]) == list(PairParams.model_fields)


def test_missing_file_of_parameters_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        read_params(tmp_path / "params.yaml")


def prepare_recipe(path: Path, name: str, raw: Path) -> dict[str, float]:
    """Run prepare of a recipe, and give its figures."""
    (path / "pairs").mkdir()
    recipe = (ROOT / "recipes" / "pairs" / f"{name}.yaml").read_text(encoding="utf-8")
    text, _ = apply_recipe((ROOT / "pairs" / "params.yaml").read_text(encoding="utf-8"), recipe)
    (path / "pairs" / "params.yaml").write_text(text, encoding="utf-8")
    (path / "data").mkdir()
    (path / "data" / "raw").symlink_to(raw)
    done = subprocess.run(
        [sys.executable, "-m", "stages.pairs.prepare"],
        cwd=path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads((path / "metrics" / "pairs" / "prepare.json").read_text())["pairs"])


@pytest.mark.parametrize(("name", "rows"), [("stsb", 8628), ("covid", 488)])
def test_recipe_reads_the_real_files(tmp_path: Path, name: str, rows: int):
    folder = ROOT.parent / "shared" / "data"
    if not (folder / name).is_dir():
        pytest.skip(f"the real files of {name} are not here")
    figures = prepare_recipe(tmp_path, name, folder)
    assert figures["rows"] == rows
    assert min(figures[split] for split in ("train", "dev", "test")) >= 30


def test_recipe_reads_quora_as_published(tmp_path: Path):
    table = rows("duplicates").rename(columns={"one": "question1", "two": "question2", "label": "is_duplicate"})
    texts = ["question1", "question2"]
    table = pd.concat([table.assign(**{text: f"{lot}, " + table[text] for text in texts}) for lot in KINDS])
    table = table.drop(columns="split").assign(id=range(len(table)), qid1=0, qid2=1)
    raw = tmp_path / "files" / "quora"
    raw.mkdir(parents=True)
    table.to_csv(raw / "quora_duplicate_questions.tsv", sep="\t", index=False)
    figures = prepare_recipe(tmp_path, "quora", tmp_path / "files")
    assert figures["rows"] == len(table)
    assert min(figures[split] for split in ("train", "dev", "test")) >= 2


def test_recipe_reads_snli_as_published(tmp_path: Path):
    hypotheses = {
        "entailment": "Someone is out.",
        "contradiction": "Nobody is there.",
        "neutral": "It is late.",
        "-": "Hm.",
    }
    premises = {
        "train": ["A man walks a dog.", "Two girls read.", "A bus waits."],
        "dev": ["A cook stirs soup."],
        "test": ["A child is on a swing."],
    }
    raw = tmp_path / "files" / "nli"
    raw.mkdir(parents=True)
    for split, texts in premises.items():
        lines = [
            {"annotator_labels": [label], "gold_label": label, "pairID": f"{place}{label[0]}", "sentence1": text,
             "sentence1_parse": f"(ROOT {text})", "sentence2": hypothesis}
            for place, text in enumerate(texts) for label, hypothesis in hypotheses.items()
        ]  # fmt: skip
        (raw / f"snli_1.0_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = prepare_recipe(tmp_path, "nli", tmp_path / "files")
    assert (figures["rows"], figures["dropped_skipped_label"], figures["leaked"]) == (20, 5, 0)
    pairs = pd.read_parquet(tmp_path / "data" / "pairs" / "pairs.parquet")
    assert {split: {*part["first"]} for split, part in pairs.groupby("split")} == {
        split: {*texts} for split, texts in premises.items()
    }
    named = pairs.groupby("second")[["class", "label"]].agg(set).to_dict("index")
    assert named == {
        hypotheses[name]: {"class": {name}, "label": {place}}
        for place, name in enumerate(("contradiction", "entailment", "neutral"))
    }


class Clone:
    """The files that DVC reads of this repository, committed to one of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        me = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self.environment = {**os.environ, **me}
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", ".dvc", "*dvc.yaml", "*params.yaml",
             "metrics", "report"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        for name in listed.stdout.splitlines():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
            subprocess.run(["git", *command], cwd=path, env=self.environment, check=True)

    def dvc(self, *arguments: str) -> str:
        """What the command prints; it must have nothing to complain about."""
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.mark.slow
def test_dvc_lists_the_figures_of_a_run_and_does_not_warn_where_there_was_none(tmp_path: Path):
    clone = Clone(tmp_path)
    for command in ("metrics show", "metrics diff", "exp show --csv", "plots diff"):
        assert "pairs.spearman" not in clone.dvc(*command.split())
    metrics = tmp_path / "metrics" / "pairs"
    (metrics / "evaluate.json").write_text('{"pairs": {"spearman": 0.75}}')
    (metrics / "curve_dev.csv").write_text("step,spearman\n20,0.5\n40,0.75\n")
    (changed,) = json.loads(clone.dvc("metrics", "diff", "--json")).items()
    assert changed == ("metrics/pairs/evaluate.json", {"pairs.spearman": {"old": None, "new": 0.75}})
    shown = clone.dvc("exp", "show", "--csv").splitlines()
    assert "pairs.spearman" in shown[0].split(",")
    clone.dvc("plots", "show")
    (page,) = tmp_path.glob("dvc_plots/*.html")
    drawn = page.read_text()
    for name in ("the pairs of dev", "training loss", "dev NDCG@10", "systems.svg", "gains.svg"):
        assert name in drawn
