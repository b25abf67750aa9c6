import sys
from pathlib import Path

import pytest

from reranker.common.errors import UserError
from reranker.data.cleaning import Example
from reranker.data.sources import pydocs

FILES = {
    "toybox/__init__.py": '"""Tools for toys.\n\nMore about them."""\nraise RuntimeError("imported")\n',
    "toybox/shapes.py": '''
def circle():
    """Draw a circle.

    Around a centre.
    """

def _hidden():
    """Not for users."""

def silent():
    pass

class Square:
    """Draw a square."""

    async def paint(self):
        """Fill it.

        With a colour.
        """

    def _secret(self):
        """Not for users."""
''',
    "toybox/broken.py": 'def f(:\n    """Never read."""\n',
    "toybox/tests/helper.py": '"""Helps tests.\n\nOnly them."""\n',
    "toybox/test_shapes.py": '"""Checks shapes.\n\nAll of them."""\n',
    "toybox/notes.txt": "not Python",
}


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path in which the distribution `toy-box` is installed."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    info = tmp_path / "toy_box-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-box\nVersion: 1.0\n", encoding="utf-8")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in FILES), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_summary_is_the_query_and_the_rest_of_the_docstring_the_passage(site_packages: Path):
    [(examples, *_)] = pydocs.read(["toy-box"])
    assert examples == [
        Example("toybox", "Tools for toys.", "More about them."),
        Example("toybox.shapes.circle", "Draw a circle.", "Around a centre."),
        Example("toybox.shapes.Square", "Draw a square.", ""),
        Example("toybox.shapes.Square.paint", "Fill it.", "With a colour."),
    ]


@pytest.mark.parametrize("summary", ["Parameters: x the number", "See also : numpy.max", "sort(`x` int)"])
def test_docstring_that_begins_with_a_list_of_fields_has_no_summary(site_packages: Path, summary: str):
    (site_packages / "toybox" / "shapes.py").write_text(f'"""{summary}\n\nMore."""\n', encoding="utf-8")
    [(examples, *_)] = pydocs.read(["toy-box"])
    assert Example("toybox.shapes", "", "More.") in examples


def test_packages_are_parsed_but_never_imported(site_packages: Path):
    list(pydocs.read(["toy-box"]))  # its __init__ raises
    assert "toybox" not in sys.modules


def test_private_names_and_test_files_are_left_out(site_packages: Path):
    [(examples, *_)] = pydocs.read(["toy-box"])
    origins = {example.origin for example in examples}
    assert not origins & {"toybox.shapes._hidden", "toybox.shapes.Square._secret"}
    assert not any("test" in origin for origin in origins)


def test_file_with_a_syntax_error_is_skipped_and_the_others_are_read(site_packages: Path):
    [(examples, *_)] = pydocs.read(["toy-box"])
    assert examples
    assert not any("broken" in example.origin for example in examples)


def test_packages_come_in_the_order_asked_for_and_the_same_each_time(site_packages: Path):
    first, second = (list(pydocs.read(["toy-box", "tqdm"])) for _ in range(2))
    assert first == second
    assert [part.share for part in first] == [0.5, 1.0]
    assert first[0].examples[0].origin == "toybox"
    assert all(example.origin.startswith("tqdm") for example in first[1].examples)


def test_package_that_is_not_installed_is_named(site_packages: Path):
    with pytest.raises(UserError, match=r"sources: 'no-such-package' is not installed; .* install no-such-package"):
        list(pydocs.read(["toy-box", "no-such-package"]))


def test_installation_without_a_file_list_is_named(site_packages: Path):
    (site_packages / "toy_box-1.0.dist-info" / "RECORD").unlink()
    with pytest.raises(UserError, match="the installation of 'toy-box' lists no files"):
        list(pydocs.read(["toy-box"]))
