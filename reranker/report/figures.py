"""Draw the figures of a run, each as SVG, as PNG and as a description in words.

Equal numbers give equal bytes, so that an unchanged report shows no difference in git.
"""

import io
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from reranker.report.tables import BASELINE, SHIPPED, count, label, score

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
# Dollar signs in a name must not start a formula. Text stays text, so that readers can search it and the page sets its
# font.
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
"""The width of a figure in inches, small enough for its text to be readable on a phone."""


class Tip(NamedTuple):
    """The text that appears when the reader points at a part of a figure."""

    id: str
    """The id of the part in the SVG."""
    text: str


class Picture(NamedTuple):
    """A figure as SVG, as PNG and in words."""

    svg: str
    png: bytes
    alt: str
    tips: tuple[Tip, ...] = ()


def systems_figure(systems: pd.DataFrame) -> Picture:
    """Draw NDCG@10 by system with its interval, in the mode `retrieved`; a dashed line shows the retriever.

    Args:
        systems: columns `SYSTEM_COLUMNS`.
    """
    rows = systems[systems["mode"] == "retrieved"].to_dict("records")
    listed = ", ".join(f"{label(row['system'])} {score(row['ndcg@10'])}" for row in rows)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_title("NDCG@10 on the test queries", loc="left")
        for place, row in enumerate(rows):
            value, low, high = row["ndcg@10"], row["ndcg@10_low"], row["ndcg@10_high"]
            colour = LIGHT["accent"] if row["system"] == SHIPPED else LIGHT["muted"]
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([value], [place], "o", color=colour, markersize=6.5)
            axes.annotate(
                score(value),
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
    return render(draw, height=1.1 + 0.45 * max(len(rows), 1), alt=alt)


def training_figure(loss: pd.DataFrame, dev: pd.DataFrame) -> Picture:
    """Draw the training loss, and NDCG@10 on dev, by step.

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

    alt = f"Training curve: loss at {count(len(loss))} steps, NDCG@10 on dev at {count(len(dev))}"
    if not dev.empty:
        ends = [f"{score(row['ndcg@10'])} at step {count(row['step'])}" for row in dev.iloc[[0, -1]].to_dict("records")]
        alt += f", from {' to '.join(ends)}"
    return render(draw, height=4.4, alt=f"{alt}.")


def gains_figure(per_query: pd.DataFrame) -> Picture:
    """Draw the gain of the reranker over the retriever for each query, sorted; the title counts wins, ties and losses.

    Args:
        per_query: NDCG@10 of each test query; columns retriever and reranker.
    """
    # without rounding, the last bits of a sum could turn a tie into a win
    gains = (per_query[SHIPPED] - per_query[BASELINE]).round(9).sort_values(ascending=False, ignore_index=True)
    wins, ties, losses = int((gains > 0).sum()), int((gains == 0).sum()), int((gains < 0).sum())
    numbers = ((wins, "win", "wins"), (ties, "tie", "ties"), (losses, "loss", "losses"))
    counted = ", ".join(f"{count(number)} {one if number == 1 else many}" for number, one, many in numbers)

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

    return render(draw, height=3.2, alt=f"Gain in NDCG@10 of the reranker over the retriever per query: {counted}.")


def lengths_figure(lengths: pd.DataFrame) -> Picture:
    """Draw histograms of the lengths of queries and passages.

    Args:
        lengths: columns text, from, to, share, see `text_statistics.histogram`.
    """
    names = {"query": "Queries", "passage": "Passages"}

    def draw(figure: Figure) -> None:
        for axes, (name, title) in zip(figure.subplots(2, 1, sharex=True), names.items(), strict=True):
            bars = lengths[lengths["text"] == name]
            axes.set_title(title, loc="left")
            axes.bar(
                bars["from"], bars["share"], bars["to"] - bars["from"], align="edge", color=LIGHT["accent"],
                edgecolor=LIGHT["paper"], linewidth=0.8,
            )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
            axes.grid(axis="y")
        axes.set_xlabel("Tokens of the base model")
        axes.tick_params(axis="x", which="minor", bottom=False)

    most = lengths.sort_values("share", ascending=False).drop_duplicates("text")
    ranges = [f"{names[bar['text']].lower()} {bar['from']} to {bar['to'] - 1}" for bar in most.to_dict("records")]
    alt = f"Histograms of the lengths in tokens; most often: {', '.join(sorted(ranges)) or 'none were counted'}."
    return render(draw, height=4.0, alt=alt)


def _mark_best(axes: Axes, dev: pd.DataFrame) -> None:
    best = dev.iloc[int(dev["ndcg@10"].argmax())]
    axes.plot([best["step"]], [best["ndcg@10"]], "o", color=LIGHT["warn"], markersize=7)
    axes.annotate(
        f"best {score(best['ndcg@10'])}",
        (best["step"], best["ndcg@10"]),
        (0, 7),
        textcoords="offset points",
        ha="right" if best["step"] > dev["step"].median() else "left",
        fontsize=9,
    )


def render(draw: Callable[[Figure], None], *, height: float, alt: str, tips: tuple[Tip, ...] = ()) -> Picture:
    """Draw a figure in both formats.

    Args:
        draw: the function that fills the figure.
        height: the height in inches; the width is `WIDTH`.
        alt: the figure in words.
        tips: tips of parts to which `draw` gives an id (matplotlib's gid).
    """
    # start from the default style, so that the user's matplotlibrc does not change the report
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": alt})
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return Picture(svg.getvalue(), png.getvalue(), alt, tips)
