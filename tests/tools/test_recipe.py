"""Tests of recipes: each one is applied to the committed parameters, and the result is valid."""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from reranker.common.errors import UserError
from reranker.common.params import load_params
from reranker.pairs.params import read_params
from reranker.review.runs import dotted
from tools import recipe

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in ROOT.glob("recipes/**/*.yaml"))
NAMED = ("sources.", "loss_arguments", "trainer", "pairs.source.")
"""Keys whose value goes as a whole."""
PARAMS = """# The file
sources:            # the text
  docs:
    packages:       # names
    - numpy

# How
lr: 1e-4            # rate
lora: null          # adapters
index:              # a section
  kind: auto        # its kind
  min_recall: 0.9

# The end
seed: 1
"""


def values(path: Path) -> dict[str, object]:
    return dotted(YAML(typ="safe", pure=True).load(path))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "pairs").mkdir()
    for name in ("params.yaml", "pairs/params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_recipe_changes_the_keys_that_it_names_and_is_valid(project: Path, name: str) -> None:
    path = project / ("pairs/params.yaml" if name.startswith("pairs/") else "params.yaml")
    before, text = values(path), path.read_text(encoding="utf-8")
    line = recipe.main([name]).splitlines()[-1]
    after, wanted = values(path), values(project / f"recipes/{name}.yaml")
    read_params(path) if name.startswith("pairs/") else load_params(path)
    assert {key: after[key] for key in wanted} == wanted
    changed = {key for key in {*before, *after} if before.get(key, "") != after.get(key, "")}
    assert changed <= {*wanted} | {key for key in before if key.startswith(NAMED)}
    assert line.startswith(f"recipe: {name}: ")
    # a comment goes only with what it stands in
    comments = {part for part in text.splitlines() if part.startswith("#")}
    assert comments <= {*path.read_text(encoding="utf-8").splitlines()}
    assert f"make recipe NAME={name}" in (project / f"recipes/{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_recipe_has_no_key_whose_value_is_the_committed_one(name: str) -> None:
    committed = values(ROOT / ("pairs/params.yaml" if name.startswith("pairs/") else "params.yaml"))
    recipe_values = values(ROOT / f"recipes/{name}.yaml")
    same = [key for key, value in recipe_values.items() if committed.get(key, "") == value]
    assert [key for key in same if not key.startswith("pairs.source.")] == []


def test_comments_blank_lines_and_nulls_stay() -> None:
    sources = "  faq:\n    files: a.csv\n    columns: {query: q}\n"
    text, changed = recipe.apply_recipe(PARAMS, f"sources:  # ours\n{sources}lora: {{r: 8}}\nindex: {{kind: flat}}\n")
    expected = PARAMS.replace("  docs:\n    packages:       # names\n    - numpy\n", sources)
    expected = expected.replace("lora: null          #", "lora: {r: 8}        #")
    assert text == expected.replace("kind: auto        #", "kind: flat        #")
    assert changed[1:] == ['lora: null -> {"r": 8}', 'index.kind: "auto" -> "flat"']


@pytest.mark.parametrize("arguments", [[], ["no-such"], ["medquad", "tldr"]])
def test_unknown_recipe_is_one_line_with_those_that_there_are(project: Path, arguments: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"^make recipe NAME=…: name one of the recipes distillation, gooaq, .*pairs/stsb"
    ):
        recipe.main(arguments)


def test_recipe_that_does_not_fit_leaves_the_parameters_as_they_were(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    (project / "recipes" / "wrong.yaml").write_text("lr: fast\n", encoding="utf-8")
    with pytest.raises(UserError, match="lr: 'fast' is not allowed"):
        recipe.main(["wrong"])
    assert (project / "params.yaml").read_bytes() == before
