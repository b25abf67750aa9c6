"""A side of a review, read from git or from the workspace."""

import json
from collections.abc import Callable, Iterable
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from reranker import revisions
from reranker.changes import STAGE, Side, out_hash
from reranker.errors import UserError
from reranker.experiments import SYSTEMS, Lock
from reranker.records import PATHS
from reranker.review_page import HEADLINE, SECONDS
from reranker.revisions import Unreadable

T = TypeVar("T")
FIGURES = ("evaluate", "train", "mine", "prepare", "timing")
"""Files of metrics/; only the first must be there."""
REMEDY = "it takes a commit with the results of `dvc repro`"


def read_side(name: str, commit: str | None) -> Side:
    """What a commit, or the workspace for None, has of a run.

    Raises:
        UserError: it has no figures of `evaluate`, or one of its files cannot be read.
    """

    def needed(path: Path, parse: Callable[[str], T]) -> T:
        try:
            return revisions.read(commit, path, parse)
        except Unreadable as error:
            raise UserError(f"{name}: {error}; {REMEDY}") from None

    def optional(path: Path, parse: Callable[[str], T], otherwise: T) -> T:
        return needed(path, parse) if revisions.blob(commit, path) else otherwise

    nothing: dict[str, Any] = {}
    figures = {stem: optional(PATHS.metrics / f"{stem}.json", _figures, nothing) for stem in FIGURES}
    if "ndcg@10" not in figures["evaluate"]:
        raise UserError(f"{name}: no ndcg@10 in {PATHS.metrics / 'evaluate.json'}; {REMEDY}")
    return Side(
        name=_shown(name, commit),
        params=needed(PATHS.params, _mapping),
        lock=needed(Path("dvc.lock"), _lock),
        figures=figures,
        per_query=needed(PATHS.metrics / "per_query.csv", _per_query),
        costs=optional(PATHS.metrics / "costs.csv", _costs, None),
        raw={
            path: needed(Path(path), _tracked) for path in revisions.files(commit, PATHS.raw) if path.endswith(".dvc")
        },
    )


def _shown(name: str, commit: str | None) -> str:
    if commit is None:
        return name
    return commit[:7] if commit.startswith(name) else f"{name} ({commit[:7]})"


def _mapping(text: str) -> dict[str, Any]:
    values = revisions.read_yaml(text)
    if not isinstance(values, dict):
        raise ValueError("not `key: value` lines")
    return {str(key): value for key, value in values.items()}


def _lock(text: str) -> Lock:
    lock = _mapping(text)
    if STAGE not in lock.get("stages", {}):
        raise ValueError(f"{STAGE} did not run")
    return lock


def _figures(text: str) -> dict[str, Any]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("not an object of figures")
    if not all(isinstance(values[key], int | float) for key in (*HEADLINE, *SECONDS) if key in values):
        raise ValueError("a figure is no number")
    return values


def _per_query(text: str) -> pd.DataFrame:
    table = pd.read_csv(StringIO(text), dtype={"query_id": str}, keep_default_na=False, index_col="query_id")
    if "reranker" not in table:
        raise ValueError("no column reranker")
    if table.index.has_duplicates:
        raise ValueError("a query is there twice")
    values = table.astype(float)
    if not len(values) or not np.isfinite(values.to_numpy()).all():
        raise ValueError("a query has no figure")
    first = [system for system in SYSTEMS if system in values]
    return values[[*first, *(system for system in values if system not in first)]]


def _costs(text: str) -> pd.DataFrame | None:
    table = pd.read_csv(StringIO(text), dtype={"system": str}, keep_default_na=False, na_values=[""])
    if "system" not in table:
        raise ValueError("no column system")
    return table


def _tracked(text: str) -> str:
    outs = _mapping(text)["outs"]
    return " ".join(str(out.get("md5")) for out in outs)


def count_looks(base: str, head: str | None) -> int:
    """How many figures of test were seen between two commits, the head's included: each that is another counts once.

    Looked at are the commits of `head` that `base` has not, and the experiments of this clone that started from one
    of these or from `base`.

    Args:
        base: hash of the commit to compare with.
        head: hash of the commit that is reviewed; None: the workspace.
    """
    commits = revisions.commits_between(base, head or "HEAD")
    starts = {base, *commits}
    tried = [each.hash for each in revisions.experiments() if each.start in starts]
    seen = {revisions.blob(each, PATHS.metrics / "evaluate.json") for each in [*commits, *tried, head]}
    return len(seen - {None, revisions.blob(base, PATHS.metrics / "evaluate.json")})


def query_texts(ids: Iterable[str], head: Side) -> dict[str, str]:
    """The texts of queries, from DVC's cache or from the workspace; none where neither has the table.

    An id is made of the text, so any run's table will do.

    Args:
        ids: of queries.
        head: the run; its dvc.lock has the hash of the table.
    """
    wanted = list(ids)
    hash = out_hash(head.lock, PATHS.queries.as_posix())
    cached = Path(".dvc/cache/files/md5") / hash[:2] / hash[2:] if hash else None
    for path in (cached, PATHS.queries):
        if path is not None and path.is_file():
            table = pd.read_parquet(path, columns=["query_id", "text"]).set_index("query_id")["text"]
            return {query: table[query] for query in wanted if query in table}
    return {}
