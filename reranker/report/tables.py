"""Format the figures of a run as sentences and tables. This module rounds figures and computes none."""

import math
import re
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import pandas as pd

from reranker.common.artifacts import SHIPPED as SHIPPED
from reranker.common.artifacts import WITHOUT as WITHOUT

BASELINE = "retriever"
LABELS = {
    "bm25": "BM25 over the whole corpus",
    "retriever": "First stage",
    "tuned_biencoder": "Bi-encoder, tuned",
    "untouched_reranker": "Published reranker, untouched",
    "cross_encoder": "Cross-encoder, fine-tuned, alone",
    WITHOUT: "Shipped, without cross-encoder",
    SHIPPED: "Reranker (shipped: fused)",
}
ALPHA = 0.05
"""p-value below which a sentence calls a difference real."""
NO_BREAK = "\N{NO-BREAK SPACE}"
LABEL_WIDTH = 32
"""Characters of the longest label; the terminal has 100 columns, so a longer name is cut there."""
SYSTEM_COLUMNS = (
    "system", "mode", "ndcg@10", "ndcg@10_low", "ndcg@10_high", "mrr@10", "map", "recall@10", "recall@30",
)  # fmt: skip
OTHERS = ("baseline", "best")
"""The systems that every system is tested against."""
COMPARISON_COLUMNS = (
    "system", "mode", "ndcg@10", "ndcg@10_low", "ndcg@10_high",
    *(f"gain_vs_{other}{end}" for other in OTHERS for end in ("", "_low", "_high")),
    *(f"p_vs_{other}_holm" for other in OTHERS), "detectable",
)  # fmt: skip


class ResultRow(NamedTuple):
    """A system's rounded figures in one mode."""

    label: str
    shipped: bool
    ndcg: str
    interval: str
    mrr: str
    map: str
    recall_10: str
    recall_30: str


class ComparisonRow(NamedTuple):
    """The rounded difference between the shipped reranker and one system."""

    label: str
    gain: str
    interval: str
    p: str


def label(system: str) -> str:
    """The label of a system; a system of the user is shown by its name."""
    return LABELS.get(system, system)


def result_rows(systems: pd.DataFrame, mode: str) -> list[ResultRow]:
    """The systems of one mode in their order.

    Args:
        systems: columns `SYSTEM_COLUMNS`.
        mode: `retrieved` or `all_positives`.
    """
    return [
        ResultRow(
            label=label(row["system"]),
            shipped=row["system"] == SHIPPED,
            ndcg=score(row["ndcg@10"]),
            interval=f"[{score(row['ndcg@10_low'])}, {score(row['ndcg@10_high'])}]",
            mrr=score(row["mrr@10"]),
            map=score(row["map"]),
            recall_10=score(row["recall@10"]),
            recall_30=score(row["recall@30"]),
        )
        for row in systems[systems["mode"] == mode].to_dict("records")
    ]


def comparison_rows(systems: pd.DataFrame, evaluation: Mapping[str, float]) -> list[ComparisonRow]:
    """The differences between the shipped reranker and every system that it was compared with."""
    return [
        ComparisonRow(
            label=label(system),
            gain=signed(evaluation[f"gain_vs_{system}"]),
            interval=_signed_interval(evaluation, system),
            p=p_value(evaluation[f"p_vs_{system}"]),
        )
        for system in systems["system"].unique()
        if f"gain_vs_{system}" in evaluation
    ]


def headline(evaluation: Mapping[str, float]) -> str:
    """The result in a few sentences; they say if the interval of the difference includes 0."""
    gain, low, high = (evaluation[f"gain_vs_bm25{end}"] for end in ("", "_low", "_high"))
    relation = p_relation(evaluation["p_vs_bm25"]).replace(" ", NO_BREAK)
    result = (
        f"On {count(evaluation['queries'])} test queries the whole search reaches an NDCG@10 of "
        f"{score(evaluation['ndcg@10'])}: "
        f"{score(abs(gain))} {'above' if gain >= 0 else 'below'} BM25 over the whole corpus "
        f"(95% interval {signed(low)} to {signed(high)}, {relation})."
    )
    return result if low > 0 or high < 0 else f"{result} This interval includes no difference at all."


