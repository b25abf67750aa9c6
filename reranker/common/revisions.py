"""Reads commits and experiments from git, and dvc.lock, which says what each stage ran with and what it wrote."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from reranker.common.errors import UserError, first_line

T = TypeVar("T")
EXPERIMENTS = "refs/exps"
"""Where DVC keeps experiments, as refs/exps/AB/CDEF…/NAME with the hash of the commit that each started from."""
CACHE = Path(".dvc/cache/files/md5")
FOLDER = ".dir"
"""The end of a folder's hash. The cache has a manifest under this hash, which lists the hashes of the files."""
REMEDY = "name a commit that has the results of `dvc repro`"
ABSENT = "(absent)"
"""Stands for the value of a key that a file of parameters does not have."""


@dataclass(frozen=True)
class Lock:
    """The content of dvc.lock."""

    stages: Mapping[str, Mapping[str, Any]]

    def deps(self, stage: str) -> dict[str, str]:
        """The hash of each path that a stage depends on."""
        return {dep["path"]: dep["md5"] for dep in self.stages[stage].get("deps", [])}

    @cached_property
    def _outs(self) -> dict[str, tuple[str, str]]:
        """The hash of each path that a stage writes, with the stage."""
        return {out["path"]: (out["md5"], stage) for stage, body in self.stages.items() for out in body.get("outs", [])}

    def out_hash(self, path: str) -> str | None:
        """The hash of a file or folder that a stage writes.

        Args:
            path: a path that dvc.yaml names, or a file in a folder that dvc.yaml names.

        Returns:
            The hash, or None if no stage writes the path or the folder's manifest is not in DVC's cache.
        """
        out, md5 = next(((out, md5) for out, (md5, _) in self._outs.items() if within(path, out)), ("", None))
        if md5 is None or out == path:
            return md5
        try:
            manifest = json.loads(cache_path(md5).read_bytes())
        except (OSError, ValueError):
            return None
        return next((file["md5"] for file in manifest if path == f"{out}/{file['relpath']}"), None)

    def upstream(self, stage: str) -> list[str]:
        """The sorted names of the stage and of all stages whose outputs it needs, directly or through other stages."""
        names: set[str] = set()
        waiting = [stage]
        while waiting:
            name = waiting.pop()
            if name not in names:
                names.add(name)
                deps = self.deps(name)
                waiting += [other for out, (_, other) in self._outs.items() if any(_overlap(out, dep) for dep in deps)]
        return sorted(names)

    def source_files(self, stage: str) -> dict[str, str]:
        """The hash of each file or folder that no stage writes and that the stage or one upstream of it depends on."""
        deps = {path: md5 for name in self.upstream(stage) for path, md5 in self.deps(name).items()}
        return {path: md5 for path, md5 in deps.items() if not any(_overlap(path, out) for out in self._outs)}

    def stale(self, params: Mapping[str, Any], stage: str) -> list[str]:
        """The stages upstream that ran with other parameters, or before one of their inputs was written again.

        An experiment with single stages (`dvc exp run … train`) leaves the figures of later stages as they were.

        Args:
            params: the content of params.yaml.
            stage: the last of the stages, which is included.
        """
        return [
            name
            for name in self.upstream(stage)
            if any(self.out_hash(path) not in (None, md5) for path, md5 in self.deps(name).items())
            or any(_value(params, key) != value for key, value in self._params(name).items())
        ]

    def _params(self, stage: str) -> Mapping[str, Any]:
        params: Mapping[str, Any] = self.stages[stage].get("params", {}).get("params.yaml", {})
        return params


def _value(params: Any, key: str) -> Any:
    """The value of a key such as `negatives.relative_margin`."""
    for name in key.split("."):
        params = params.get(name, ABSENT) if isinstance(params, Mapping) else ABSENT
    return params


