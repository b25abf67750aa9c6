"""Write the results of the committed metrics into README.md.

python -m tools.readme
"""

import re
import textwrap
from pathlib import Path

from reranker.common.artifacts import PATHS, read_csv, read_json, write_text
from reranker.common.params import load_params
from reranker.report.tables import SYSTEM_COLUMNS, markdown_table, score, verdict

WIDTH = 120
"""Characters of a line."""
README = Path("README.md")


def results() -> str:
    """The block of results: the table, what it says in sentences, and the minutes of training."""
    systems = read_csv(PATHS.metrics / "systems.csv", SYSTEM_COLUMNS)
    figures = read_json(PATHS.metrics / "evaluate.json")
    seconds = read_json(PATHS.timing)
    top_k = load_params(PATHS.params).top_k
    static, biencoder, train = (seconds[f"{stage}_training_seconds"] for stage in ("static", "biencoder", "train"))
    sentences = (
        f"{verdict(figures)} A perfect order of the first stage's {top_k} candidates would score "
        f"{score(figures['ndcg@10_perfect'])}. Training steps took {(static + biencoder) / 60:.1f} minutes for "
        f"the first stage and {train / 60:.1f} for the cross-encoder."
    )
    return f"{markdown_table(systems).strip()}\n\n{textwrap.fill(sentences, WIDTH, break_on_hyphens=False)}"


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
    return with_block(readme, "results", results())


if __name__ == "__main__":
    write_text(with_blocks(README.read_text(encoding="utf-8")), README)
