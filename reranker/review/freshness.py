"""Which results of a commit are older than its code, parameters or data."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from ruamel.yaml import YAML

from reranker.common.errors import UserError
from reranker.common.revisions import Lock, Revision, changed_files, git, read_yaml


def stale_stages_of(revision: Revision) -> list[str]:
    """The stages that `dvc repro` would run.

    A commit is looked at in a clone that is thrown away and has none of the data that DVC keeps. What a stage has
    written DVC then takes from dvc.lock. A folder with files of the user's (`data/raw`) has another hash without them,
    so that git must tell: it is fresh if nothing in it, `.dvc` files included, changed after the commit of dvc.lock.

    Raises:
        UserError: DVC cannot say.
    """
    if revision.commit is None:
        return _planned(Path.cwd())
    lock = revision.lock()
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name)
        git("clone", "--quiet", "--shared", "--no-checkout", ".", name)
        git("-C", name, "checkout", "--quiet", "--detach", revision.commit)
        folders = _incomplete(clone, lock)
        locked = git("log", "-1", "--format=%H", revision.commit, "--", "dvc.lock").strip()
        changed = [folder for folder in folders if changed_files(locked, revision.commit, folder)]
        users = [stage for folder in changed for stage in lock.stages if folder in lock.deps(stage)]
        for file in ("dvc.yaml", "dvc.lock"):
            _forget(clone / file, folders)
        return list(dict.fromkeys([*users, *_planned(clone)]))


def _incomplete(clone: Path, lock: Lock) -> list[str]:
    """Folders that a stage depends on and in which files that DVC tracks are missing."""
    tracked = [path.with_suffix("").relative_to(clone) for path in clone.rglob("*.dvc") if path.is_file()]
    parents = {parent.as_posix() for path in tracked for parent in path.parents}
    return sorted(parents & {dep for stage in lock.stages for dep in lock.deps(stage)})


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
