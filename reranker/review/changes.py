"""The differences between the two runs of a review, and the reasons against comparing them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from reranker.common import revisions
from reranker.common.artifacts import PATHS
from reranker.common.revisions import ABSENT, FOLDER, Revision, within
from reranker.review.runs import STAGE, Run, dotted

QRELS = "data/scored/test.qrels"
"""The judgments of the test queries; dvc.lock has the hash of this file."""
TABLES = tuple(path.as_posix() for path in (PATHS.passages, PATHS.queries, PATHS.judgments))
"""The files that differ if the data differ."""
ROWS = ("rows", "passages", "judgments", "queries_train", "queries_dev", "queries_test")
"""Keys of metrics/prepare.json."""


class Change(NamedTuple):
    """A value before and after a change."""

    name: str
    before: Any
    after: Any


def changed_values(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Values that differ, with dotted keys, in the order of the files; a missing key has the value `(absent)`."""
    ours, theirs = dotted(before), dotted(after)
    return [Change(key, ours.get(key, ABSENT), theirs.get(key, ABSENT)) for key in _differing(ours, theirs)]


def changed_data(base: Run, head: Run) -> list[Change]:
    """Differences in the numbers of rows and queries, in the user's files and in the tables of data/prepared."""
    counts = [
        {key: run.figures["prepare"][key] for key in ROWS if key in run.figures["prepare"]} for run in (base, head)
    ]
    files = [{**run.raw, **tables} for run, tables in zip((base, head), _tables(base, head), strict=True)]
    return [*changed_values(*counts), *(_hash_change(path, files) for path in _differing(*files))]


def _tables(base: Run, head: Run) -> list[dict[str, str]]:
    """The hashes of the tables, or of their folder where the manifest of the folder is not available."""
    folder = PATHS.passages.parent.as_posix()
    tables, folders = (
        [{path: md5 for path in paths if (md5 := run.lock.out_hash(path))} for run in (base, head)]
        for paths in (TABLES, [folder])
    )
    return folders if any(whole and not part for whole, part in zip(folders, tables, strict=True)) else tables


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*before, *after]) if before.get(key, ABSENT) != after.get(key, ABSENT)]


def _hash_change(path: str, files: Sequence[Mapping[str, str]]) -> Change:
    before, after = (run[path][:7] if path in run else ABSENT for run in files)
    return Change(path, before, after)


def changed_code(base: Run, head: Run) -> dict[tuple[str, ...], list[str]]:
    """The changed files on which the figures depend, by the stages that use them; files in data/ are left out.

    The items of a stage, such as `score@bm25`, count as one stage. git tells which files of a folder changed. The
    folder itself is named if its hash changed and git knows no changed file in it, as with a folder that DVC tracks.
    """
    ours, theirs = ({path: md5 for path, md5 in run.files.items() if not within(path, "data")} for run in (base, head))
    folders = [path for path, md5 in {**ours, **theirs}.items() if md5.endswith(FOLDER)]
    changed = {*revisions.changed_files(base.commit, head.commit, *folders)}
    for path in _differing(ours, theirs):
        in_folder = any(within(path, folder) for folder in folders)
        if not in_folder or (path in ours and path in theirs and not any(within(file, path) for file in changed)):
            changed.add(path)
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(changed):
        groups.setdefault(_users(head, path), []).append(path)
    return dict(sorted(groups.items()))


def _users(run: Run, path: str) -> tuple[str, ...]:
    stages = [name for name in run.lock.upstream(STAGE) if any(within(path, dep) for dep in run.lock.deps(name))]
    return tuple(sorted({name.partition("@")[0] for name in stages}))


