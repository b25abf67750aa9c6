"""page: write one page with all systems compared, their costs, and two pictures of quality against cost.

python -m stages.compare.page
"""

import sys
import time
from collections.abc import Sequence

from reranker.common.artifacts import PATHS, read_csv, record_time, write_text
from reranker.common.progress import run_stage
from reranker.evaluation.costs import COST_COLUMNS
from reranker.report.comparison_page import comparison_page
from reranker.report.cost_figures import latency_figure, size_figure
from reranker.report.tables import COMPARISON_COLUMNS


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    comparison = read_csv(PATHS.metrics / "comparison.csv", COMPARISON_COLUMNS)
    costs = read_csv(PATHS.metrics / "costs.csv", COST_COLUMNS)
    pictures = {"size": size_figure(comparison, costs), "latency": latency_figure(comparison, costs)}
    html = comparison_page(comparison, costs, pictures)
    for name, picture in pictures.items():
        write_text(picture.svg, PATHS.comparison.with_suffix("") / f"{name}.svg")
    write_text(html, PATHS.comparison)
    record_time("compare_page", time.monotonic() - started)
    return f"page: {comparison['system'].nunique()} systems -> {PATHS.comparison}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