def verdict(evaluation: Mapping[str, float]) -> str:
    """What fine-tuning and the reranker were good for, in a few sentences, whatever the outcome."""
    against = {
        "BM25": "bm25",
        "the first stage": "retriever",
        "the published reranker left untouched": "untouched_reranker",
        "the same fusion without the cross-encoder": WITHOUT,
    }
    parts = [_judged(evaluation[f"gain_vs_{key}"], evaluation[f"p_vs_{key}"], name) for name, key in against.items()]
    gain, p = evaluation["tuning_gain"], evaluation["tuning_p"]
    alone = f"{signed(gain)}, {p_relation(p)}"
    tuned = {
        1: f"Fine-tuning made the cross-encoder better ({alone}).",
        0: f"Whether fine-tuning changed the cross-encoder, so few queries cannot tell ({alone}).",
        -1: f"Fine-tuning made the cross-encoder worse ({alone}): leave it as it is, or train it on more queries.",
    }[_sign(gain, p)]
    return (
        f"NDCG@10 {score(evaluation['ndcg@10'])} on {count(evaluation['queries'])} test queries: "
        f"{', '.join(parts)}. {tuned}"
    )


def _judged(gain: float, p: float, name: str) -> str:
    words = {1: "better than", 0: "no proven difference from", -1: "worse than"}[_sign(gain, p)]
    return f"{words} {name} ({signed(gain)}, {p_relation(p)})"


def _sign(gain: float, p: float) -> int:
    """1 for a real gain, -1 for a real loss, 0 for a difference that may be noise."""
    return 0 if p >= ALPHA or gain == 0 else 1 if gain > 0 else -1


