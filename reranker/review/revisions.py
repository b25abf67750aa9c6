"""Commits as git has them: their files, and which of their results are older than their code, parameters or data."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from reranker.common.errors import UserError, first_line

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


def stale_stages_of(commit: str | None) -> list[str]:
    """The stages that `dvc repro` would run.

    A commit is looked at in a clone that is thrown away and has none of the data that DVC keeps. What a stage has
    written DVC then takes from dvc.lock. A folder with files of the user's (`data/raw`) has another hash without them,
    so that git must tell: it is fresh if nothing in it, `.dvc` files included, changed after the commit of dvc.lock.

    Args:
        commit: its hash; None: the workspace.

    Raises:
        UserError: DVC cannot say.
    """
    if commit is None:
        return _planned(Path.cwd())
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name)
        git("clone", "--quiet", "--shared", "--no-checkout", ".", name)
        git("-C", name, "checkout", "--quiet", "--detach", commit)
        folders = _incomplete(clone)
        locked = git("log", "-1", "--format=%H", commit, "--", "dvc.lock").strip()
        changed = [path for path in folders if differs(locked, commit, Path(path))]
        users = [stage for path in changed for stage in _users(clone, path)]
        for file in ("dvc.yaml", "dvc.lock"):
            _forget(clone / file, folders)
        return list(dict.fromkeys([*users, *_planned(clone)]))


def _incomplete(clone: Path) -> list[str]:
    """Folders that a stage depends on and in which files that DVC tracks are missing."""
    tracked = [path.with_suffix("").relative_to(clone) for path in clone.rglob("*.dvc") if path.is_file()]
    parents = {parent.as_posix() for path in tracked for parent in path.parents}
    return sorted(parents & {dep["path"] for body in _stages(clone).values() for dep in body.get("deps", [])})


def _users(clone: Path, folder: str) -> list[str]:
    return [name for name, body in _stages(clone).items() if folder in (dep["path"] for dep in body.get("deps", []))]


def _stages(clone: Path) -> dict[str, Any]:
    stages: dict[str, Any] = read_yaml((clone / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return stages


def _forget(file: Path, folders: Collection[str]) -> None:
    """Take the folders out of all deps of dvc.yaml or dvc.lock."""
    content = read_yaml(file.read_text(encoding="utf-8"))
    for stage in content["stages"].values():
        body = stage.get("do", stage)
        body["deps"] = [
            dep for dep in body.get("deps", []) if (dep["path"] if isinstance(dep, dict) else dep) not in folders
        ]
    with file.open("w", encoding="utf-8") as opened:
        YAML().dump(content, opened)


def _planned(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "dvc", "repro", "--dry", "--allow-missing"]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False)
    planned = list(dict.fromkeys(re.findall(r"^Running stage '(.+)':", done.stdout, flags=re.MULTILINE)))
    # Behind a stale stage whose outputs are not here, DVC gives up; what it found until then is enough to know.
    if done.returncode and not planned:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0].removeprefix("ERROR: ")
        raise UserError(f"DVC cannot say which results are stale: {reason}")
    return planned
