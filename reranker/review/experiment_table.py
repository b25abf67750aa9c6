"""Format the experiments as a table for a terminal or in Markdown. This module rounds figures and computes none."""

import re
import textwrap
from collections.abc import Sequence

from reranker.report.tables import count, label, p_relation, score, signed
from reranker.review.experiments import REPEATS, Difference, Line, Spread
from reranker.review.runs import FIGURES, SYSTEMS

ALPHA = 0.05
"""The probability of calling any difference real that does not exist."""
WIDTH = 100
"""Columns of a terminal, to which sentences are wrapped; lines of a table may be longer."""
HEAD = ("Dev NDCG@10", "Test NDCG@10", "Test − baseline [95%]", "p", "p (Holm)", "Runs", "Differs from the baseline in")


def experiments_page(lines: Sequence[Line], left_out: Sequence[str], figure: str, *, markdown: bool) -> str:
    """Format a table for each system, with notes on how to read it.

    Args:
        lines: the lines in the order of the table, including the baseline's.
        left_out: for each experiment that is not in the table, its name and the reason.
        figure: the figure by which the lines are sorted, one of `FIGURES`.
        markdown: whether to write Markdown instead of columns for a terminal.
    """
    tables = [_table(lines, system, markdown=markdown) for system in SYSTEMS]
    points = [*notes(lines, figure), *(f"Left out: {reason}." for reason in left_out)]
    width = None if markdown else WIDTH
    return "\n\n".join([*tables, "\n".join(_point(point, width) for point in points)])


def _point(text: str, width: int | None) -> str:
    wrapped = [text] if width is None else textwrap.wrap(text, width - 2, break_on_hyphens=False)
    return "- " + "\n  ".join(wrapped)


def _table(lines: Sequence[Line], system: str, *, markdown: bool) -> str:
    several = len(lines) > 2
    rows = [HEAD, *(_cells(line, system) for line in lines)]
    if not several:
        rows = [(*row[:4], *row[5:]) for row in rows]
    if markdown:
        first, *rest = [[row[-1], *row[:-1]] for row in rows]
        body = [first, ["---", *["---:"] * (len(first) - 1)], *([_escaped(row[0]), *row[1:]] for row in rest)]
        return "\n".join([f"**{label(system)}**", "", *(f"| {' | '.join(row)} |" for row in body)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *others = ("  ".join([*map(str.rjust, row[:-1], widths), row[-1]]) for row in rows)
    return "\n".join([label(system), head, "─" * len(head), *others])


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", text)


def _cells(line: Line, system: str) -> tuple[str, ...]:
    difference = line.differences.get(system)
    return (
        _spread(line.setting.dev(system)),
        _spread(line.setting.test(system)),
        "–" if difference is None else _gain(difference),
        "–" if difference is None else _p(difference.p),
        "–" if difference is None else _p(difference.adjusted_p),
        count(len(line.setting.runs)),
        name(line),
    )


def _spread(spread: Spread) -> str:
    return score(spread.mean) + ("" if spread.deviation is None else f" ± {score(spread.deviation)}")


def _gain(difference: Difference) -> str:
    low, high = difference.interval
    return f"{signed(difference.mean)} [{signed(low)}, {signed(high)}]"


def _p(value: float) -> str:
    return p_relation(value).removeprefix("p ").removeprefix("= ")


def name(line: Line) -> str:
    """The differences from the baseline, and the names of the experiments."""
    changed = " ".join(line.changes) if line.differences else "nothing: the baseline"
    return f"{changed} ({', '.join(run.name for run in line.setting.runs)})"


def notes(lines: Sequence[Line], figure: str) -> list[str]:
    """Sentences on the order of the lines, the meaning of the columns and the significant differences."""
    (baseline,) = (line for line in lines if not line.differences)
    compared = [line for line in lines if line.differences]
    queries = len(baseline.setting.runs[0].per_query)
    dev_queries = baseline.setting.runs[0].dev_queries
    of_dev = "" if dev_queries is None else f"{count(dev_queries)} dev queries, "
    split, _ = FIGURES[figure]
    order = f"Sorted by {figure}" + (
        ": choose on dev, and use test only to report the choice."
        if split == "dev"
        else ", a figure of test, which only serves to report: choose by dev_ndcg@10."
    )
    points = [f"{of_dev}{count(queries)} test queries. {order}"]
    if not compared:
        return [*points, "Nothing is compared: no experiment has other parameters than the baseline."]
    points.append(
        "Intervals resample the test queries and, where there are several, the runs; "
        "p: paired randomisation test on each query's mean over runs."
    )
    if len(compared) > 1:
        points.append(
            f"{count(len(compared))} comparisons per table: one of them may look real by chance, "
            "so use p (Holm), which is corrected for their number (Holm 1979)."
        )
    if any(len(line.setting.runs) == 1 for line in lines):
        points.append(
            "A single run does not show what another seed would change: queue its parameters with -S 'seed=13,14'."
        )
    if any(REPEATS in run.name for line in lines for run in line.setting.runs):
        points.append(f"Names joined by{REPEATS}have the same parameters, seed and figures: one run.")
    return [*points, *(_verdict(compared, system) for system in SYSTEMS)]


def _verdict(compared: Sequence[Line], system: str) -> str:
    beyond = [
        f"{'better' if line.differences[system].mean > 0 else 'worse'}: {name(line)}"
        for line in compared
        if line.differences[system].adjusted_p < ALPHA
    ]
    listed = "; ".join(beyond) or "none"
    return f"{label(system)}, differences on test beyond the noise of queries (corrected p below {ALPHA}): {listed}."
