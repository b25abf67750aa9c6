"""The two sides of a review, each read from git or from the workspace, and what differs between them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from reranker.common.artifacts import PATHS
from reranker.common.errors import UserError
from reranker.review import revisions
from reranker.review.experiments import ABSENT, SYSTEMS, Lock, dotted, source_files, upstream
from reranker.review.revisions import Unreadable

HEADLINE = {
    "ndcg@10": ("evaluate", "NDCG@10"),
    "mrr@10": ("evaluate", "MRR@10"),
    "map": ("evaluate", "MAP"),
    "recall@10": ("evaluate", "Recall@10"),
    "recall@30": ("evaluate", "Recall@30"),
    "ndcg@10_all_positives": ("evaluate", "NDCG@10, missed right passages added"),
    "ndcg@10_cross_encoder": ("evaluate", "NDCG@10 of the cross-encoder alone"),
    "gain_vs_tuned_biencoder": ("evaluate", "Gain on the bi-encoder tuned further"),
    "dev_ndcg@10": ("train", "NDCG@10 on dev"),
}
"""Figures of the first table: their file in metrics/ and their name for people."""
SECONDS = ("mine_seconds", "train_seconds")
"""Of metrics/timing.json."""
STAGE = "evaluate"
"""Whose figures are reviewed."""
QRELS = "data/scored/test.qrels"
"""The judgments of the test queries, whose hash dvc.lock has."""
CORPUS = "data/prepared/passages.parquet"
TABLES = ("passages", "queries", "judgments")
"""Of data/prepared, whose files are others where the data are."""
ROWS = ("rows", "passages", "judgments", "queries_train", "queries_dev", "queries_test")
"""Of metrics/prepare.json."""
T = TypeVar("T")
FIGURES = ("evaluate", "train", "mine", "prepare", "timing")
"""Files of metrics/; only the first must be there."""
REMEDY = "it takes a commit with the results of `dvc repro`"


@dataclass(frozen=True)
class Side:
    """What one commit, or the workspace, has committed of a run."""

    name: str
    params: Mapping[str, Any]
    lock: Lock
    figures: Mapping[str, Mapping[str, Any]]
    """By the stem of their file in metrics/; a file that is not there is empty."""
    per_query: pd.DataFrame
    """NDCG@10 of the test queries: one column a system, the index is the query's id."""
    costs: pd.DataFrame | None
    """Columns system, megabytes and so on; None where they were not measured."""
    raw: Mapping[str, str]
    """The hash of each file in data/raw that DVC tracks, by its path."""


class Change(NamedTuple):
    """A value before and after."""

    name: str
    before: Any
    after: Any


def changed_values(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Values that differ, nested keys dotted, in the order of the files; `(absent)` where a side has no such key."""
    ours, theirs = dotted(before), dotted(after)
    return [
        Change(key, ours.get(key, ABSENT), theirs.get(key, ABSENT))
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key, ABSENT) != theirs.get(key, ABSENT)
    ]


def changed_data(base: Side, head: Side) -> list[Change]:
    """Rows and queries of each split, files of data/raw, and tables of data/prepared that are others."""
    ours, theirs = base.figures["prepare"], head.figures["prepare"]
    counts = [{key: side[key] for key in ROWS if key in side} for side in (ours, theirs)]
    paths = [f"data/prepared/{name}.parquet" for name in TABLES]
    files = [
        {**side.raw, **{path: found for path in paths if (found := out_hash(side.lock, path))}} for side in (base, head)
    ]
    return [*changed_values(*counts), *(_short(path, files) for path in _others(*files))]


def _others(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [path for path in dict.fromkeys([*before, *after]) if before.get(path) != after.get(path)]


def _short(path: str, files: Sequence[Mapping[str, str]]) -> Change:
    before, after = (side[path][:7] if path in side else ABSENT for side in files)
    return Change(path, before, after)


def out_hash(lock: Lock, path: str) -> str | None:
    """The hash of a file that a stage writes; None where no stage does."""
    outs = (out for body in lock["stages"].values() for out in body.get("outs", []))
    return next((out["md5"] for out in outs if out["path"] == path), None)


def changed_code(base: Lock, head: Lock) -> dict[tuple[str, ...], list[str]]:
    """Files that the figures depend on and that are others, by the stages that use them; data/raw is left out.

    The items of a stage, such as `score@bm25`, are one stage.
    """
    ours, theirs = source_files(base, STAGE), source_files(head, STAGE)
    users: dict[str, set[str]] = {path: set() for path in _others(ours, theirs) if not path.startswith("data/")}
    for name in upstream(head, STAGE):
        for dep in head["stages"][name].get("deps", []):
            if dep["path"] in users:
                users[dep["path"]].add(name.partition("@")[0])
    groups: dict[tuple[str, ...], list[str]] = {}
    for path, names in sorted(users.items()):
        groups.setdefault(tuple(sorted(names)), []).append(path)
    return dict(sorted(groups.items()))


def reasons_against(base: Side, head: Side, stale: Sequence[str]) -> list[str]:
    """Why the figures of two sides are not of one test, or not those of the commits.

    Args:
        base: before.
        head: after.
        stale: the stages of `head` that are older than its code, parameters or data.
    """
    reasons = []
    if needed := sorted({*stale} & {*upstream(head.lock, STAGE)}):
        reasons.append(f"the figures are older than the change: {', '.join(needed)} did not run with it; `dvc repro`")
    ours, theirs = {*base.per_query.index}, {*head.per_query.index}
    if ours != theirs:
        new, gone, both = len(theirs - ours), len(ours - theirs), len(ours & theirs)
        reasons.append(f"other test queries ({new:,} new, {gone:,} gone): only the {both:,} common ones are compared")
    elif None not in (before := out_hash(base.lock, QRELS), after := out_hash(head.lock, QRELS)) and before != after:
        reasons.append("other judgments of the test queries")
    return reasons


def doubts(base: Side, head: Side, base_stale: Sequence[str], head_stale: Sequence[str]) -> list[str]:
    """What one must know before one believes the figures, though they can be compared.

    Args:
        base: before.
        head: after.
        base_stale: stages of `base` that did not run with its parameters, or after what they depend on.
        head_stale: stages of `head` that are older than its code, parameters or data.
    """
    found = []
    if base_stale:
        found.append(f"{base.name}: its figures are older than its parameters: {', '.join(base_stale)} did not run")
    if others := sorted({*head_stale} - {*upstream(head.lock, STAGE)}):
        found.append(f"stages behind the figures are stale: {', '.join(others)}; `dvc repro`")
    if out_hash(base.lock, CORPUS) != out_hash(head.lock, CORPUS):
        found.append("the passages are others: the same query may be harder or easier among them")
    for side in (base, head):
        if abs(side.per_query["reranker"].mean() - side.figures["evaluate"]["ndcg@10"]) > 1e-9:
            found.append(
                f"{side.name}: metrics/per_query.csv and metrics/evaluate.json are not of one run: "
                "edited or merged by hand? `dvc repro --force evaluate`"
            )
    keys = [change.name for change in changed_values(base.params, head.params)]
    if keys and all(key.endswith("seed") for key in keys) and not changed_code(base.lock, head.lock):
        found.append("only a seed was changed: what differs is what chance does to a training, however small p is")
    if any(key.startswith("review_") for key in keys):
        found.append("this change sets the thresholds (`review_*`) by which it is judged")
    return found


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
