"""The README's figures are those of the committed metrics, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

from reranker.common.params import Params
from reranker.common.source_schema import Section
from tools.readme import with_block, with_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them: small letters, hyphens for blanks, no other punctuation."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links to files that are not there, and to headings that a page does not have."""
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{page.name}: {link}")
    return broken


def test_the_tables_are_those_of_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_blocks(readme) == readme, "run `make readme`"


@pytest.mark.parametrize("readme", ["# no markers", "<!-- results -->\nx\n<!-- /results -->\n" * 2])
def test_readme_without_its_markers_or_with_two_pairs_is_refused(readme: str) -> None:
    with pytest.raises(ValueError, match="markers"):
        with_block(readme, "results", "| a |")


def test_block_is_taken_as_it_is() -> None:
    readme = "a\n<!-- results -->\nold\n<!-- /results -->\nb"
    assert with_block(readme, "results", r"| \_x \1 |") == "a\n<!-- results -->\n| \\_x \\1 |\n<!-- /results -->\nb"


def test_links_lead_to_a_file_and_a_heading_that_are_there() -> None:
    assert ROOT / "docs" / "how-to" / "your-data.md" in PAGES
    assert [link for page in PAGES for link in broken_links(page)] == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    headings = "# The `lr_*` rates, and more\n\n```bash\n# no heading\n```\n"
    links = "[](#the-lr_-rates-and-more) [](a.md) [](a.md#the-lr_-rates-and-more) [](https://x.org/#y)"
    page.write_text(f"{headings}{links} [](b.md) [](#no-heading) [](a.md#gone)\n```\n[](in-code.md)\n```\n")
    assert broken_links(page) == ["a.md: b.md", "a.md: #no-heading", "a.md: a.md#gone"]


def test_every_parameter_is_explained() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    schemas = {key: field.annotation for key, field in Params.model_fields.items()}
    sections = {key for key, schema in schemas.items() if isinstance(schema, type) and issubclass(schema, Section)}
    inside = {f"{section}.{key}" for section in sections for key in params[section]}
    text = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert (params.keys() - sections) | inside <= set(re.findall(r"`([\w.]+)`", text))
