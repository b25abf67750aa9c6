"""Tests of experiments: pure functions on literal runs, and the command on a repository with real experiments."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from reranker.common.errors import UserError
from reranker.common.revisions import Lock, Revision
from reranker.review.experiment_table import experiments_page
from reranker.review.experiments import changes, incomparable, judge, settings, sort_lines
from reranker.review.runs import Run, dotted
from tools.experiments import UNFINISHED, Experiment, main, usable_run

QUERIES = [f"q{place:02}" for place in range(40)]


def run(
    name: str, gain: float = 0.0, *, dev: float = 0.4, files: dict[str, str] | None = None, **params: object
) -> Run:
    """A run in which the NDCG@10 of each query is 0.5 + `gain`; that of the cross-encoder never changes."""
    test = pd.DataFrame({"reranker": 0.5 + gain, "cross_encoder": 0.3}, index=QUERIES)
    deps = [{"path": path, "md5": md5} for path, md5 in (files or {"stages/train.py": "a"}).items()]
    return Run(
        name=name,
        commit=None,
        params={"lr": 1e-4, "seed": 12, **params},
        lock=Lock({"evaluate": {"deps": deps}}),
        figures={"train": {"dev_ndcg@10": dev, "dev_ndcg@10_cross_encoder": 0.2}, "prepare": {"queries_dev": 7}},
        per_query=test,
        costs=pd.DataFrame(columns=["system"]),
        raw={},
    )


def names(runs: list[Run]) -> list[list[str]]:
    return [[each.name for each in setting.runs] for setting in settings(runs)]


def test_runs_that_differ_in_seed_alone_are_one_setting():
    runs = [run("a"), run("b", lr=2e-5), run("c", seed=13), run("d", lr=2e-5, seed=14), run("e", mining_seed=2)]
    assert names(runs) == [["a", "c"], ["b", "d"], ["e"]]


def test_run_with_other_code_is_another_setting():
    edited = run("edited", files={"stages/train.py": "b"}, seed=13)
    assert names([run("a"), edited]) == [["a"], ["edited"]]
    assert changes(edited, run("a")) == ["other stages/train.py"]


def test_run_that_repeats_another_to_the_digit_counts_once():
    shuffled = run("again")
    shuffled = replace(shuffled, per_query=shuffled.per_query.iloc[::-1])
    assert names([run("a"), shuffled, run("c", seed=13), run("d", gain=0.01)]) == [["a = again", "c", "d"]]


def test_mean_and_sample_deviation_over_seeds():
    (setting,) = settings([run("a", 0.0, dev=0.4), run("b", 0.02, dev=0.5, seed=13), run("c", 0.04, dev=0.6, seed=14)])
    assert setting.test("reranker") == pytest.approx((0.52, 0.02))
    assert setting.dev("reranker") == pytest.approx((0.5, 0.1))
    assert settings([run("a")])[0].dev("reranker").deviation is None


def test_changes_are_named_as_in_the_file_of_parameters():
    ours = run("a", lr=2e-5, seed=99, group_guard=False, rescorer=None, retriever=["bm25", "x"], new=1)
    base = run("b", group_guard=True, rescorer="biencoder", retriever="x", old=2)
    assert changes(ours, base) == [
        "lr=2e-05", "group_guard=false", "rescorer=null", "retriever=[bm25, x]", "new=1", "old=(absent)",
    ]  # fmt: skip


def test_nested_keys_are_dotted():
    assert dotted({"a": 1, "b": {"c": {"d": [2]}, "e": {}}}) == {"a": 1, "b.c.d": [2], "b.e": {}}


def test_other_queries_cannot_be_compared():
    fewer = replace(run("a"), per_query=run("a").per_query.iloc[3:].rename(index={QUERIES[5]: "new"}))
    assert "(1 new, 4 gone)" in str(incomparable(fewer, run("b")))
    dev, unknown = (replace(run("a"), figures={"prepare": figures}) for figures in ({"queries_dev": 8}, {}))
    assert "8 dev queries, the baseline has 7" in str(incomparable(dev, run("b")))
    assert incomparable(unknown, run("b")) is None
    assert incomparable(run("a", lr=1.0), run("b")) is None


def test_settings_are_compared_with_all_seeds_of_the_baseline():
    runs = [run("x", 0.1, lr=2e-5), run("s13", 0.04, seed=13), run("main")]
    baseline, other = judge(runs, runs[2], seed=1)
    assert [each.name for each in baseline.setting.runs] == ["main", "s13"]
    assert baseline.differences == {}
    difference = other.differences["reranker"]
    assert difference.mean == pytest.approx(0.1 - 0.02)
    assert difference.interval == pytest.approx((0.06, 0.1))  # the seeds of the baseline; all queries agree
    assert difference.p < 0.001
    assert other.differences["cross_encoder"].p == 1


def test_p_values_are_corrected_for_the_settings_compared_and_not_for_their_seeds():
    alone = judge([run("x", 0.1, lr=2e-5), run("y", 0.1, lr=2e-5, seed=13)], run("main"), seed=1)
    two = judge([run("x", 0.1, lr=2e-5), run("y", 0.1, lr=3e-5)], run("main"), seed=1)
    assert alone[1].differences["reranker"].adjusted_p == alone[1].differences["reranker"].p
    assert two[1].differences["reranker"].adjusted_p == pytest.approx(2 * two[1].differences["reranker"].p)


def test_lines_are_sorted_by_dev_unless_a_figure_of_test_is_chosen():
    lines = judge([run("x", 0.1, dev=0.3, lr=1.0), run("y", -0.1, dev=0.5, lr=2.0)], run("main"), seed=1)

    def order(figure: str) -> list[str]:
        return [line.setting.runs[0].name for line in sort_lines(lines[::-1], figure)]

    assert order("dev_ndcg@10") == ["y", "main", "x"]
    assert order("ndcg@10") == ["x", "main", "y"]
    assert order("dev_ndcg@10_cross_encoder") == order("ndcg@10_cross_encoder") == ["main", "x", "y"]


def test_page_says_what_is_beyond_noise_and_what_is_not():
    lines = judge([run("good", 0.1, lr=2e-5), run("same", 0.0, lr=3e-5)], run("main"), seed=1)
    page = experiments_page(lines, ["bad: failed"], "dev_ndcg@10", markdown=False)
    assert re.search(r"0\.400 +0\.600 +\+0\.100 \[\+0\.100, \+0\.100\] +< 0\.001 +< 0\.001 +1  lr=2e-05 \(good\)", page)
    assert re.search(r"0\.400 +0\.500 +– +– +– +1  nothing: the baseline \(main\)", page)
    text = " ".join(page.split())
    assert "Sorted by dev_ndcg@10: choose on dev" in text
    assert "2 comparisons per table" in text
    assert "Reranker (shipped: fused), differences on test beyond the noise of queries (corrected p below 0.05): better: lr=2e-05 (good)." in text  # fmt: skip # noqa: E501
    rest = "differences on test beyond the noise of queries (corrected p below 0.05): none."
    assert f"Cross-encoder, fine-tuned, alone, {rest}" in text
    assert "Left out: bad: failed." in text
    assert "A single run does not show" in text


def test_one_comparison_has_no_corrected_column_and_several_runs_no_warning():
    runs = [run("x", 0.1, lr=2e-5), run("y", 0.1, lr=2e-5, seed=13), run("z", 0.01, seed=13)]
    page = experiments_page(judge(runs, run("main"), seed=1), [], "ndcg@10", markdown=False)
    assert "Holm" not in page
    assert "A single run" not in page
    assert "Names joined" not in page
    assert "a figure of test, which only serves to report" in " ".join(page.split())


def test_page_explains_names_of_one_run() -> None:
    lines = judge([run("x", 0.1, lr=2e-5), run("y", 0.1, lr=2e-5)], run("main"), seed=1)
    page = experiments_page(lines, [], "dev_ndcg@10", markdown=False)
    assert " 1  lr=2e-05 (x = y)" in page
    assert "Names joined by = have the same parameters, seed and figures: one run." in page


def test_markdown_has_the_same_cells_and_breaks_on_no_value():
    lines = judge([run("a|b", 0.1, lr=2e-5)], run("main"), seed=1)
    page = experiments_page(lines, [], "dev_ndcg@10", markdown=True)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert r"| lr=2e-05 (a\|b) | 0.400 | 0.600 | +0.100 [+0.100, +0.100] | < 0.001 | 1 |" in rows
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}


STAGES = """
stages:
  train:
    cmd: python train.py
    deps: [train.py]
    params: [lr, seed]
    outs: [{model.json: {cache: false}}]
    metrics: [{metrics/train.json: {cache: false}}]
  evaluate:
    cmd: python evaluate.py
    deps: [model.json]
    params: [queries]
    metrics: [{metrics/per_query.csv: {cache: false}}, {metrics/prepare.json: {cache: false}}]
    outs: [{metrics/evaluate.json: {cache: false}}]
