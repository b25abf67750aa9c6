"""What differs between two commits: parameters, figures, data and the code that the results are of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from reranker.experiments import ABSENT, Lock, dotted, source_files, upstream

STAGE = "evaluate"
"""Whose figures are reviewed."""
QRELS = "data/scored/test.qrels"
"""The judgments of the test queries, whose hash dvc.lock has."""
CORPUS = "data/prepared/passages.parquet"
TABLES = ("passages", "queries", "judgments")
"""Of data/prepared, whose files are others where the data are."""
ROWS = ("rows", "passages", "judgments", "queries_train", "queries_dev", "queries_test")
"""Of metrics/prepare.json."""


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
