"""Rerankers of other revisions, which are named by an experiment, a branch, a tag or a hash."""

import hashlib
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.index import DataIndexDirError

from reranker.common import revisions
from reranker.common.artifacts import PATHS
from reranker.common.errors import UserError, first_line

RERANKER = PATHS.reranker.as_posix()


def model_hash(name: str) -> str:
    """DVC's hash of the folder of a revision's reranker.

    Raises:
        UserError: the revision does not exist, or its dvc.lock has no reranker.
    """
    md5 = revisions.find(name).lock().out_hash(RERANKER)
    if md5 is None:
        raise UserError(
            f"experiment '{name}': {RERANKER} is not in its dvc.lock; name a revision in which `train` has run"
        )
    return md5


def same_queries(name: str) -> bool:
    """Whether a revision has the same queries and splits as the workspace.

    If not, its model may have been trained on queries that are test queries here. If the hash of its queries is not
    available, the hash of their folder decides, see `Lock.out_hash`.

    Raises:
        UserError: the revision does not exist, or a dvc.lock cannot be read.
    """
    lock = revisions.find(name).lock()
    queries = lock.out_hash(PATHS.queries.as_posix())
    if queries is not None:
        return queries == hashlib.md5(PATHS.queries.read_bytes(), usedforsecurity=False).hexdigest()
    folder = PATHS.queries.parent.as_posix()
    whole = lock.out_hash(folder)
    return whole is not None and whole == revisions.WORKSPACE.lock().out_hash(folder)


def fetch(name: str, folder: Path) -> None:
    """Copy a revision's reranker from DVC's cache or from the workspace's current remote.

    Args:
        name: the name of the revision.
        folder: the folder for the files; it must not exist.

    Raises:
        UserError: see `model_hash`; or the files are in neither the cache nor the remote, or cannot be written.
    """
    model_hash(name)
    try:
        with Repo() as here:
            remote = here.config["core"].get("remote")
            config = {"core": {"remote": remote}, "remote": {remote: here.config["remote"][remote]}} if remote else {}
        DVCFileSystem(rev=revisions.find(name).commit, config=config).get(RERANKER, str(folder), recursive=True)
    except (DvcException, DataIndexDirError, OSError, KeyError) as error:
        raise UserError(
            f"experiment '{name}': {RERANKER} is in no cache and no remote ({first_line(error)[:100]}); "
            f"run `dvc exp apply {name} && dvc repro train`"
        ) from None
