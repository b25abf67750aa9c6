"""Write requirements.lock anew from the ranges in pyproject.toml; needs Python 3.11 and nothing else.

The versions are those of a fresh environment. Where one of them needs a newer Python than the oldest supported, the
line for that Python beside it is what uv resolves.

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
"""What torch asks for depends on its build, which pip chooses for the machine."""

Versions = dict[str, str]


def parse(listed: str) -> Versions:
    """Lines `name==version` as version by normalised name; a local suffix such as `+cpu` is cut off."""
    found = re.findall(r"^([\w.-]+)==([^\s;+]+)", listed, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def merge(here: Versions, oldest: Versions) -> str:
    """The lines of the lock.

    Args:
        here: what a fresh environment of this Python has.
        oldest: what the oldest Python would get.
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
        # versions that stand in the output file already are kept where they can be
        oldest.write_text("".join(f"{name}=={version}\n" for name, version in parse(frozen.stdout).items()))
        compile_ = ["pip", "compile", "-q", "--no-annotate", "--python-version", OLDEST, ranges, "-o", oldest]
        subprocess.run([scratch / "resolver/bin/uv", *compile_], check=True)
        Path("requirements.lock").write_text(merge(parse(frozen.stdout), parse(oldest.read_text())))


if __name__ == "__main__":
    sys.exit(main())
