"""The figures of a run as tables, pictures and one page: rounded here, computed elsewhere.

The page is one file without script that needs no network. Everything is the same to the byte for the same
numbers, so that a report that did not change shows no difference.
"""

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SHIPPED = "reranker"
BASELINE = "retriever"
LABELS = {
    "retriever": "Static retriever",
    "bm25": "BM25 on the same candidates",
    "zero_shot": "Bi-encoder, zero-shot",
    "tuned_biencoder": "Bi-encoder, tuned for the same minutes",
    "cross_encoder": "Cross-encoder alone",
    "fusion_without_cross_encoder": "Fusion without the cross-encoder",
    "reranker": "Reranker (shipped: fused)",
}
NO_BREAK = "\N{NO-BREAK SPACE}"
LABEL_WIDTH = 38
"""Of the longest label; a longer name is cut in the terminal, where a line has 100 columns."""

SYSTEM_COLUMNS = (
    "system", "mode", "ndcg@10", "ndcg@10_low", "ndcg@10_high", "mrr@10", "map", "recall@10", "recall@30",
)  # fmt: skip

TEMPLATE = Path(__file__).with_name("report.html.jinja")

# The figures are drawn in the light colours; on the page each becomes a variable that follows the reader's scheme.
LIGHT = {
    "paper": "#fefefe",
    "ink": "#1c2127",
    "muted": "#59636e",
    "line": "#dadfe4",
    "tint": "#eaf2fb",
    "accent": "#0b63bf",
    "warn": "#bd4a0d",
}
DARK = {
    "paper": "#14181d",
    "ink": "#e6e9ed",
    "muted": "#9ba6b2",
    "line": "#323a44",
    "tint": "#1b2a3b",
    "accent": "#62aef5",
    "warn": "#f0925a",
}
# A name with dollar signs is not a formula, and text stays text: it can be searched and follows the page's font.
STYLE = {
    "svg.hashsalt": "reranker",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["muted"],
    "axes.facecolor": "none",
    "axes.labelcolor": LIGHT["muted"],
    "figure.facecolor": LIGHT["paper"],
    "grid.color": LIGHT["line"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
}
WIDTH = 5.6
"""Of a figure in inches: little enough for its text to be read on a phone."""


class Numbers(NamedTuple):
    """What the page shows, as the earlier stages wrote it."""

    systems: pd.DataFrame
    """One row per system and mode, in the order of display; columns `SYSTEM_COLUMNS`."""
    evaluation: Mapping[str, float]
    """evaluate.json."""
    prepare: Mapping[str, object]
    mine: Mapping[str, object]
    train: Mapping[str, object]


class Picture(NamedTuple):
    """A figure in both formats and in words."""

    svg: str
    png: bytes
    alt: str


class ResultRow(NamedTuple):
    """A system's figures in one mode, rounded."""

    label: str
    shipped: bool
    ndcg: str
    interval: str
    mrr: str
    map: str
    recall_10: str
    recall_30: str


class ComparisonRow(NamedTuple):
    """The shipped reranker against one system, rounded."""

    label: str
    gain: str
    interval: str
    p: str


class Fact(NamedTuple):
    """A line of a two-column table."""

    label: str
    value: str


class TokenRow(NamedTuple):
    """Lengths of one kind of text."""

    label: str
    p50: str
    p90: str
    p99: str
    longest: str


def label(system: str) -> str:
    """A system's name for people; an unknown system keeps its own."""
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
            ndcg=_score(row["ndcg@10"]),
            interval=f"[{_score(row['ndcg@10_low'])}, {_score(row['ndcg@10_high'])}]",
            mrr=_score(row["mrr@10"]),
            map=_score(row["map"]),
            recall_10=_score(row["recall@10"]),
            recall_30=_score(row["recall@30"]),
        )
        for row in systems[systems["mode"] == mode].to_dict("records")
    ]


def comparison_rows(systems: pd.DataFrame, evaluation: Mapping[str, float]) -> list[ComparisonRow]:
    """The shipped reranker against every system that it was compared with."""
    return [
        ComparisonRow(
            label=label(system),
            gain=_signed(evaluation[f"gain_vs_{system}"]),
            interval=_signed_interval(evaluation, system),
            p=_p_value(evaluation[f"p_vs_{system}"]),
        )
        for system in systems["system"].unique()
        if f"gain_vs_{system}" in evaluation
    ]


def headline(evaluation: Mapping[str, float]) -> str:
    """The result in a few sentences, which say so where an interval leaves a difference open."""
    gain, low, high = (evaluation[f"gain_vs_{BASELINE}{end}"] for end in ("", "_low", "_high"))
    p_value = _p_value(evaluation[f"p_vs_{BASELINE}"])
    relation = p_value if p_value.startswith("<") else f"= {p_value}"
    found = (
        f"On {_count(evaluation['queries'])} test queries the reranker reaches an NDCG@10 of "
        f"{_score(evaluation['ndcg@10'])}: "
        f"{_score(abs(gain))} {'above' if gain >= 0 else 'below'} the {label(BASELINE).lower()} "
        f"(95% interval {_signed(low)} to {_signed(high)}, {f'p {relation}'.replace(' ', NO_BREAK)})."
    )
    doubt = "" if low > 0 or high < 0 else " This interval includes no difference at all."
    lows = [value for key, value in evaluation.items() if key.startswith("gain_vs_") and key.endswith("_low")]
    better = sum(value > 0 for value in lows)
    return f"{found}{doubt} The interval of its gain lies above 0 against {better} of {len(lows)} systems."


