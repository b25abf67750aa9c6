"""Format a review as Markdown; `verdicts` and `changes` decide, and this module only rounds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reranker.common.errors import printable
from reranker.report.tables import count, label, p_relation, score, signed
from reranker.review.changes import Change
from reranker.review.experiments import as_yaml
from reranker.review.runs import HEADLINE, SECONDS, Run
from reranker.review.verdicts import Finding, PairedFigure, Rules, bonferroni, queries_needed

MARKER = "<!-- reranker-review -->"
"""The marker by which CI finds its earlier comment."""
COSTS = {
    "parameters": "{:,.0f}",
    "megabytes": "{:,.1f}",
    "pairs_per_second": "{:,.1f}",
    "p50_ms_30": "{:,.1f}",
    "p95_ms_30": "{:,.1f}",
    "usd_per_1000_queries": "{:.4f}",
}
"""Columns of metrics/costs.csv that are shown, with their formats."""
ROWS = 30
"""The largest number of rows of a table, because the length of a comment is limited."""
CHARACTERS = 120
"""The largest number of characters of a value or a text."""


@dataclass(frozen=True)
class Review:
    """The content of a review page."""

    base: Run
    head: Run
    rules: Rules
    finding: Finding
    results: Mapping[str, PairedFigure]
    """The comparison of each system, the shipped one first."""
    looks: int
    reasons: Sequence[str]
    """Reasons why the sides cannot be compared."""
    doubts: Sequence[str]
    params: Sequence[Change]
    data: Sequence[Change]
    code: Mapping[tuple[str, ...], Sequence[str]]
    """Changed files by the stages that use them."""
    figures: Sequence[Change]
    gained: Sequence[str]
    """Ids of queries, the most changed first."""
    lost: Sequence[str]
    texts: Mapping[str, str]
    """The texts of these queries, where they are available."""


def review_page(review: Review) -> str:
    """The verdict in one line, and the evidence below it."""
    parts = [
        f"**{review.finding.word}: {sentence(review)}**",
        _sides(review),
        _points(review),
        _section("Figures", _figures(review)),
        _section("Parameters", _changes(review.params, "Key")),
        _section("Data", _changes(review.data, "What")),
        _section("Code", _code(review.code)),
        _section("Costs", _costs(review.base, review.head)),
        _folded("Queries that gained and lost most", _queries(review)),
        _folded("Other figures that changed", _changes(review.figures, "Figure")),
        MARKER,
    ]
    return "\n\n".join(filter(None, parts))


def sentence(review: Review) -> str:
    """The difference of the shipped system, and the conclusion from it."""
    result, rules = review.results["reranker"], review.rules
    low, high = result.interval
    change = f"{signed(result.difference)} NDCG@10, 95% [{signed(low)}, {signed(high)}], {p_relation(result.p)}"
    sentences = {
        Finding.SAME: f"no change: NDCG@10 is the same on each of {count(result.queries)} test queries",
        Finding.GAIN: f"{change}: real",
        Finding.UNDETECTED: f"{change}: within noise{_queries_note(result, rules)}",
        Finding.SMALL: f"{change}: real, but {_threshold(result, rules)}",
        Finding.LUCKY: (
            f"{change}: not real after {review.looks} looks at test; corrected for these, "
            f"{p_relation(bonferroni(result.p, review.looks))}"
        ),
        Finding.LOSS: f"{change}: real, and beyond the loss of {rules.max_loss:g} that review.max_loss allows",
        Finding.INCOMPARABLE: f"{'; '.join(review.reasons)}. On {count(result.queries)} queries {change}",
    }
    return sentences[review.finding]


def _threshold(result: PairedFigure, rules: Rules) -> str:
    if result.difference > 0:
        return f"below the gain of {rules.min_gain:g} that review.min_gain asks for"
    return f"not beyond the loss of {rules.max_loss:g} that review.max_loss allows"


def _queries_note(result: PairedFigure, rules: Rules) -> str:
    needed = queries_needed(result, rules.alpha)
    if needed is None or not round(result.difference, 3):
        return ""
    more = needed - result.queries
    if more <= 0:
        return ""
    return f"; needs about {_about(more)} more test queries than {count(result.queries)} to detect such a difference"


def _about(number: int) -> str:
    """Round an estimate to two digits."""
    return count(float(f"{number:.1e}"))


def _sides(review: Review) -> str:
    return f"{_code_span(_run_name(review.head))} against {_code_span(_run_name(review.base))}."


def _run_name(run: Run) -> str:
    hash = (run.commit or "")[:7]
    return f"{run.name} ({hash})" if hash and not run.name.startswith(hash) else run.name


def _points(review: Review) -> str:
    points = list(review.doubts)
    if review.looks > review.rules.test_looks:
        result = review.results["reranker"]
        points.append(
            f"test was looked at {review.looks} times since the base (other figures of it in commits and experiments; "
            f"review.test_looks: {review.rules.test_looks}), and the best of many figures is too good. Corrected: "
            f"{p_relation(bonferroni(result.p, review.looks))}; choose on dev"
        )
    return "\n".join(f"- **Warning:** {point}." for point in points)


def _figures(review: Review) -> str:
    rows = []
    for key, (file, name) in HEADLINE.items():
        before, after = (review.base.figures[file].get(key), review.head.figures[file].get(key))
        if before is not None or after is not None:
            change = "–" if before is None or after is None else signed(after - before)
            rows.append(f"| {name} | {_score(before)} | {_score(after)} | {change} |")
    return "\n".join(
        [
            "| Figure | Before | After | Change |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            f"PairedFigure, NDCG@10 of the {count(review.results['reranker'].queries)} common test queries. "
            "The test is of these two trained models; another seed makes another model:",
            "",
            "| System | Before | After | Change [95%] | p | Queries changed |",
            "|---|---:|---:|---:|---:|---:|",
            *(_tested_row(system, result) for system, result in review.results.items()),
        ]
    )


def _score(value: float | None) -> str:
    return "–" if value is None else score(value)


def _tested_row(system: str, result: PairedFigure) -> str:
    low, high = result.interval
    change = f"{signed(result.difference)} [{signed(low)}, {signed(high)}]"
    p = p_relation(result.p).removeprefix("p ").removeprefix("= ")
    cells = [_plain(label(system)), score(result.before), score(result.after), change, p, count(result.changed)]
    return f"| {' | '.join(cells)} |"


def _changes(changes: Sequence[Change], title: str) -> str:
    if not changes:
        return ""
    rows = [f"| {' | '.join([_code_span(name), _value(before), _value(after)])} |" for name, before, after in changes]
    return "\n".join([f"| {title} | Before | After |", "|---|---|---|", *_limit(rows, "| … | {} more | |")])


def _value(value: Any) -> str:
    return _code_span(f"{value:.6g}" if isinstance(value, float) else as_yaml(value))


def _limit(rows: Sequence[str], more: str) -> list[str]:
    left = len(rows) - ROWS
    return [*rows[:ROWS], *([more.format(count(left))] if left > 0 else [])]


def _code(code: Mapping[tuple[str, ...], Sequence[str]]) -> str:
    rows = [
        f"- {', '.join(stages) or 'no stage any more'}: {', '.join(map(_code_span, paths))}"
        for stages, paths in code.items()
    ]
    return "\n".join(_limit(rows, "- … {} more"))


def _costs(base: Run, head: Run) -> str:
    rows = []
    for name in _systems(base, head):
        for column, form in COSTS.items():
            before, after = (_cost(run.costs, name, column, form) for run in (base, head))
            if (before or after) and before != after:
                rows.append(f"| {_plain(label(name))}, {column} | {before or '–'} | {after or '–'} |")
    ours, theirs = (run.figures["timing"] for run in (base, head))
    for key in SECONDS:
        if key in ours and key in theirs:
            rows.append(f"| {key} | {ours[key]:,.1f} | {theirs[key]:,.1f} |")
    if not rows:
        return ""
    table = ["| Cost | Before | After |", "|---|---:|---:|", *_limit(rows, "| … {} more | | |")]
    return "\n".join([*table, "", "Times differ from run to run and from machine to machine."])


def _systems(base: Run, head: Run) -> list[str]:
    return list(dict.fromkeys([*base.costs["system"], *head.costs["system"]]))


def _cost(costs: pd.DataFrame, system: str, column: str, form: str) -> str | None:
    if column not in costs:
        return None
    values = pd.to_numeric(costs.loc[costs["system"] == system, column], errors="coerce").dropna()
    return form.format(values.iloc[0]) if len(values) else None


def _queries(review: Review) -> str:
    before, after = (run.per_query["reranker"] for run in (review.base, review.head))
    rows = [
        f"| {_code_span(query)} | {score(before[query])} | {score(after[query])} | {_text(review, query)} |"
        for query in [*review.gained, *review.lost]
    ]
    return "\n".join(["| Query | Before | After | Text |", "|---|---:|---:|---|", *rows]) if rows else ""


def _text(review: Review, query: str) -> str:
    return _code_span(review.texts[query]) if query in review.texts else ""


def _section(title: str, text: str) -> str:
    return f"### {title}\n\n{text}" if text else ""


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>" if text else ""


def _code_span(text: str) -> str:
    """Put data into a code span, in which Markdown sees no tags, no links and no mentions of people."""
    line = printable(" ".join(text.split()))
    line = line if len(line) <= CHARACTERS else f"{line[: CHARACTERS - 1]}…"
    if not line:
        return ""
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    inside = f" {line} " if line.startswith("`") or line.endswith("`") else line
    return f"{fence}{inside}{fence}".replace("|", "\\|")


def _plain(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]@])", r"\\\1", text)
