"""Which results of a commit are older than its code, parameters or data: asked of DVC, without the data."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reranker import revisions
from reranker.errors import UserError


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
        revisions.git("clone", "--quiet", "--shared", "--no-checkout", ".", name)
        revisions.git("-C", name, "checkout", "--quiet", "--detach", commit)
        folders = _incomplete(clone)
        locked = revisions.git("log", "-1", "--format=%H", commit, "--", "dvc.lock").strip()
        changed = [path for path in folders if revisions.differs(locked, commit, Path(path))]
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
    stages: dict[str, Any] = revisions.read_yaml((clone / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return stages


def _forget(file: Path, folders: Collection[str]) -> None:
    """Take the folders out of all deps of dvc.yaml or dvc.lock."""
    content = revisions.read_yaml(file.read_text(encoding="utf-8"))
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
