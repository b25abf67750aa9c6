"""What another revision has trained, through DVC: which commit its name is, what the model is, and its files."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.index import DataIndexDirError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from reranker.common.artifacts import PATHS
from reranker.common.errors import UserError, first_line


class Revision(NamedTuple):
    """A commit of this repository, by the name of an experiment, a branch, a tag or a hash."""

    name: str
    commit: str
    model: str
    """DVC's hash of the folder of the reranker."""
    same_queries: bool
    """Whether it has the workspace's queries and splits: else it may have been trained on queries that test it here."""


def find(name: str) -> Revision:
    """Look a revision up.

    Raises:
        UserError: there is no such revision, or no reranker in its dvc.lock.
    """
    files = _files(name)
    try:
        lock = YAML(typ="safe").load(files.read_text("dvc.lock"))
        outs = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", [])}
        model = outs[PATHS.reranker.as_posix()]
    except (OSError, YAMLError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"experiment '{name}': {PATHS.reranker} is not in its dvc.lock; name a revision in which `train` has run"
        ) from None
    queries = outs.get(PATHS.queries.as_posix())
    here = hashlib.md5(PATHS.queries.read_bytes(), usedforsecurity=False).hexdigest()  # what DVC compares files by
    return Revision(name, files.repo.get_rev(), model, queries == here)


def fetch(revision: Revision, folder: Path) -> None:
    """Copy a revision's reranker from DVC's cache or a remote.

    Args:
        revision: see `find`.
        folder: which must not be there; it gets the files.

    Raises:
        UserError: they are neither in the cache nor in a remote, or cannot be written.
    """
    try:
        _files(revision.commit).get(PATHS.reranker.as_posix(), str(folder), recursive=True)
    except (DvcException, DataIndexDirError, OSError) as error:
        raise UserError(
            f"experiment '{revision.name}': {PATHS.reranker} is in no cache and no remote ({first_line(error)[:100]}); "
            f"run `dvc exp apply {revision.name} && dvc repro train`"
        ) from None


def _files(name: str) -> Any:
    """The files of a revision, those of git and of DVC, whose remote is the workspace's present one."""
    try:
        with Repo() as here:
            remote = here.config["core"].get("remote")
            config = {"core": {"remote": remote}, "remote": {remote: here.config["remote"][remote]}} if remote else {}
        files = DVCFileSystem(rev=name, config=config)
        files.repo.get_rev()  # it is looked for when it is first needed
    except (DvcException, KeyError) as error:
        raise UserError(
            f"experiment '{name}': git and DVC know no such revision ({first_line(error)[:100]}); see `dvc exp list`"
        ) from None
    return files
