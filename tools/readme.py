"""Write the tables of the committed metrics into README.md: the results, and all systems with their costs.

python -m tools.readme
"""

import re
from pathlib import Path

from reranker.common.artifacts import PATHS, read_csv, read_json, write_text
from reranker.evaluation.costs import COST_COLUMNS
from reranker.report.tables import (
    SYSTEM_COLUMNS,
    comparison_rows,
    label,
    markdown_costs,
    markdown_table,
    p_relation,
)
from tools.training_time import minutes

README = Path("README.md")


def results() -> str:
    """The block of results: the table, and sentences with the differences and the minutes of training."""
    systems = read_csv(PATHS.metrics / "systems.csv", SYSTEM_COLUMNS)
    figures = read_json(PATHS.metrics / "evaluate.json")
    seconds = read_json(PATHS.timing)
    rows = {row.label: f"{row.gain} {row.interval}" for row in comparison_rows(systems, figures)}

    def gain(system: str) -> str:
        return f"{rows[label(system)]} ({p_relation(figures[f'p_vs_{system}'])})"

    return (
        f"{markdown_table(systems).strip()}\n\n"
        f"{figures['queries']} test queries. The reranker's NDCG@10 differs from the tuned bi-encoder's by "
        f"{gain('tuned_biencoder')},\nfrom the zero-shot one's by {gain('zero_shot')}, "
        f"and from the fusion without the\ncross-encoder by {gain('fusion_without_cross_encoder')}. "
        f"Training steps took {minutes(seconds, 'tuned_biencoder'):.1f} minutes for the\nbi-encoder tuned further "
        f"and {minutes(seconds, 'reranker'):.1f} for everything in the reranker."
    )


def systems() -> str:
    """The block of all systems: NDCG@10, size, time and price."""
    compared = read_csv(PATHS.metrics / "comparison.csv", ["system", "mode", "ndcg@10"])
    return markdown_costs(compared, read_csv(PATHS.metrics / "costs.csv", COST_COLUMNS))


def with_block(readme: str, name: str, block: str) -> str:
    """Put a block between its markers in the README.

    Raises:
        ValueError: the README does not have the markers exactly once.
    """
    between = re.compile(rf"(<!-- {name}[^>]*-->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)
    text, number = between.subn(lambda match: f"{match[1]}{block}\n{match[2]}", readme)
    if number != 1:
        raise ValueError(f"README.md must have the markers `<!-- {name} -->` and `<!-- /{name} -->` once")
    return text


def with_blocks(readme: str) -> str:
    """Put all blocks into the README."""
    return with_block(with_block(readme, "results", results()), "systems", systems())


if __name__ == "__main__":
    write_text(with_blocks(README.read_text(encoding="utf-8")), README)
