"""Write the comparison of all systems, and what they cost, as one HTML page."""

from collections.abc import Mapping

import pandas as pd

from reranker.report.figures import Picture
from reranker.report.tables import cost_rows, system_rows
from reranker.report.templates import fill


def comparison_page(comparison: pd.DataFrame, costs: pd.DataFrame, pictures: Mapping[str, Picture]) -> str:
    """Render the comparison as one HTML file.

    Args:
        comparison: columns `COMPARISON_COLUMNS`.
        costs: columns `evaluation.costs.COST_COLUMNS`.
        pictures: the figures `size` and `latency`, see `cost_figures`.
    """
    return fill(
        "comparison.html.jinja",
        ["tips.js"],
        pictures,
        compared=system_rows(comparison),
        costs=cost_rows(comparison, costs),
    )
