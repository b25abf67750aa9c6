"""report: the figures of the earlier stages as one page, four pictures and the table of results.

python -m stages.report
"""

import sys
import time
from collections.abc import Sequence

from reranker import figures, report, tables
from reranker.errors import UserError
from reranker.progress import run_stage
from reranker.records import PATHS, read_csv, read_json, read_table, record_time, write_bytes, write_text


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    systems = read_csv(PATHS.metrics / "systems.csv", tables.SYSTEM_COLUMNS)
    evaluation = read_json(PATHS.metrics / "evaluate.json")
    pictures = {
        "systems": figures.systems_figure(systems),
        "training": figures.training_figure(
            read_csv(PATHS.metrics / "curve_loss.csv", ["step", "loss"]),
            read_csv(PATHS.metrics / "curve_dev.csv", ["step", "ndcg@10"]),
        ),
        "gains": figures.gains_figure(
            read_csv(PATHS.metrics / "per_query.csv", ["query_id", tables.BASELINE, tables.SHIPPED])
        ),
    }
    lengths = read_csv(PATHS.metrics / "lengths.csv", ["text", "from", "to", "share"])
    pictures["lengths"] = figures.lengths_figure(lengths)
    numbers = report.Numbers(
        systems=systems,
        evaluation=evaluation,
        prepare=read_json(PATHS.metrics / "prepare.json"),
        dropped=read_table(PATHS.dropped, ["reason", "origin", "query", "passage"]),
        leaks=read_table(PATHS.leaks, report.LEAK_COLUMNS),
        mine=read_json(PATHS.metrics / "mine.json"),
        audit=read_csv(PATHS.audit, report.AUDIT_COLUMNS, as_text=True),
        train=read_json(PATHS.metrics / "train.json"),
    )
    try:
        html = report.page(numbers, pictures)
    except KeyError as missing:
        raise UserError(f"{PATHS.metrics}/: a figure {missing} is missing; run `dvc repro --force`") from None

    for name, picture in pictures.items():
        write_text(picture.svg, PATHS.report / f"{name}.svg")
        write_bytes(picture.png, PATHS.report / f"{name}.png")
    index = PATHS.report / "index.html"
    write_text(html, index)
    record_time("report", time.monotonic() - started)
    table = tables.text_table(systems, int(evaluation["queries"]))
    return f"\n{table}\n\nreport: figures, comparisons and data -> {index}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