def text_table(systems: pd.DataFrame, queries: int) -> str:
    """Format the results for a terminal of 100 columns.

    Args:
        systems: columns `SYSTEM_COLUMNS`.
        queries: number of test queries.
    """
    complete = {row.label: row.ndcg for row in result_rows(systems, "all_positives")}
    head = f"{'System':<{LABEL_WIDTH}}  {'NDCG@10 [95%]':<20}  MRR@10    MAP  Recall@30  NDCG@10 *"
    rule = "─" * len(head)
    lines = [f"Results on {count(queries)} test queries", "", head, rule]
    for row in result_rows(systems, "retrieved"):
        name = row.label if len(row.label) <= LABEL_WIDTH else f"{row.label[: LABEL_WIDTH - 1]}…"
        figures = f"{f'{row.ndcg} {row.interval}':<20}  {row.mrr:>6}  {row.map:>5}  {row.recall_30:>9}"
        lines += [rule] * row.shipped + [f"{name:<{LABEL_WIDTH}}  {figures}  {complete.get(row.label, '–'):>7}  "]
    lines += [rule, "* with the relevant passages that the retriever missed added to the candidates"]
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(systems: pd.DataFrame) -> str:
    """Format the results as a Markdown table with the shipped reranker in bold."""
    complete = {row.label: f"{row.ndcg} {row.interval}" for row in result_rows(systems, "all_positives")}
    lines = [
        "| System | NDCG@10 [95% interval] | MRR@10 | MAP | Recall@30 | NDCG@10, missed relevant passages added |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in result_rows(systems, "retrieved"):
        cells = [
            escape_markdown(row.label),
            f"{row.ndcg} {row.interval}",
            row.mrr,
            row.map,
            row.recall_30,
            complete.get(row.label, "–"),
        ]
        lines.append(f"| {' | '.join(f'**{cell}**' if row.shipped else cell for cell in cells)} |")
    return "\n".join(lines)


def escape_markdown(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", text)


def count(value: float) -> str:
    """Format a count with commas."""
    return f"{value:,.0f}"


def score(value: float) -> str:
    """Format a metric; a dash stands for a missing one."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def signed(value: float) -> str:
    """Format a difference of metrics with its sign."""
    # + 0.0 turns a rounded -0.0 into 0.0
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")


def _signed_interval(evaluation: Mapping[str, float], system: str) -> str:
    return f"[{signed(evaluation[f'gain_vs_{system}_low'])}, {signed(evaluation[f'gain_vs_{system}_high'])}]"


def p_relation(value: float) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def p_value(value: float) -> str:
    """`0.012`, or `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


class DifferenceCells(NamedTuple):
    """A system's NDCG@10 minus that of another one, rounded; the other one itself has dashes."""

    gain: str
    interval: str
    p: str
    """The p-value, corrected for the number of systems that are compared with the same one."""


class SystemRow(NamedTuple):
    """A system's rounded figures, with its differences to the baseline and to the best system."""

    label: str
    shipped: bool
    ndcg: str
    interval: str
    baseline: DifferenceCells
    best: DifferenceCells
    detectable: str
    """The smallest difference to the baseline that this number of queries can detect."""


def system_rows(comparison: pd.DataFrame) -> list[SystemRow]:
    """The systems in the mode `retrieved`, in their order.

    Args:
        comparison: columns `COMPARISON_COLUMNS`, as `compare` writes them.
    """
    return [
        SystemRow(
            label=label(row["system"]),
            shipped=row["system"] == SHIPPED,
            ndcg=score(row["ndcg@10"]),
            interval=f"[{score(row['ndcg@10_low'])}, {score(row['ndcg@10_high'])}]",
            baseline=_difference_cells(row, "baseline"),
            best=_difference_cells(row, "best"),
            detectable=score(row["detectable"]),
        )
        for row in comparison[comparison["mode"] == "retrieved"].to_dict("records")
    ]


def _difference_cells(row: Mapping[Hashable, float], other: str) -> DifferenceCells:
    if math.isnan(row[f"gain_vs_{other}"]):
        return DifferenceCells("–", "", "–")
    gain, low, high = (signed(row[f"gain_vs_{other}{end}"]) for end in ("", "_low", "_high"))
    return DifferenceCells(gain, f"[{low}, {high}]", p_value(row[f"p_vs_{other}_holm"]))


class CostRow(NamedTuple):
    """A system's rounded costs beside its NDCG@10."""

    label: str
    shipped: bool
    ndcg: str
    parameters: str
    megabytes: str
    pairs_per_second: str
    ms_30: str
    """The time for the top 30 of one query: the median and the 95th percentile."""
    ms_100: str
    """The same for the top 100."""
    usd: str
    """The price of 1,000 queries."""


def cost_rows(comparison: pd.DataFrame, costs: pd.DataFrame) -> list[CostRow]:
    """The systems that have costs, in the order of the comparison.

    Args:
        comparison: columns system, mode and ndcg@10; figures of the mode `retrieved` are used.
        costs: columns `evaluation.costs.COST_COLUMNS`.
    """
    both = comparison[comparison["mode"] == "retrieved"].merge(costs, on="system")
    return [
        CostRow(
            label=label(row["system"]),
            shipped=row["system"] == SHIPPED,
            ndcg=score(row["ndcg@10"]),
            parameters=magnitude(row["parameters"]),
            megabytes=magnitude(row["megabytes"]),
            pairs_per_second=_or_dash(row["pairs_per_second"], count),
            ms_30=f"{magnitude(row['p50_ms_30'])} / {magnitude(row['p95_ms_30'])}",
            ms_100=f"{magnitude(row['p50_ms_100'])} / {magnitude(row['p95_ms_100'])}",
            usd=_or_dash(row["usd_per_1000_queries"], _price),
        )
        for row in both.to_dict("records")
    ]


def markdown_costs(comparison: pd.DataFrame, costs: pd.DataFrame) -> str:
    """Format the costs as a Markdown table with the shipped reranker in bold."""
    lines = [
        "| System | NDCG@10 | Parameters | MB | Pairs/s | ms, top 30, p50 / p95 | ms, top 100 | USD / 1,000 queries |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in cost_rows(comparison, costs):
        name, shipped, *figures = row
        cells = [escape_markdown(name), *figures]
        lines.append(f"| {' | '.join(f'**{cell}**' if shipped else cell for cell in cells)} |")
    return "\n".join(lines)


def magnitude(value: float) -> str:
    """Format a number with three digits and K, M or B for thousands, millions and billions; a dash if it is NaN."""
    if math.isnan(value):
        return "–"
    power = min(max(int(math.log10(float(f"{value:.3g}"))) // 3, 0), 3) if value > 0 else 0
    return f"{float(f'{value / 1000**power:.3g}'):g}{('', 'K', 'M', 'B')[power]}"


def _price(usd: float) -> str:
    return "< 0.0001" if 0 < usd < 0.00005 else f"{usd:.4f}"


def _or_dash(value: float, formatter: Callable[[float], str]) -> str:
    return "–" if math.isnan(value) else formatter(value)