def within(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return path == folder or path.startswith(f"{folder}/")


def _overlap(path: str, other: str) -> bool:
    return within(path, other) or within(other, path)


def cache_path(md5: str) -> Path:
    """The path in DVC's cache of the content with this hash."""
    return CACHE / md5[:2] / md5[2:]


def read_yaml(text: str) -> dict[str, Any]:
    """Read a mapping in YAML 1.2, as DVC does. In this version 2e-05 is a number.

    Raises:
        ValueError: the text is YAML but no mapping.
        YAMLError: the text is no YAML.
    """
    values = YAML(typ="safe").load(text)
    if not isinstance(values, dict):
        raise ValueError("not `key: value` lines")
    return values


def _lock(text: str) -> Lock:
    stages = read_yaml(text).get("stages")
    if not isinstance(stages, dict):
        raise ValueError("no stages")
    return Lock(stages)


class Revision(NamedTuple):
    """A commit or the workspace, with the name by which a user refers to it."""

    name: str
    commit: str | None
    """A name that git takes for a commit; None stands for the workspace."""

    def read(self, path: Path, parse: Callable[[str], T], otherwise: T | None = None) -> T:
        """Read and parse a file.

        Args:
            path: the file, relative to the repository's folder.
            parse: turns the text into the result.
            otherwise: the result if the file does not exist; None makes that an error.

        Raises:
            UserError: the file does not exist and must, or `parse` fails.
        """
        text = self._text(path)
        if text is None and otherwise is not None:
            return otherwise
        if text is None:
            raise UserError(f"{self.name}: it has no {path}; {REMEDY}")
        try:
            return parse(text)
        except (ValueError, YAMLError) as error:
            raise UserError(f"{self.name}: its {path} cannot be read ({first_line(error)}); {REMEDY}") from None

    def _text(self, path: Path) -> str | None:
        if self.commit is not None:
            process = _run(["show", "--end-of-options", f"{self.commit}:./{path.as_posix()}"])
            return None if process.returncode else process.stdout
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def lock(self) -> Lock:
        """Read the dvc.lock of this revision.

        Raises:
            UserError: see `read`.
        """
        return self.read(Path("dvc.lock"), _lock)

    def files(self, folder: Path) -> list[Path]:
        """The sorted paths of the files in a folder and its subfolders."""
        if self.commit is None:
            return sorted(path for path in folder.rglob("*") if path.is_file())
        names = git("ls-tree", "-r", "-z", "--name-only", "--end-of-options", self.commit, "--", folder.as_posix())
        return sorted(map(Path, filter(None, names.split("\0"))))


WORKSPACE = Revision("workspace", None)


def find(name: str) -> Revision:
    """Find the commit or the experiment with a name.

    Raises:
        UserError: this is no git repository, neither git nor DVC knows the name, or several experiments have it.
    """
    git("rev-parse", "--git-dir")
    process = _run(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"])
    if not process.returncode:
        return Revision(name, process.stdout.strip())
    hashes = [each.hash for each in experiments() if each.name == name]
    if len(hashes) == 1:
        return Revision(name, hashes[0])
    if hashes:
        choices = ", ".join(hash[:7] for hash in hashes)
        raise UserError(f"{name}: several experiments have this name; name one by its hash: {choices}")
    raise UserError(
        f"{name}: git knows no such revision and DVC no such experiment; see `git branch -a`, `dvc exp list -A`"
    )


class Experiment(NamedTuple):
    """A finished experiment of DVC, as git has it."""

    name: str
    hash: str
    start: str
    """The hash of the commit that it started from."""


def experiments() -> list[Experiment]:
    """All experiments in this clone, whatever commit they started from."""
    lines = git("for-each-ref", "--format=%(objectname) %(refname)", EXPERIMENTS).splitlines()
    rows = [(each[0], each[1].split("/", 4)) for line in lines if (each := line.split(" ", 1))]
    return [Experiment(parts[4], hash, parts[2] + parts[3]) for hash, parts in rows if len(parts) == 5]


def changed_files(before: str | None, after: str | None, *paths: str) -> list[str]:
    """The sorted names of files whose contents differ between two commits, or between a commit and the workspace.

    Args:
        before: a commit, or None for the workspace, which includes files that git does not track yet.
        after: the same for the other side.
        paths: files or folders to compare.
    """
    if before == after or not paths:
        return []
    commits = [commit for commit in (before, after) if commit is not None]
    names = git("diff", "--name-only", "--no-renames", "--relative", "-z", *commits, "--", *paths)
    if len(commits) == 1:
        names += git("ls-files", "--others", "--exclude-standard", "-z", "--", *paths)
    return sorted({*names.split("\0")} - {""})


def git(*arguments: str) -> str:
    """Run a git command and return what it prints.

    Raises:
        UserError: git is not installed or fails; the message has git's own reason.
    """
    process = _run(arguments)
    if process.returncode:
        reason = next(iter(process.stderr.strip().splitlines()), "no reason given").removeprefix("fatal: ")
        raise UserError(f"git {arguments[0]}: {reason}")
    return process.stdout


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False)
    except FileNotFoundError:
        raise UserError("git is not installed; install it to read the figures of other commits") from None
