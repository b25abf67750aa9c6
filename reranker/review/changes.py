"""What differs between the two runs of a review, and what speaks against comparing them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from reranker.common import revisions
from reranker.common.artifacts import PATHS
from reranker.common.revisions import ABSENT, FOLDER, Revision, within
from reranker.review.runs import STAGE, Run, dotted

QRELS = "data/scored/test.qrels"
"""The judgments of the test queries, whose hash dvc.lock has."""
TABLES = tuple(path.as_posix() for path in (PATHS.passages, PATHS.queries, PATHS.judgments))
"""Files that are others where the data are."""
ROWS = ("rows", "passages", "judgments", "queries_train", "queries_dev", "queries_test")
"""Of metrics/prepare.json."""


class Change(NamedTuple):
    """A value before and after."""

    name: str
    before: Any
    after: Any


def changed_values(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Values that differ, nested keys dotted, in the order of the files; `(absent)` where a side has no such key."""
    ours, theirs = dotted(before), dotted(after)
    return [Change(key, ours.get(key, ABSENT), theirs.get(key, ABSENT)) for key in _others(ours, theirs)]


def changed_data(base: Run, head: Run) -> list[Change]:
    """Rows and queries of each split, files of the user's, and tables of data/prepared that are others."""
    counts = [
        {key: run.figures["prepare"][key] for key in ROWS if key in run.figures["prepare"]} for run in (base, head)
    ]
    files = [{**run.raw, **tables} for run, tables in zip((base, head), _tables(base, head), strict=True)]
    return [*changed_values(*counts), *(_short(path, files) for path in _others(*files))]


def _tables(base: Run, head: Run) -> list[dict[str, str]]:
    """The hashes of the tables; of their folder where a run has written it and its manifest is not to be had."""
    folder = PATHS.passages.parent.as_posix()
    tables, folders = (
        [{path: md5 for path in paths if (md5 := run.lock.out_hash(path))} for run in (base, head)]
        for paths in (TABLES, [folder])
    )
    return folders if any(whole and not part for whole, part in zip(folders, tables, strict=True)) else tables


def _others(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*before, *after]) if before.get(key, ABSENT) != after.get(key, ABSENT)]


def _short(path: str, files: Sequence[Mapping[str, str]]) -> Change:
    before, after = (run[path][:7] if path in run else ABSENT for run in files)
    return Change(path, before, after)


def changed_code(base: Run, head: Run) -> dict[tuple[str, ...], list[str]]:
    """Files that the figures depend on and that are others, by the stages that use them; those in data/ are left out.

    The items of a stage, such as `score@bm25`, are one stage. Of a folder git tells which files are others; it is
    named itself where its hash is another and git has no such file, as with a folder that DVC tracks.
    """
    ours, theirs = ({path: md5 for path, md5 in run.files.items() if not within(path, "data")} for run in (base, head))
    folders = [path for path, md5 in {**ours, **theirs}.items() if md5.endswith(FOLDER)]
    changed = {*revisions.changed_files(base.commit, head.commit, *folders)}
    for path in _others(ours, theirs):
        git_tells = any(within(path, folder) for folder in folders)
        if not git_tells or (path in ours and path in theirs and not any(within(file, path) for file in changed)):
            changed.add(path)
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(changed):
        groups.setdefault(_users(head, path), []).append(path)
    return dict(sorted(groups.items()))


def _users(run: Run, path: str) -> tuple[str, ...]:
    stages = [name for name in run.lock.upstream(STAGE) if any(within(path, dep) for dep in run.lock.deps(name))]
    return tuple(sorted({name.partition("@")[0] for name in stages}))


def reasons_against(base: Run, head: Run, stale: Sequence[str]) -> list[str]:
    """Why the figures of two sides are not of one test, or not those of the commits.

    Args:
        base: before.
        head: after.
        stale: the stages of `head` that are older than its code, parameters or data.
    """
    reasons = []
    if needed := sorted({*stale} & {*head.lock.upstream(STAGE)}):
        reasons.append(f"the figures are older than the change: {', '.join(needed)} did not run with it; `dvc repro`")
    ours, theirs = {*base.per_query.index}, {*head.per_query.index}
    if ours != theirs:
        new, gone, both = len(theirs - ours), len(ours - theirs), len(ours & theirs)
        reasons.append(f"other test queries ({new:,} new, {gone:,} gone): only the {both:,} common ones are compared")
    elif _known_to_differ(base, head, QRELS):
        reasons.append("other judgments of the test queries")
    return reasons


def _known_to_differ(base: Run, head: Run, path: str) -> bool:
    before, after = base.lock.out_hash(path), head.lock.out_hash(path)
    return None not in (before, after) and before != after


def doubts(base: Run, head: Run, base_stale: Sequence[str], head_stale: Sequence[str]) -> list[str]:
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
    if others := sorted({*head_stale} - {*head.lock.upstream(STAGE)}):
        found.append(f"stages behind the figures are stale: {', '.join(others)}; `dvc repro`")
    if _known_to_differ(base, head, PATHS.passages.as_posix()):
        found.append("the passages are others: the same query may be harder or easier among them")
    for run in (base, head):
        if abs(run.per_query["reranker"].mean() - run.figures["evaluate"]["ndcg@10"]) > 1e-9:
            found.append(
                f"{run.name}: metrics/per_query.csv and metrics/evaluate.json are not of one run: "
                "edited or merged by hand? `dvc repro --force evaluate`"
            )
    keys = [change.name for change in changed_values(base.params, head.params)]
    if keys and all(key.endswith("seed") for key in keys) and not changed_code(base, head):
        found.append("only a seed was changed: what differs is what chance does to a training, however small p is")
    if thresholds := [key for key in keys if key.startswith(("review_", "review."))]:
        found.append(f"this change sets thresholds by which it is judged: {', '.join(thresholds)}")
    return found


def count_looks(base: Revision, head: Revision) -> int:
    """How many figures of test were seen between two commits, the head's included: each that is another counts once.

    Looked at are the commits of `head` that `base` has not, and the experiments of this clone that started from one
    of these or from `base`.
    """
    commits = revisions.git("rev-list", f"{base.commit}..{head.commit or 'HEAD'}").split()
    starts = {base.commit, *commits}
    tried = [each.hash for each in revisions.experiments() if each.start in starts]
    others = {Revision("", commit) for commit in [*commits, *tried, head.commit]}
    seen, before = ({each.read(PATHS.metrics / "evaluate.json", str, "") for each in side} for side in (others, [base]))
    return len(seen - before - {""})


def query_texts(ids: Iterable[str], head: Run) -> dict[str, str]:
    """The texts of queries, from DVC's cache or from the workspace; none where neither has the table.

    An id is made of the text, so any run's table will do.

    Args:
        ids: of queries.
        head: the run; its dvc.lock has the hash of the table.
    """
    wanted = list(ids)
    md5 = head.lock.out_hash(PATHS.queries.as_posix())
    for path in (*([revisions.cache_path(md5)] if md5 else []), PATHS.queries):
        if path.is_file():
            table = pd.read_parquet(path, columns=["query_id", "text"]).set_index("query_id")["text"]
            return {query: table[query] for query in wanted if query in table}
    return {}
