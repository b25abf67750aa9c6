"""Write requirements.lock from the ranges in pyproject.toml; this needs only Python 3.11.

The versions are those of a fresh environment. Where a version needs a newer Python than the oldest supported one, the
lock has a second line with the version that uv resolves for the oldest Python.

    python tools/lock.py
"""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import tomllib

OLDEST = "3.10"
HEADER = "# Made by 'make lock' from pyproject.toml; edit the ranges there, not the versions here.\n"
BUILD = re.compile("nvidia|cuda|triton")
"""Packages that torch requires depending on its build, which pip chooses for the machine."""

Versions = dict[str, str]


def parse(lines: str) -> Versions:
    """Parse lines `name==version` into versions by normalised name, without a local suffix such as `+cpu`."""
    versions = re.findall(r"^([\w.-]+)==([^\s;+]+)", lines, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in versions}


def merge(here: Versions, oldest: Versions) -> str:
    """The lines of the lock.

    Args:
        here: the versions in a fresh environment of this Python.
        oldest: the versions that the oldest Python would get.
    """
    lines = []
    for name in sorted({*here, *(name for name in oldest if not BUILD.search(name))}):
        if here.get(name) == oldest.get(name):
            lines.append(f"{name}=={here[name]}")
            continue
        if name in oldest:
            lines.append(f'{name}=={oldest[name]} ; python_version < "3.11"')
        if name in here:
            lines.append(f'{name}=={here[name]} ; python_version >= "3.11"')
    return HEADER + "".join(f"{line}\n" for line in lines)


def main() -> None:
    """Install the ranges into a scratch environment, resolve them for the oldest Python, and write both."""
    if sys.version_info[:2] != (3, 11):
        sys.exit(
            "error: the lock is made with Python 3.11, the one of CI and of the results: make lock PYTHON=python3.11"
        )
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        ranges, oldest = scratch / "ranges.txt", scratch / "oldest.txt"
        ranges.write_text("\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))
        for name in ("locked", "resolver"):
            venv.create(scratch / name, with_pip=True)
        pip = [scratch / "locked/bin/python", "-m", "pip"]
        subprocess.run([*pip, "install", "-qq", "-r", ranges], check=True)
        frozen = subprocess.run(
            [*pip, "freeze", "--all", "--exclude", "pip"], check=True, capture_output=True, text=True
        )
        subprocess.run([scratch / "resolver/bin/python", "-m", "pip", "install", "-qq", "uv"], check=True)
        # uv keeps the versions that are already in the output file where it can
        oldest.write_text("".join(f"{name}=={version}\n" for name, version in parse(frozen.stdout).items()))
        compile_ = ["pip", "compile", "-q", "--no-annotate", "--python-version", OLDEST, ranges, "-o", oldest]
        subprocess.run([scratch / "resolver/bin/uv", *compile_], check=True)
        Path("requirements.lock").write_text(merge(parse(frozen.stdout), parse(oldest.read_text())))


if __name__ == "__main__":
    sys.exit(main())
