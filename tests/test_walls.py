"""Who may import whom: the table of CONTRIBUTING.md, held against the syntax trees."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| `(\w+)` \| .+ \| (.+) \|$", re.MULTILINE)
MOST = 10
"""Modules of a folder."""


def walls() -> dict[str, set[str]]:
    """The packages of the table, and the packages that each may import."""
    rows = ROW.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    return {package: {*re.findall(r"`(\w+)`", others)} for package, others in rows}


def imported(text: str, package: str = "") -> set[str]:
    """The packages of reranker that a text of code imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("reranker.")}
    return found - {package}


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")


def test_table_names_each_package_of_reranker() -> None:
    folders = {path.name for path in (ROOT / "reranker").iterdir() if path.is_dir() and modules(path)}
    assert {*walls()} == folders
    assert len(folders) == 10
    assert {name for others in walls().values() for name in others} <= folders


@pytest.mark.parametrize("package", walls())
def test_package_imports_only_what_the_table_allows(package: str) -> None:
    for path in (ROOT / "reranker" / package).rglob("*.py"):
        others = imported(path.read_text(encoding="utf-8"), package)
        assert others <= walls()[package], path.relative_to(ROOT)


def test_table_allows_no_circle() -> None:
    waiting = walls()
    while free := {package for package, others in waiting.items() if not others & {*waiting}}:
        waiting = {package: others for package, others in waiting.items() if package not in free}
    assert waiting == {}


def test_nothing_in_reranker_imports_stages_tools_or_benchmarks() -> None:
    for path in (ROOT / "reranker").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (stages|tools|benchmarks)\b", text, re.MULTILINE), path


def test_reranker_has_no_module_of_its_own_and_a_folder_ten_at_most() -> None:
    assert modules(ROOT / "reranker") == []
    counts = {
        path.relative_to(ROOT).as_posix(): len(modules(path))
        for path in (ROOT / "reranker").rglob("*")
        if path.is_dir()
    }
    assert {folder: number for folder, number in counts.items() if number > MOST} == {}


def test_tests_lie_in_folders_of_the_same_names() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and list(path.glob("test_*.py"))}
    assert folders - {"stages", "tools"} == {*walls()}


def test_imports_are_seen_wherever_they_stand() -> None:
    text = "import reranker.data.cleaning\nfrom reranker import mining\ndef f():\n    from reranker.report import a\n"
    assert imported(text) == {"data", "mining", "report"}
    assert imported(text, "data") == {"mining", "report"}
