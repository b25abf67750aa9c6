"""Find the results of a commit that are older than its code, parameters or data."""

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

    A commit is checked out in a temporary clone, which has none of the data that DVC stores. For outputs of stages, DVC
    then uses the hashes in dvc.lock. A folder with the user's files (`data/raw`) has another hash without these files.
    So git decides: such a folder is fresh if nothing in it, including `.dvc` files, changed after the commit of
    dvc.lock.

    Raises:
        UserError: DVC cannot tell which stages are stale.
    """
    if revision.commit is None:
        return _stale_stages(Path.cwd())
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
            _remove_deps(clone / file, folders)
        return list(dict.fromkeys([*users, *_stale_stages(clone)]))


def _incomplete(clone: Path, lock: Lock) -> list[str]:
    """Folders that a stage depends on and that lack files which DVC tracks."""
    tracked = [path.with_suffix("").relative_to(clone) for path in clone.rglob("*.dvc") if path.is_file()]
    parents = {parent.as_posix() for path in tracked for parent in path.parents}
    return sorted(parents & {dep for stage in lock.stages for dep in lock.deps(stage)})


def _remove_deps(file: Path, folders: Collection[str]) -> None:
    """Remove the folders from all deps of dvc.yaml or dvc.lock."""
    content = read_yaml(file.read_text(encoding="utf-8"))
    for stage in content["stages"].values():
        body = stage.get("do", stage)
        body["deps"] = [
            dep for dep in body.get("deps", []) if (dep["path"] if isinstance(dep, dict) else dep) not in folders
        ]
    with file.open("w", encoding="utf-8") as stream:
        YAML().dump(content, stream)


def _stale_stages(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "dvc", "repro", "--dry", "--allow-missing"]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False)
    stages = list(dict.fromkeys(re.findall(r"^Running stage '(.+)':", done.stdout, flags=re.MULTILINE)))
    # DVC gives up after a stale stage whose outputs are missing; the stages that it lists before are enough
    if done.returncode and not stages:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0].removeprefix("ERROR: ")
        raise UserError(f"DVC cannot say which results are stale: {reason}")
    return stages