def reasons_against(base: Run, head: Run, stale: Sequence[str]) -> list[str]:
    """Reasons why the figures of two sides do not belong to one test, or not to the commits.

    Args:
        base: the run before the change.
        head: the run after the change.
        stale: the stages of `head` that are older than its code, parameters or data.
    """
    reasons = []
    if needed := sorted({*stale} & {*head.lock.upstream(STAGE)}):
        reasons.append(
            f"the figures are older than the change: {', '.join(needed)} did not run with it; run `dvc repro`"
        )
    ours, theirs = {*base.per_query.index}, {*head.per_query.index}
    if ours != theirs:
        new, gone, both = len(theirs - ours), len(ours - theirs), len(ours & theirs)
        reasons.append(f"other test queries ({new:,} new, {gone:,} gone): only the {both:,} common ones are compared")
    elif _certainly_differ(base, head, QRELS):
        reasons.append("other judgments of the test queries")
    return reasons


def _certainly_differ(base: Run, head: Run, path: str) -> bool:
    before, after = base.lock.out_hash(path), head.lock.out_hash(path)
    return None not in (before, after) and before != after


def doubts(base: Run, head: Run, base_stale: Sequence[str], head_stale: Sequence[str]) -> list[str]:
    """Warnings about figures that can be compared.

    Args:
        base: the run before the change.
        head: the run after the change.
        base_stale: stages of `base` that did not run with its parameters, or did not run after their dependencies.
        head_stale: stages of `head` that are older than its code, parameters or data.
    """
    warnings = []
    if base_stale:
        warnings.append(f"{base.name}: its figures are older than its parameters: {', '.join(base_stale)} did not run")
    if others := sorted({*head_stale} - {*head.lock.upstream(STAGE)}):
        warnings.append(f"stages that do not affect the figures are stale: {', '.join(others)}; run `dvc repro`")
    if _certainly_differ(base, head, PATHS.passages.as_posix()):
        warnings.append("the passages differ: the same query may be harder or easier among others")
    for run in (base, head):
        if abs(run.per_query["reranker"].mean() - run.figures["evaluate"]["ndcg@10"]) > 1e-9:
            warnings.append(
                f"{run.name}: metrics/per_query.csv and metrics/evaluate.json do not belong to one run; perhaps they "
                "were edited or merged by hand; run `dvc repro --force evaluate`"
            )
    keys = [change.name for change in changed_values(base.params, head.params)]
    if keys and all(key.endswith("seed") for key in keys) and not changed_code(base, head):
        warnings.append("only a seed was changed: the difference is chance in training, however small p is")
    if thresholds := [key for key in keys if key.startswith(("review_", "review."))]:
        warnings.append(f"this change sets thresholds by which it is judged: {', '.join(thresholds)}")
    return warnings


def count_looks(base: Revision, head: Revision) -> int:
    """The number of different figures of test that were seen between two commits, including the head's.

    These are the figures of the commits of `head` that `base` does not have, and of the experiments of this clone that
    started from one of these commits or from `base`.
    """
    commits = revisions.git("rev-list", f"{base.commit}..{head.commit or 'HEAD'}").split()
    starts = {base.commit, *commits}
    tried = [each.hash for each in revisions.experiments() if each.start in starts]
    others = {Revision("", commit) for commit in [*commits, *tried, head.commit]}
    seen, before = ({each.read(PATHS.metrics / "evaluate.json", str, "") for each in side} for side in (others, [base]))
    return len(seen - before - {""})


def query_texts(ids: Iterable[str], head: Run) -> dict[str, str]:
    """The texts of queries, from DVC's cache or the workspace; there are none if neither has the table of queries.

    An id is a hash of the text, so the table of any run gives the same text.

    Args:
        ids: the ids of the queries.
        head: the run whose dvc.lock has the hash of the table.
    """
    ids = list(ids)
    md5 = head.lock.out_hash(PATHS.queries.as_posix())
    for path in (*([revisions.cache_path(md5)] if md5 else []), PATHS.queries):
        if path.is_file():
            table = pd.read_parquet(path, columns=["query_id", "text"]).set_index("query_id")["text"]
            return {query: table[query] for query in ids if query in table}
    return {}
