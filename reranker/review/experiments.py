"""Experiments judged: which runs are of the same parameters, which can be compared, and which differences are noise."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reranker.evaluation.significance import Interval, holm, interval_over_runs, randomisation_test
from reranker.review.changes import changed_values
from reranker.review.runs import FIGURES, SYSTEMS, Run

SEED = "seed"
"""The parameter whose values are runs of one thing."""
REPEATS = " = "
"""Between the names of runs that are one."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone."""

    runs: tuple[Run, ...]

    def dev(self, system: str) -> "Spread":
        """NDCG@10 on dev, over the runs."""
        return spread([run.dev[system] for run in self.runs])

    def test(self, system: str) -> "Spread":
        """NDCG@10 on test, over the runs."""
        return spread(self.values(system).mean(axis=1).tolist())

    def values(self, system: str) -> NDArray[np.float64]:
        """NDCG@10 on test: one row a run, one column a query, in the order of their ids."""
        return np.stack([run.test[system].to_numpy(float) for run in self.runs])


class Spread(NamedTuple):
    """A figure over several runs; a single run has no standard deviation."""

    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """How far a setting is from the baseline in NDCG@10 on test."""

    mean: float
    interval: Interval
    p: float
    adjusted_p: float
    """For as many settings as were compared in this system."""


class Line(NamedTuple):
    """A setting beside the baseline."""

    setting: Setting
    changes: list[str]
    """`key=value` where the baseline has another value, and files that are others; nothing for the baseline."""
    differences: dict[str, Difference]
    """By system; nothing for the baseline."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def incomparable(run: Run, baseline: Run) -> str | None:
    """Why a run cannot be compared with the baseline, or None."""
    ours, theirs = set(run.per_query.index), set(baseline.per_query.index)
    if ours != theirs:
        counts = f"{len(ours - theirs):,} new, {len(theirs - ours):,} gone"
        return f"other test queries than the baseline's ({counts}): other data or another split"
    here, there = run.dev_queries, baseline.dev_queries
    if None not in (here, there) and here != there:
        return f"{here:,} dev queries, the baseline has {there:,}: other data or another split"
    return None


def settings(runs: Iterable[Run]) -> list[Setting]:
    """Put runs together that differ in their seed alone; a run that another repeats to the digit counts once."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if not changes(run, group[0]):
                group.append(run)
                break
        else:
            groups.append([run])
    return [Setting(_without_repeats(group)) for group in groups]


def _without_repeats(runs: Sequence[Run]) -> tuple[Run, ...]:
    kept: list[Run] = []
    for run in runs:
        for place, other in enumerate(kept):
            if run.params == other.params and run.dev == other.dev and run.test.equals(other.test):
                kept[place] = replace(other, name=f"{other.name}{REPEATS}{run.name}")
                break
        else:
            kept.append(run)
    return tuple(kept)


def changes(run: Run, baseline: Run) -> list[str]:
    """What went into a run that did not go into the baseline: `key=value`, seed aside, and files that are others."""
    values = [f"{key}={written(value)}" for key, value, _ in changed_values(run.params, baseline.params) if key != SEED]
    files = sorted({*run.files, *baseline.files})
    return values + [f"other {file}" for file in files if run.files.get(file) != baseline.files.get(file)]


def written(value: object) -> str:
    """A value as params.yaml has it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{', '.join(map(written, value))}]" if isinstance(value, list) else str(value)


def judge(runs: Sequence[Run], baseline: Run, *, seed: int) -> list[Line]:
    """Every setting beside the baseline's, with what can be said of the difference on test.

    The p-value is of the paired randomisation test on each query's means over runs; its null hypothesis takes the
    runs as they are. It is adjusted for all settings that are compared in the same system.

    Args:
        runs: that can be compared; the baseline may be among them.
        baseline: the runs of its parameters are the other side of every comparison.
        seed: of the resampling.
    """
    first, *others = settings([baseline, *(run for run in runs if run is not baseline)])
    found: list[dict[str, Difference]] = [{} for _ in others]
    for system in SYSTEMS:
        base = first.values(system)
        values = [other.values(system) for other in others]
        means = [each.mean(axis=0) - base.mean(axis=0) for each in values]
        p_values = [randomisation_test(mean, seed=seed) for mean in means]
        for place, adjusted in enumerate(holm(p_values)):
            found[place][system] = Difference(
                float(means[place].mean()),
                interval_over_runs(values[place], base, seed=seed),
                p_values[place],
                adjusted,
            )
    lines = [Line(other, changes(other.runs[0], baseline), found[place]) for place, other in enumerate(others)]
    return [Line(first, [], {}), *lines]


def ranked(lines: Iterable[Line], figure: str) -> list[Line]:
    """The lines by a figure, highest first; ties by what differs from the baseline.

    Args:
        lines: in any order.
        figure: one of `FIGURES`.
    """
    split, system = FIGURES[figure]

    def key(line: Line) -> tuple[float, list[str]]:
        of_split = line.setting.dev if split == "dev" else line.setting.test
        return -of_split(system).mean, line.changes

    return sorted(lines, key=key)
