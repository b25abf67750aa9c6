"""Draw NDCG@10 against minutes of training from the experiments of this commit, and print them as a table.

python -m tools.minutes
"""

import json
import subprocess
from pathlib import Path

import dvc.api
import pandas as pd
from matplotlib.figure import Figure

from reranker.records import write_csv
from reranker.tables import label

TRAINED = {
    "tuned_biencoder": ("warm", "control"),
    "cross_encoder": ("warm", "train"),
    "reranker": ("warm", "static", "train"),
}
"""The stages in which each system learns."""
TABLE, FIGURE = Path("docs/minutes.csv"), Path("docs/minutes.svg")


def measured() -> pd.DataFrame:
    """One row per experiment and system: minutes of training and NDCG@10 on the test queries."""
    rows = []
    for experiment in dvc.api.exp_show():
        if experiment["rev"] == "workspace":
            continue
        shown = subprocess.run(
            ["git", "show", f"{experiment['rev']}:metrics/timing.json"], capture_output=True, check=True
        )
        seconds = json.loads(shown.stdout)
        for system, stages in TRAINED.items():
            key = "ndcg@10" if system == "reranker" else f"ndcg@10_{system}"
            minutes = sum(seconds[f"{stage}_training_seconds"] for stage in stages) / 60
            rows.append((experiment["Experiment"] or "default", system, round(minutes, 1), round(experiment[key], 4)))
    table = pd.DataFrame(rows, columns=["experiment", "system", "minutes", "ndcg@10"])
    # an experiment that did not train a system repeats another one's figure
    table = table.drop_duplicates(["system", "ndcg@10"])
    return table.sort_values(["system", "minutes"], ignore_index=True)


def draw(table: pd.DataFrame) -> Figure:
    """A line per system over the logarithm of the minutes."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for system in TRAINED:
        points = table[table["system"] == system]
        axes.plot(points["minutes"], points["ndcg@10"], "o-", label=label(system))
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
    found = measured()
    write_csv(found, TABLE)
    draw(found).savefig(FIGURE, metadata={"Date": None})
    print(found.to_string(index=False))