"""
TRAIN = """
import json, os, re
text = open("params.yaml").read()
lr, seed = float(re.search("lr: (.+)", text)[1]), int(re.search("seed: (.+)", text)[1])
assert lr < 1, "diverged"
gain = (1e-4 - lr) * 1000 + (seed - 12) / 500
os.makedirs("metrics", exist_ok=True)
json.dump(gain, open("model.json", "w"))
json.dump({"dev_ndcg@10": 0.4 + gain, "dev_ndcg@10_cross_encoder": 0.3}, open("metrics/train.json", "w"))
"""
EVALUATE = """
import json, re
number = int(re.search("queries: (.+)", open("params.yaml").read())[1])
gain = json.load(open("model.json"))
rows = [f"q{n},{0.5 + gain},{0.3 + n / 1000}" for n in range(number)]
open("metrics/per_query.csv", "w").write("\\n".join(["query_id,reranker,cross_encoder", *rows, ""]))
json.dump({"queries_dev": 7}, open("metrics/prepare.json", "w"))
json.dump({"ndcg@10": 0.5 + gain}, open("metrics/evaluate.json", "w"))
"""


def shell(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=variables)


def run_experiment(folder: Path, name: str, *overrides: str, stage: str = "evaluate") -> None:
    """Run an experiment like a user, from the files of the commit."""
    settings = [part for override in overrides for part in ("-S", override)]
    done = shell(folder, "dvc", "exp", "run", "--name", name, *settings, stage)
    assert done.returncode == 0, done.stderr
    shell(folder, "git", "checkout", ".")


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the metrics of its commit and no experiments."""
    folder = tmp_path_factory.mktemp("committed")
    for name, text in {"dvc.yaml": STAGES, "train.py": TRAIN, "evaluate.py": EVALUATE}.items():
        (folder / name).write_text(text)
    (folder / "params.yaml").write_text("lr: 1e-4\nseed: 12\nqueries: 40\nevaluation: {seed: 1}\n")
    for command in (
        "git init -q -b main", "git config user.email a@example.org", "git config user.name a", "dvc init -q",
        "dvc config core.analytics false", "dvc repro -q", "git add -A", "git commit -qm run",
    ):  # fmt: skip
        done = shell(folder, *command.split())
        assert done.returncode == 0, f"{command}: {done.stderr}"
    return folder