def text_table(systems: pd.DataFrame, queries: int) -> str:
    """The results for a terminal of 100 columns.

    Args:
        systems: columns `SYSTEM_COLUMNS`.
        queries: number of test queries.
    """
    complete = {row.label: row.ndcg for row in result_rows(systems, "all_positives")}
    head = f"{'System':<{LABEL_WIDTH}}  {'NDCG@10 [95%]':<20}  MRR@10    MAP  Recall@30  NDCG@10 *"
    rule = "─" * len(head)
    lines = [f"Results on {_count(queries)} test queries", "", head, rule]
    for row in result_rows(systems, "retrieved"):
        name = row.label if len(row.label) <= LABEL_WIDTH else f"{row.label[: LABEL_WIDTH - 1]}…"
        figures = f"{f'{row.ndcg} {row.interval}':<20}  {row.mrr:>6}  {row.map:>5}  {row.recall_30:>9}"
        lines += [rule] * row.shipped + [f"{name:<{LABEL_WIDTH}}  {figures}  {complete.get(row.label, '–'):>7}  "]
    lines += [rule, "* with the right passages that the retriever missed added to the candidates"]
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(systems: pd.DataFrame) -> str:
    """The results as a Markdown table, the shipped reranker in bold."""
    complete = {row.label: f"{row.ndcg} {row.interval}" for row in result_rows(systems, "all_positives")}
    lines = [
        "| System | NDCG@10 [95% interval] | MRR@10 | MAP | Recall@30 | NDCG@10, missed right passages added |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in result_rows(systems, "retrieved"):
        name = re.sub(r"([\\|*_<>`\[\]])", r"\\\1", row.label)
        cells = [name, f"{row.ndcg} {row.interval}", row.mrr, row.map, row.recall_30, complete.get(row.label, "–")]
        lines.append(f"| {' | '.join(f'**{cell}**' if row.shipped else cell for cell in cells)} |")
    return "\n".join(lines)


def systems_figure(systems: pd.DataFrame) -> Picture:
    """NDCG@10 by system with its interval, candidates as retrieved; the retriever is a dashed line.

    Args:
        systems: columns `SYSTEM_COLUMNS`.
    """
    rows = systems[systems["mode"] == "retrieved"].to_dict("records")
    listed = ", ".join(f"{label(row['system'])} {_score(row['ndcg@10'])}" for row in rows)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_title("NDCG@10 on the test queries", loc="left")
        for place, row in enumerate(rows):
            value, low, high = row["ndcg@10"], row["ndcg@10_low"], row["ndcg@10_high"]
            colour = LIGHT["accent"] if row["system"] == SHIPPED else LIGHT["muted"]
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([value], [place], "o", color=colour, markersize=6.5)
            axes.annotate(
                _score(value),
                (high, place),
                (6, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=9,
                bbox={"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 1},
            )
            if row["system"] == BASELINE:
                axes.axvline(value, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.set_yticks(
            range(len(rows)),
            ["\n".join(textwrap.wrap(label(row["system"]), 25, break_on_hyphens=False)) for row in rows],
        )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.margins(x=0.12)
        axes.set_xlabel("NDCG@10, 95% interval; dashed: the retriever")

    alt = f"NDCG@10 by system with 95% intervals: {listed}. The exact figures are in the table."
    return _render(draw, height=1.1 + 0.45 * max(len(rows), 1), alt=alt)


def training_figure(loss: pd.DataFrame, dev: pd.DataFrame) -> Picture:
    """The training curve.

    Args:
        loss: columns step, loss.
        dev: columns step, ndcg@10; sorted by step.
    """

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"hspace": 0.1})
        above.set_title("Training loss", loc="left")
        above.plot(loss["step"], loss["loss"], color=LIGHT["muted"], linewidth=1.2)
        below.set_title("NDCG@10 on dev", loc="left")
        below.plot(dev["step"], dev["ndcg@10"], color=LIGHT["accent"], linewidth=1.6, marker="o", markersize=4.5)
        if not dev.empty:
            _mark_best(below, dev)
        below.set_xlabel("Training step")
        for axes in (above, below):
            axes.grid(axis="y")
            axes.margins(y=0.15)

    alt = f"Training curve: loss at {_count(len(loss))} steps, NDCG@10 on dev at {_count(len(dev))}"
    if not dev.empty:
        ends = [
            f"{_score(row['ndcg@10'])} at step {_count(row['step'])}" for row in dev.iloc[[0, -1]].to_dict("records")
        ]
        alt += f", from {' to '.join(ends)}"
    return _render(draw, height=4.4, alt=f"{alt}.")


def gains_figure(per_query: pd.DataFrame) -> Picture:
    """Each query's gain of the reranker over the retriever, sorted, with wins, ties and losses counted.

    Args:
        per_query: NDCG@10 of each test query; columns retriever and reranker.
    """
    # the rounding keeps the last bits of a sum from turning a tie into a win
    gains = (per_query[SHIPPED] - per_query[BASELINE]).round(9).sort_values(ascending=False, ignore_index=True)
    wins, ties, losses = int((gains > 0).sum()), int((gains == 0).sum()), int((gains < 0).sum())
    counted = f"{_count(wins)} wins, {_count(ties)} ties, {_count(losses)} losses"

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_title(f"Reranker over retriever: {counted}", loc="left")
        axes.stairs(gains.clip(lower=0), fill=True, color=LIGHT["accent"], linewidth=0)
        axes.stairs(gains.clip(upper=0), fill=True, color=LIGHT["warn"], linewidth=0)
        axes.axhline(0, color=LIGHT["muted"], linewidth=1)
        axes.set_xlim(0, max(len(gains), 1))
        axes.set_ylim(-1.05, 1.05)
        axes.grid(axis="y")
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("Test queries, sorted by gain")
        axes.set_ylabel("Gain in NDCG@10")

    return _render(draw, height=3.2, alt=f"Gain in NDCG@10 of the reranker over the retriever per query: {counted}.")


def page(numbers: Numbers, pictures: Mapping[str, Picture]) -> str:
    """The report as one HTML file.

    Args:
        numbers: see `Numbers`.
        pictures: `systems`, `training` and `gains`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shown_apart = re.compile("dropped_|refused_|(query|passage)_tokens_")
    counts = {key: value for key, value in numbers.prepare.items() if not shown_apart.match(key)}
    mined = {key: value for key, value in numbers.mine.items() if not shown_apart.match(key)}
    return environment.get_template(TEMPLATE.name).render(
        light=LIGHT,
        dark=DARK,
        headline=headline(numbers.evaluation),
        queries=_count(numbers.evaluation["queries"]),
        retrieved=result_rows(numbers.systems, "retrieved"),
        all_positives=result_rows(numbers.systems, "all_positives"),
        comparisons=comparison_rows(numbers.systems, numbers.evaluation),
        figures={name: _inline(picture, name) for name, picture in pictures.items()},
        counts=_facts(counts),
        dropped=_facts(numbers.prepare, "dropped_"),
        tokens=_token_rows(numbers.prepare),
        mined=_facts(mined),
        refused=_facts(numbers.mine, "refused_"),
        train=_facts(numbers.train),
    )


def _mark_best(axes: Axes, dev: pd.DataFrame) -> None:
    best = dev.iloc[int(dev["ndcg@10"].argmax())]
    axes.plot([best["step"]], [best["ndcg@10"]], "o", color=LIGHT["warn"], markersize=7)
    axes.annotate(
        f"best {_score(best['ndcg@10'])}",
        (best["step"], best["ndcg@10"]),
        (0, 7),
        textcoords="offset points",
        ha="right" if best["step"] > dev["step"].median() else "left",
        fontsize=9,
    )


def _render(draw: Callable[[Figure], None], *, height: float, alt: str) -> Picture:
    # the default style first: a reader's own matplotlibrc must not change the report
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": alt})
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return Picture(svg.getvalue(), png.getvalue(), alt)


def _inline(picture: Picture, name: str) -> Markup:
    """The SVG as a part of the page: a name of its own for every id, the page's colours, its alternative text."""
    body = picture.svg[picture.svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*|<title>.*?</title>\s*|<style.*?</style>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for variable, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{variable})")
    view_box = re.search(r'viewBox="[^"]*"', body)
    inner = body[body.index(">") + 1 :]
    opening = f'<svg role="img" aria-label="{escape(picture.alt)}" {view_box.group() if view_box else ""}>'
    return Markup(opening + inner)  # noqa: S704  matplotlib escaped the names inside, escape() the text above


def _facts(values: Mapping[str, object], prefix: str = "") -> list[Fact]:
    chosen = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    return [Fact(_words(key), _shown(value)) for key, value in chosen.items()]


def _token_rows(prepare: Mapping[str, object]) -> list[TokenRow]:
    kinds = {"query_tokens": "Queries", "passage_tokens": "Passages"}
    return [
        TokenRow(name, *(_shown(prepare[f"{kind}_{key}"]) for key in ("p50", "p90", "p99", "max")))
        for kind, name in kinds.items()
        if f"{kind}_p50" in prepare
    ]


def _words(key: str) -> str:
    text = re.sub(r"\b(ndcg|mrr|map)\b", lambda found: found.group().upper(), key.replace("_", " "))
    return text[:1].upper() + text[1:]


def _shown(value: object) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.3f}" if abs(value) >= 0.001 else f"{value:.2g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _score(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    # + 0.0 turns a rounded -0.0 into 0.0
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")


def _signed_interval(evaluation: Mapping[str, float], system: str) -> str:
    return f"[{_signed(evaluation[f'gain_vs_{system}_low'])}, {_signed(evaluation[f'gain_vs_{system}_high'])}]"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
