"""Commits as git has them, and files of a commit or of the workspace."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from reranker.errors import UserError, first_line

T = TypeVar("T")
EXPERIMENTS = "refs/exps"
"""Where DVC keeps experiments: refs/exps/AB/CDEF…/NAME, with the hash of the commit that each started from."""


class Unreadable(Exception):
    """Why a file of a revision cannot be had, as the end of a sentence."""


def read(revision: str | None, path: Path, parse: Callable[[str], T]) -> T:
    """A file of a revision, parsed.

    Args:
        revision: what git knows as a commit; None: the workspace.
        path: of the file, from the repository's folder.
        parse: of its text.

    Raises:
        Unreadable: it is not there, or is not what `parse` takes.
    """
    if revision is None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Unreadable(f"{path} cannot be read ({first_line(error)})") from None
    else:
        done = _run(["show", "--end-of-options", f"{revision}:{path.as_posix()}"])
        if done.returncode:
            raise Unreadable(f"git has no {path} in it")
        text = done.stdout
    try:
        return parse(text)
    except (ValueError, YAMLError):
        raise Unreadable(f"its {path} cannot be read") from None


def read_yaml(text: str) -> Any:
    """YAML 1.2, as DVC reads it: 2e-05 is a number."""
    return YAML(typ="safe").load(text)


def git(*arguments: str) -> str:
    """What a command of git prints.

    Raises:
        UserError: git is not installed or refuses; the message is its own.
    """
    done = _run(arguments)
    if done.returncode:
        reason = next(iter(done.stderr.strip().splitlines()), "no reason given").removeprefix("fatal: ")
        raise UserError(f"git {arguments[0]}: {reason}")
    return done.stdout


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False)
    except FileNotFoundError:
        raise UserError("git is not installed; install it, the figures of other commits are read with it") from None


def commit(name: str) -> str:
    """The hash of a revision, or of the experiment of that name.

    Raises:
        UserError: this is no git repository, or neither git nor DVC knows the name.
    """
    git("rev-parse", "--git-dir")
    done = _run(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"])
    if not done.returncode:
        return done.stdout.strip()
    found = [each for each in experiments() if each.name == name]
    if len(found) == 1:
        return found[0].hash
    if found:
        hashes = ", ".join(each.hash[:7] for each in found)
        raise UserError(f"{name}: several experiments have this name; name one by its hash: {hashes}")
    raise UserError(
        f"{name}: git knows no such revision and DVC no such experiment; see `git branch -a`, `dvc exp list -A`"
    )


class Experiment(NamedTuple):
    """An experiment of DVC that ended, as git has it."""

    name: str
    hash: str
    start: str
    """The hash of the commit that it started from."""


def experiments() -> list[Experiment]:
    """Those of this clone, of all commits."""
    lines = git("for-each-ref", "--format=%(objectname) %(refname)", EXPERIMENTS).splitlines()
    rows = [(each[0], each[1].split("/", 4)) for line in lines if (each := line.split(" ", 1))]
    return [Experiment(parts[4], hash, parts[2] + parts[3]) for hash, parts in rows if len(parts) == 5]


def commits_between(base: str, head: str) -> list[str]:
    """The hashes of the commits that `head` has and `base` has not."""
    return git("rev-list", f"{base}..{head}").split()


def blob(revision: str | None, path: Path) -> str | None:
    """The hash of a file's contents; None where the revision has no such file."""
    if revision is None:
        return git("hash-object", "--", str(path)).strip() if path.is_file() else None
    done = _run(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}:{path.as_posix()}"])
    return None if done.returncode else done.stdout.strip()


def files(revision: str | None, folder: Path) -> list[str]:
    """The paths of the files under a folder, sorted."""
    if revision is None:
        return sorted(path.as_posix() for path in folder.rglob("*") if path.is_file())
    names = git("ls-tree", "-r", "-z", "--name-only", "--end-of-options", revision, "--", folder.as_posix())
    return sorted(filter(None, names.split("\0")))


def differs(before: str, after: str, path: Path) -> bool:
    """Whether a file or folder has other contents in two commits."""
    return bool(git("diff", "--name-only", before, after, "--", path.as_posix()))
