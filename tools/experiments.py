"""Judge the experiments of the present commit: NDCG@10 by parameters, over seeds, and what of it is noise.

python -m tools.experiments [--baseline REV] [--sort FIGURE] [--markdown]
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException
from dvc.repo import Repo

from reranker.common.artifacts import PATHS
from reranker.common.errors import UserError
from reranker.common.progress import run_stage
from reranker.review import revisions
from reranker.review.experiment_table import text_page
from reranker.review.experiments import (
    FIGURES,
    SYSTEMS,
    Run,
    dotted,
    incomparable,
    judge,
    ranked,
    source_files,
    stale_stages,
)

UNFINISHED = ("Failed", "Queued", "Running")
STAGE = "evaluate"
"""Whose figures are compared."""


class Listed(NamedTuple):
    """An experiment as DVC lists it."""

    name: str
    revision: str
    state: str | None


class Unusable(Exception):
    """Why a revision has no figures that can be compared."""


def main(arguments: Sequence[str]) -> str:
    """The page of the experiments."""
    options = _parser().parse_args(arguments)
    head, experiments = listed()
    if not experiments:
        raise UserError(f"{head.name} has no experiments; make one with `dvc exp run -S lr=2e-5`")
    baseline = _baseline(options.baseline, head, experiments)
    runs, left_out = [], {}
    for experiment in [head, *experiments]:
        try:
            run = read_run(experiment)
            if reason := incomparable(run, baseline):
                raise Unusable(reason)
            runs.append(run)
        except Unusable as error:
            left_out[experiment.name] = str(error)
    others = [run for run in runs if run.name != baseline.name]
    lines = judge(others, baseline, seed=baseline.params["evaluation.seed"])
    page = text_page(ranked(lines, options.sort), left_out, options.sort, markdown=options.markdown)
    return f"Experiments of {head.name}\n\n{page}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.experiments", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--baseline", metavar="REV", help="a revision or an experiment; the present commit if not given"
    )
    parser.add_argument("--sort", choices=FIGURES, default="dev_ndcg@10", help="highest first (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    return parser


def listed() -> tuple[Listed, list[Listed]]:
    """The present commit, and its experiments by name."""
    try:
        Repo.find_root()  # else DVC clones the folder, and leaves another one behind when it cannot
        rows = dvc.api.exp_show()
    except DvcException as error:
        raise UserError(f"DVC cannot list the experiments: {error}") from None
    head, *_ = [row["rev"] for row in rows if row["typ"] == "baseline" and row["rev"] != "workspace"]
    found = [
        Listed(row["Experiment"] or row["rev"], row["rev"], row.get("State"))
        for row in rows
        if row["typ"] != "baseline"
    ]
    return Listed(head, "HEAD", None), sorted(found)


def _baseline(revision: str | None, head: Listed, experiments: Sequence[Listed]) -> Run:
    known = {each.name: each for each in (head, *experiments)}
    chosen = known.get(revision or head.name) or Listed(str(revision), str(revision), None)
    try:
        return read_run(chosen)
    except Unusable as error:
        raise UserError(f"the baseline {chosen.name}: {error}; choose another one with --baseline") from None


def read_run(experiment: Listed) -> Run:
    """What went into an experiment and came out of it, as git has it.

    Raises:
        Unusable: it did not end, lacks figures, or has figures of other parameters than its own.
    """
    if experiment.state in UNFINISHED:
        raise Unusable(f"{experiment.state.lower()}, without figures")
    params = _read(experiment, PATHS.params, revisions.read_yaml)
    lock = _read(experiment, Path("dvc.lock"), revisions.read_yaml)
    if STAGE not in lock["stages"]:
        raise Unusable(f"the stage {STAGE} did not run")
    if stale := stale_stages(lock, params, STAGE):
        raise Unusable(f"only some stages ran with its parameters, not {', '.join(stale)}")
    trained = _read(experiment, PATHS.metrics / "train.json", json.loads)
    prepared = _read(experiment, PATHS.metrics / "prepare.json", json.loads)
    table = _read(experiment, PATHS.metrics / "per_query.csv", _csv)
    figures = {system: name for name, (split, system) in FIGURES.items() if split == "dev"}
    lacking = [name for name in figures.values() if name not in trained]
    lacking += [name for name in ("query_id", *SYSTEMS) if name not in table or table[name].isna().any()]
    if lacking:
        raise Unusable(f"its metrics lack {', '.join(lacking)}")
    return Run(
        name=experiment.name,
        params=dotted(params),
        files=source_files(lock, STAGE),
        dev={system: trained[name] for system, name in figures.items()},
        dev_queries=prepared.get("queries_dev"),
        test=table.set_index("query_id")[list(SYSTEMS)],
    )


def _read(experiment: Listed, path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return revisions.read(experiment.revision, path, parse)
    except revisions.Unreadable as error:
        raise Unusable(str(error)) from None


def _csv(text: str) -> pd.DataFrame:
    empty = {system: [""] for system in SYSTEMS}
    return pd.read_csv(StringIO(text), dtype={"query_id": str}, keep_default_na=False, na_values=empty)


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
