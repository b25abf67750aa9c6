"""Compare the experiments of the current commit by NDCG@10 over seeds, and say which differences are noise.

python -m tools.experiments [--baseline REV] [--sort FIGURE] [--markdown]
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import dvc.api
from dvc.exceptions import DvcException
from dvc.repo import Repo

from reranker.common import revisions
from reranker.common.errors import UserError
from reranker.common.progress import run_stage
from reranker.common.revisions import Revision
from reranker.review.experiment_table import experiments_page
from reranker.review.experiments import incomparable, judge, sort_lines
from reranker.review.runs import DEV, FIGURES, STAGE, SYSTEMS, Run, read_run

UNFINISHED = ("Failed", "Queued", "Running")


class Experiment(NamedTuple):
    """An experiment or a commit in DVC's list."""

    revision: Revision
    state: str | None


def main(arguments: Sequence[str]) -> str:
    """Return the page of the experiments."""
    options = _parser().parse_args(arguments)
    head, experiments = list_experiments()
    if not experiments:
        raise UserError(f"{head.revision.name} has no experiments; make one with `dvc exp run -S lr=2e-5`")
    baseline = _baseline(options.baseline, [head, *experiments])
    runs, left_out = [], []
    for experiment in [head, *experiments]:
        try:
            run = usable_run(experiment)
            if reason := incomparable(run, baseline):
                raise UserError(f"{run.name}: {reason}")
            runs.append(run)
        except UserError as error:
            left_out.append(str(error))
    others = [run for run in runs if run.name != baseline.name]
    lines = judge(others, baseline, seed=baseline.params["evaluation"]["seed"])
    page = experiments_page(sort_lines(lines, options.sort), left_out, options.sort, markdown=options.markdown)
    return f"Experiments of {head.revision.name}\n\n{page}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.experiments", description=__doc__.splitlines()[0])
    parser.add_argument("--baseline", metavar="REV", help="a revision or an experiment (default: the current commit)")
    parser.add_argument("--sort", choices=FIGURES, default="dev_ndcg@10", help="highest first (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    return parser


def list_experiments() -> tuple[Experiment, list[Experiment]]:
    """The current commit, and its experiments sorted by name."""
    try:
        Repo.find_root()  # without this check, DVC clones a folder that has no repository, and leaves a folder behind
        rows = dvc.api.exp_show()
    except DvcException as error:
        raise UserError(f"DVC cannot list the experiments: {error}") from None
    head, *_ = [row["rev"] for row in rows if row["typ"] == "baseline" and row["rev"] != "workspace"]
    experiments = [
        Experiment(Revision(row["Experiment"] or row["rev"], row["rev"]), row.get("State"))
        for row in rows
        if row["typ"] != "baseline"
    ]
    return Experiment(Revision(head, "HEAD"), None), sorted(experiments)


def _baseline(name: str | None, experiments: Sequence[Experiment]) -> Run:
    by_name = {each.revision.name: each for each in experiments}
    try:
        return usable_run(by_name.get(name) or Experiment(revisions.find(name), None) if name else experiments[0])
    except UserError as error:
        raise UserError(f"the baseline {error}; choose another one with --baseline") from None


def usable_run(experiment: Experiment) -> Run:
    """Read the inputs and results of an experiment.

    Raises:
        UserError: the experiment did not end, lacks figures, or has figures of other parameters than its own.
    """
    name = experiment.revision.name
    if experiment.state in UNFINISHED:
        raise UserError(f"{name}: {experiment.state.lower()}, without figures")
    run = read_run(experiment.revision)
    if stale := run.lock.stale(run.params, STAGE):
        raise UserError(f"{name}: only some stages ran with its parameters, not {', '.join(stale)}")
    lacking = [figure for figure in DEV.values() if figure not in run.figures["train"]]
    lacking += [system for system in SYSTEMS if system not in run.per_query]
    if lacking:
        raise UserError(f"{name}: its metrics lack {', '.join(lacking)}")
    return run


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