@pytest.fixture(scope="module")
def tried(committed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same repository with experiments: seeds, another lr, other data, a run of one stage, and one that fails."""
    folder = tmp_path_factory.mktemp("tried") / "repository"
    shutil.copytree(committed, folder)
    run_experiment(folder, "seed-13", "seed=13")
    run_experiment(folder, "low", "lr=2e-5")
    run_experiment(folder, "low-13", "lr=2e-5", "seed=13")
    run_experiment(folder, "fewer", "queries=39")
    run_experiment(folder, "train-only", "lr=3e-5", stage="train")
    shell(folder, "dvc", "exp", "run", "--queue", "--name", "high", "-S", "lr=2", "evaluate")
    return folder


@pytest.mark.slow
def test_seeds_are_one_line_and_incomparable_runs_are_named(tried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tried)
    page = main([])
    text = " ".join(page.split())
    rows = re.findall(r"^ *0\.\d{3} .*", page, flags=re.MULTILINE)
    assert [row.split("  ")[-1] for row in rows] == [
        "lr=2e-05 (low, low-13)",
        "nothing: the baseline (main, seed-13)",
    ] * 2
    assert "0.481 ± 0.001  0.581 ± 0.001  +0.080 [+0.078, +0.082]  < 0.001     2" in rows[0]
    assert "Left out: fewer: other test queries than the baseline's (0 new, 1 gone)" in text
    assert "Left out: train-only: only some stages ran with its parameters, not evaluate." in text
    assert "Left out: high: queued, without figures." in text


@pytest.mark.slow
def test_baseline_may_be_an_experiment(tried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tried)
    page = main(["--baseline", "low-13", "--sort", "ndcg@10", "--markdown"])
    rows = [line for line in page.splitlines() if line.startswith(("| nothing", "| lr"))]
    assert rows[0].startswith("| nothing: the baseline (low-13, low) |")
    assert rows[1].startswith("| lr=0.0001 (main, seed-13) | 0.401 ± 0.001 | 0.501 ± 0.001 | −0.080 [−0.082, −0.078]")


@pytest.mark.slow
def test_make_experiments_shows_few_columns_best_on_dev_first(tried: Path) -> None:
    makefile = Path(__file__).resolve().parents[2] / "Makefile"
    # make that was started by another make, as `make test` does, would name the folder
    done = shell(
        tried, "make", "--no-print-directory", "-f", str(makefile), "-o", ".venv/.installed", "experiments", "KEYS=lr"
    )
    assert done.returncode == 0, done.stderr
    _, head, _, *rows = (line.split() for line in done.stdout.splitlines())
    assert [word for word in head if word not in ("State", "Created")] == ["Experiment", "dev_ndcg@10", "lr"]
    named = [row[2].strip("[]") for row in rows if row[0] in ("├──", "└──")]
    assert named.index("low-13") < named.index("low") < named.index("seed-13")


@pytest.mark.slow
@pytest.mark.parametrize("state", UNFINISHED)
def test_experiment_that_has_not_succeeded_is_not_read(
    state: str, tried: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC shows the figures of its commit for it."""
    monkeypatch.chdir(tried)
    with pytest.raises(UserError, match=f"^bad: {state.lower()}, without figures$"):
        usable_run(Experiment(Revision("bad", "HEAD"), state))


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("metrics/train.json", "{}", r"its metrics lack dev_ndcg@10, dev_ndcg@10_cross_encoder"),
        ("metrics/train.json", "{", r"its metrics/train\.json cannot be read"),
        ("metrics/per_query.csv", "", r"its metrics/per_query\.csv cannot be read"),
        ("metrics/per_query.csv", "query_id,reranker\nq1,\n", r"its metrics/per_query\.csv cannot be read"),
        ("metrics/per_query.csv", "query_id,reranker\nq1,0.5\n", r"its metrics lack cross_encoder"),
        ("params.yaml", "<<<<<<< ours\nlr: [", r"its params\.yaml cannot be read"),
        ("dvc.lock", "stages: {}", r"the stage evaluate did not run"),
    ],
)
def test_commit_with_unreadable_figures_is_an_error_of_one_line(
    path: str, text: str, reason: str, committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(committed, folder)
    (folder / path).write_text(text)
    shell(folder, "git", "commit", "-qam", "damaged")
    monkeypatch.chdir(folder)
    assert usable_run(Experiment(Revision("whole", "HEAD~1"), None)).dev == {"reranker": 0.4, "cross_encoder": 0.3}
    with pytest.raises(UserError, match=f"^damaged: {reason}"):
        usable_run(Experiment(Revision("damaged", "HEAD"), None))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "nowhere"], r"error: the baseline nowhere: git knows no such revision .*--baseline"),
        (["--baseline", "train-only"], r"error: the baseline train-only: only some stages ran .*--baseline"),
    ],
)
def test_baseline_without_figures_is_an_error_of_one_line(tried: Path, arguments: list[str], message: str) -> None:
    done = command(tried, *arguments)
    assert done.returncode == 1
    assert re.fullmatch(f"{message}.*\n", done.stderr)


def test_commit_without_experiments_is_an_error_of_one_line(committed: Path) -> None:
    done = command(committed)
    assert done.returncode == 1
    assert done.stderr == "error: main has no experiments; make one with `dvc exp run -S lr=2e-5`\n"


def test_folder_without_dvc_is_an_error_of_one_line(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: DVC cannot list the experiments: ")
    assert done.stderr.count("\n") == 1


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})"
    start = "from tools.experiments import main; from reranker.common.progress import run_stage"
    return shell(folder, sys.executable, "-c", f"{code}\n{start}\nsys.exit(run_stage(main, {list(arguments)!r}))")
