"""Draw NDCG@10 against minutes of training from the experiments of a commit, and print both as a table.

Only experiments that differ from the commit in nothing but `seed`, `train_queries`, `epochs` and
`evaluation.control_queries` are used. None of them trains the bi-encoder of `warm` or the static embedding again, so
the rows of these have one run each. If DVC restored an output from its run cache, its time was not measured, and its
figure is left out; `dvc exp run --force` measures it again.

python -m tools.minutes [REV]
"""

import json
import subprocess
import sys
from pathlib import Path

import dvc.api
import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from reranker.common.artifacts import write_csv
from reranker.report.tables import label
from reranker.review.runs import dotted
from tools.training_time import TRAINED, minutes

DATA = {"control": "evaluation.control_queries", "static": "static.queries", "train": "train_queries"}
"""The parameter that sets the number of training queries of a stage."""
FREE = {"seed", "train_queries", "epochs", "evaluation.control_queries"}
"""Parameters in which the experiments may differ."""
TABLE, FIGURE = Path("docs/minutes.csv"), Path("docs/minutes.svg")


def minutes_table(revision: str) -> pd.DataFrame:
    """One row per system and training size: number of runs, mean minutes, and mean and range of NDCG@10 on test."""
    experiments = [row for row in dvc.api.exp_show(revs=revision) if row["rev"] != "workspace"]
    rows = []
    for experiment in experiments:
        if _fixed(experiment["rev"]) != _fixed(experiments[0]["rev"]):
            continue
        seconds, first = _seconds(experiment["rev"]), _seconds(experiments[0]["rev"])
        for system, stages in TRAINED.items():
            key = "ndcg@10" if system == "reranker" else f"ndcg@10_{system}"
            last = stages[-1]
            # no other stage reads the seed and the epochs
            keys = ["seed", "epochs", DATA[last]] if last == "train" else [DATA[last]]
            other = any(experiment[name] != experiments[0][name] for name in keys)
            if other and seconds[f"{last}_training_seconds"] == first[f"{last}_training_seconds"]:
                continue
            run = " ".join(str(experiment[name]) for name in keys)
            epochs = int(experiment["epochs"]) if last == "train" else 1
            rows.append((system, int(experiment[DATA[last]]), epochs, run, minutes(seconds, system), experiment[key]))
    table = pd.DataFrame(rows, columns=["system", "queries", "epochs", "run", "minutes", "ndcg@10"])
    # an experiment that did not train a system repeats the figure of another one
    groups = table.drop_duplicates(["system", "run"]).groupby(["system", "queries", "epochs"])
    summary = groups.agg(
        runs=("minutes", "size"),
        minutes=("minutes", "mean"),
        mean=("ndcg@10", "mean"),
        low=("ndcg@10", "min"),
        high=("ndcg@10", "max"),
    )
    return summary.round({"minutes": 1, "mean": 4, "low": 4, "high": 4}).reset_index()


def _fixed(revision: str) -> dict[str, object]:
    return {key: value for key, value in dotted(dvc.api.params_show(rev=revision)).items() if key not in FREE}


def _seconds(revision: str) -> dict[str, float]:
    file = subprocess.run(["git", "show", f"{revision}:metrics/timing.json"], capture_output=True, check=True)
    return dict(json.loads(file.stdout))


def draw(table: pd.DataFrame) -> Figure:
    """Draw a line per system over the logarithm of the minutes, with bars for the range over seeds."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for system in TRAINED:
        points = table[table["system"] == system]
        spread = (points["mean"] - points["low"], points["high"] - points["mean"])
        axes.errorbar(points["minutes"], points["mean"], yerr=spread, fmt="o-", capsize=3, label=label(system))
    axes.set_xscale("log")
    ticks = [2, 5, 10, 20, 60]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("Minutes of training on two cores")
    axes.set_ylabel("NDCG@10 on the test queries")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    table = minutes_table(sys.argv[1] if len(sys.argv) > 1 else "HEAD")
    write_csv(table, TABLE)
    with matplotlib.rc_context({"svg.hashsalt": "minutes"}):  # without it every run writes other ids
        draw(table).savefig(FIGURE, metadata={"Date": None})
    print(table.to_string(index=False))
