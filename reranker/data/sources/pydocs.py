"""Reads docstrings of installed packages, which are real text that needs no other download than the packages."""

import ast
import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

from reranker.common.errors import UserError
from reranker.data.cleaning import Example, Part

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FIELDS = re.compile(
    r"\s*((args|arguments|parameters|returns?|yields|raises|examples?|notes?|see also)\s*:|\w+ ?\(`)", re.IGNORECASE
)
"""Matches the beginning of a docstring that has no summary."""


def read(packages: Sequence[str]) -> Iterator[Part]:
    """Read docstrings, whose summary is the query and whose rest is the passage.

    The packages' source files are parsed on all cores and never imported. Definitions whose names begin with `_` and
    test files are left out, because they document nothing that a user looks for. Files whose names begin with `_` are
    read, because packages define public names there.

    Args:
        packages: distribution names as `pip list` shows them, e.g. `scikit-learn`.

    Yields:
        The examples of each package, one for each module and public definition that has a docstring, in the order of
        the file paths. Definitions are read at the top of a file and inside public classes and functions, but not under
        `if` or `try`. The passage is empty if the docstring is only a summary. The query is empty if there is none.

    Raises:
        UserError: a package is not installed, or its installation lists no files.
    """
    files = {package: _source_files(package) for package in packages}
    with ProcessPoolExecutor(mp_context=get_context("forkserver")) as pool:  # a fork of threads can hang
        for number, package in enumerate(packages, start=1):
            by_file = pool.map(_file_examples, files[package], chunksize=32)
            yield Part([example for examples in by_file for example in examples], number / len(packages))


def _distribution(package: str) -> metadata.Distribution:
    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise UserError(
            f"params.yaml: sources: '{package}' is not installed; "
            f"remove it from the list or run `.venv/bin/pip install {package}`"
        ) from None


def _source_files(package: str) -> list[Path]:
    files = _distribution(package).files
    if not files:
        raise UserError(f"params.yaml: sources: the installation of '{package}' lists no files; reinstall it with pip")
    paths = [Path(str(file.locate())) for file in sorted(files) if file.suffix == ".py" and _is_public(file.parts)]
    return [path for path in paths if path.exists()]  # an installation may list files that were deleted


def _is_public(parts: tuple[str, ...]) -> bool:
    folders, name = parts[:-1], parts[-1]
    in_tests = any(folder in ("tests", "test", "testing") for folder in folders)
    is_test = name.startswith("test_") or name == "conftest.py"
    return not in_tests and not is_test and not any(part.startswith("..") for part in parts)


def _file_examples(path: Path) -> list[Example]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a package's invalid escapes do not concern the user
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []  # some packages ship templates and Python 2 fixtures
    return list(_node_examples(tree, _module_name(path)))


def _module_name(path: Path) -> str:
    names = [path.stem] if path.stem != "__init__" else []
    folder = path.parent
    while (folder / "__init__.py").exists():
        names.append(folder.name)
        folder = folder.parent
    return ".".join(reversed(names)) or path.stem


def _node_examples(node: ast.Module | Definition, name: str) -> Iterator[Example]:
    docstring = ast.get_docstring(node)
    if docstring:
        summary, _, rest = inspect.cleandoc(docstring).partition("\n\n")
        yield Example(name, "" if FIELDS.match(summary) else summary, rest)
    for child in node.body:
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield from _node_examples(child, f"{name}.{child.name}")
