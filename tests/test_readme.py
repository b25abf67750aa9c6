"""The README's figures are those of the committed metrics, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from tools.readme import results, with_results

ROOT = Path(__file__).resolve().parent.parent


def test_the_result_table_is_the_one_of_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_results(readme, results()) == readme, "run `make readme`"


@pytest.mark.parametrize("readme", ["# no markers", "<!-- results -->\nx\n<!-- /results -->\n" * 2])
def test_readme_without_its_markers_or_with_two_pairs_is_refused(readme: str) -> None:
    with pytest.raises(ValueError, match="markers"):
        with_results(readme, "| a |")


def test_block_is_taken_as_it_is() -> None:
    written = with_results("a\n<!-- results -->\nold\n<!-- /results -->\nb", r"| \_x \1 |")
    assert written == "a\n<!-- results -->\n| \\_x \\1 |\n<!-- /results -->\nb"


def test_links_to_files_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert not broken


def test_every_parameter_is_explained() -> None:
    text = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    keys = re.findall(r"^(\w+):", (ROOT / "params.yaml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    explained = set(re.findall(r"`(\w+)`", text))
    assert {key for key in keys if not key.startswith("warm_")} <= explained
