"""Write the result table of the committed metrics into README.md.

python -m tools.readme
"""

import re
from pathlib import Path

from reranker.records import PATHS, read_csv, read_json, write_text
from reranker.tables import SYSTEM_COLUMNS, markdown_table, p_relation

README = Path("README.md")


def results() -> str:
    """The block between the markers: the table, and the sentence that says on how many queries."""
    systems = read_csv(PATHS.metrics / "systems.csv", SYSTEM_COLUMNS)
    figures = read_json(PATHS.metrics / "evaluate.json")
    gain = "gain_vs_tuned_biencoder"
    return (
        f"{markdown_table(systems).strip()}\n\n"
        f"{figures['queries']} test queries. The reranker gains {figures[gain]:+.3f} NDCG@10 "
        f"[{figures[f'{gain}_low']:+.3f}, {figures[f'{gain}_high']:+.3f}] on the tuned bi-encoder "
        f"({p_relation(figures['p_vs_tuned_biencoder'])}) and {figures['gain_vs_zero_shot']:+.3f} on the zero-shot one "
        f"({p_relation(figures['p_vs_zero_shot'])})."
    )


def with_results(readme: str, block: str) -> str:
    """The README with the block between its markers.

    Raises:
        ValueError: the markers are not there.
    """
    between = re.compile(r"(<!-- results[^>]*-->\n).*?(<!-- /results -->)", flags=re.DOTALL)
    written, number = between.subn(rf"\1{block}\n\2", readme)
    if number != 1:
        raise ValueError("README.md must have the markers `<!-- results -->` and `<!-- /results -->` once")
    return written


if __name__ == "__main__":
    write_text(with_results(README.read_text(encoding="utf-8"), results()), README)
