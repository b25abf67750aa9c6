"""Group experiments by their parameters, and compare each group with the baseline."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reranker.evaluation.significance import Interval, holm, interval_over_runs, randomisation_test
from reranker.review.changes import changed_values
from reranker.review.runs import FIGURES, SYSTEMS, Run

SEED = "seed"
"""The parameter in which the runs of one setting may differ."""
REPEATS = " = "
"""The separator between the names of equal runs, which count as one."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone."""

    runs: tuple[Run, ...]

    def dev(self, system: str) -> "Spread":
        """NDCG@10 on dev over the runs."""
        return spread([run.dev[system] for run in self.runs])

    def test(self, system: str) -> "Spread":
        """NDCG@10 on test over the runs."""
        return spread(self.values(system).mean(axis=1).tolist())

    def values(self, system: str) -> NDArray[np.float64]:
        """NDCG@10 on test: one row per run, one column per query, in the order of the queries' ids."""
        return np.stack([run.test[system].to_numpy(float) for run in self.runs])


class Spread(NamedTuple):
    """A figure over several runs; a single run has no standard deviation."""

    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """A setting's NDCG@10 on test minus that of the baseline."""

    mean: float
    interval: Interval
    p: float
    adjusted_p: float
    """The p-value, corrected for the number of settings that were compared in this system."""


class Line(NamedTuple):
    """A setting with its differences from the baseline."""

    setting: Setting
    changes: list[str]
    """`key=value` for each value that differs from the baseline's, and files that differ; empty for the baseline."""
    differences: dict[str, Difference]
    """The difference of each system; empty for the baseline."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def incomparable(run: Run, baseline: Run) -> str | None:
    """The reason why a run cannot be compared with the baseline, or None."""
    ours, theirs = set(run.per_query.index), set(baseline.per_query.index)
    if ours != theirs:
        counts = f"{len(ours - theirs):,} new, {len(theirs - ours):,} gone"
        return f"other test queries than the baseline's ({counts}): other data or another split"
    here, there = run.dev_queries, baseline.dev_queries
    if None not in (here, there) and here != there:
        return f"{here:,} dev queries, the baseline has {there:,}: other data or another split"
    return None


def settings(runs: Iterable[Run]) -> list[Setting]:
    """Group runs that differ in their seed alone; runs with the same parameters and figures count once."""
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
    distinct: list[Run] = []
    for run in runs:
        for place, other in enumerate(distinct):
            if run.params == other.params and run.dev == other.dev and run.test.equals(other.test):
                distinct[place] = replace(other, name=f"{other.name}{REPEATS}{run.name}")
                break
        else:
            distinct.append(run)
    return tuple(distinct)


def changes(run: Run, baseline: Run) -> list[str]:
    """Inputs of a run that differ from the baseline's: `key=value` for parameters but the seed, and files."""
    values = [f"{key}={as_yaml(value)}" for key, value, _ in changed_values(run.params, baseline.params) if key != SEED]
    files = sorted({*run.files, *baseline.files})
    return values + [f"other {file}" for file in files if run.files.get(file) != baseline.files.get(file)]


def as_yaml(value: object) -> str:
    """Format a value as in params.yaml."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{', '.join(map(as_yaml, value))}]" if isinstance(value, list) else str(value)


def judge(runs: Sequence[Run], baseline: Run, *, seed: int) -> list[Line]:
    """Compare every setting with the baseline's setting on test.

    The p-value is that of the paired randomisation test on each query's mean over runs; its null hypothesis treats the
    runs as fixed. It is adjusted for all settings that are compared in the same system.

    Args:
        runs: runs that can be compared; the baseline may be among them.
        baseline: the run whose setting every other setting is compared with.
        seed: seed of the resampling.
    """
    first, *others = settings([baseline, *(run for run in runs if run is not baseline)])
    differences: list[dict[str, Difference]] = [{} for _ in others]
    for system in SYSTEMS:
        base = first.values(system)
        values = [other.values(system) for other in others]
        means = [each.mean(axis=0) - base.mean(axis=0) for each in values]
        p_values = [randomisation_test(mean, seed=seed) for mean in means]
        for place, adjusted in enumerate(holm(p_values)):
            differences[place][system] = Difference(
                float(means[place].mean()),
                interval_over_runs(values[place], base, seed=seed),
                p_values[place],
                adjusted,
            )
    lines = [Line(other, changes(other.runs[0], baseline), differences[place]) for place, other in enumerate(others)]
    return [Line(first, [], {}), *lines]


def sort_lines(lines: Iterable[Line], figure: str) -> list[Line]:
    """Sort the lines by a figure, the highest first; ties are sorted by their differences from the baseline.

    Args:
        lines: the lines in any order.
        figure: one of `FIGURES`.
    """
    split, system = FIGURES[figure]

    def key(line: Line) -> tuple[float, list[str]]:
        of_split = line.setting.dev if split == "dev" else line.setting.test
        return -of_split(system).mean, line.changes

    return sorted(lines, key=key)
