"""What quality costs: NDCG@10 against the size of the models, and against the time of one query.

Drawn as SVG by the same library as the other figures, with points that can be pointed at: a few kilobytes, where a
charting library brings a megabyte of script that a strict Content-Security-Policy would have to let evaluate strings.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from reranker.report.figures import LIGHT, Picture, Tip, render
from reranker.report.tables import BASELINE, SHIPPED, label, magnitude, score

MARKER = 7.0
"""Diameter of a point in points."""
Place = tuple[int, int]
"""Of a name, from its point to the right and up in markers."""
NEAR: tuple[Place, ...] = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
FAR: tuple[Place, ...] = tuple(
    (side * right, far * up)
    for far in (3, 5, 7, 9, 11)
    for right in (1, 0, 5, 10)
    for up in (1, -1)
    for side in (1, -1)
)
"""Where a name may stand: the best first, then with a line to it."""
ALIGNED = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}


class Point(NamedTuple):
    """A system in a figure."""

    system: str
    cost: float
    """Above 0."""
    ndcg: float


def points(comparison: pd.DataFrame, costs: pd.DataFrame, column: str) -> list[Point]:
    """The systems of which both are known and that cost something, the cheapest first.

    Args:
        comparison: columns system, mode, ndcg@10; figures of the mode `retrieved` are taken.
        costs: columns system and `column`.
        column: what is counted as cost.
    """
    retrieved = comparison[comparison["mode"] == "retrieved"]
    both = retrieved.merge(costs[costs[column] > 0], on="system").dropna(subset=["ndcg@10"])
    found = (Point(*row) for row in both[["system", column, "ndcg@10"]].itertuples(index=False, name=None))
    return sorted(found, key=lambda point: (point.cost, -point.ndcg, point.system))


def front(found: Sequence[Point]) -> list[Point]:
    """The Pareto front: the points that no cheaper or equally cheap one reaches in NDCG@10.

    Args:
        found: as `points` gives them.
    """
    best: list[Point] = []
    for point in found:
        if not best or point.ndcg > best[-1].ndcg:
            best.append(point)
    return best


def size_figure(comparison: pd.DataFrame, costs: pd.DataFrame) -> Picture:
    """NDCG@10 against the parameters of a system's models; the retriever is a dashed line.

    Args:
        comparison: columns system, mode, ndcg@10.
        costs: columns system, parameters.
    """
    return _scatter(
        points(comparison, costs, "parameters"),
        comparison,
        title="NDCG@10 by model size",
        unit="parameters",
        axis="Parameters of all its models; dashed: the retriever",
    )


def latency_figure(comparison: pd.DataFrame, costs: pd.DataFrame) -> Picture:
    """NDCG@10 against the time in which the top 30 of one query are reranked, with the Pareto front as a line.

    Args:
        comparison: columns system, mode, ndcg@10.
        costs: columns system, p50_ms_30.
    """
    found = points(comparison, costs, "p50_ms_30")
    return _scatter(
        found,
        comparison,
        title="NDCG@10 by time to rerank the top 30",
        unit="ms a query",
        axis="Milliseconds a query, median; dashed: the retriever; line: the Pareto front",
        line=front(found),
    )


def _scatter(
    found: Sequence[Point],
    comparison: pd.DataFrame,
    *,
    title: str,
    unit: str,
    axis: str,
    line: Sequence[Point] = (),
) -> Picture:
    told = [
        f"{label(point.system)}: NDCG@10 {score(point.ndcg)}, {magnitude(point.cost)} {unit}"
        f"{', on the Pareto front' if point in line else ''}"
        for point in found
    ]
    tips = tuple(Tip(f"point{place}", text) for place, text in enumerate(told))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_title(title, loc="left")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: magnitude(value)))
        axes.margins(x=0.25, y=0.2)
        axes.grid(axis="both")
        axes.set_xlabel(axis)
        axes.set_ylabel("NDCG@10")
        retriever = comparison[(comparison["system"] == BASELINE) & (comparison["mode"] == "retrieved")]
        for value in retriever["ndcg@10"]:
            axes.axhline(value, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
        axes.plot([p.cost for p in line], [p.ndcg for p in line], drawstyle="steps-post", color=LIGHT["accent"])
        for tip, point in zip(tips, found, strict=True):
            colour = LIGHT["accent"] if point.system == SHIPPED else LIGHT["muted"]
            axes.plot([point.cost], [point.ndcg], "o", color=colour, markersize=MARKER, gid=tip.id, zorder=4)
        figure.draw_without_rendering()  # places are known from here on
        _name(axes, found)

    return render(draw, height=3.8, alt=f"{title}. {'; '.join(told) or 'No system has costs'}.", tips=tips)


def _name(axes: Axes, found: Sequence[Point]) -> None:
    """Write each system's name where neither it nor its line covers anything, or as little of that as can be."""
    scale = axes.figure.dpi / 72
    half = MARKER / 2 * scale
    centres = axes.transData.transform([(point.cost, point.ndcg) for point in found] or [(1, 0)])
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in centres[: len(found)]]
    lines: list[Path] = []
    inside = axes.get_window_extent()
    # the dearest ones have the least room, at the right edge
    for point in sorted(found, key=lambda point: (point.system == SHIPPED, point.cost), reverse=True):
        x, y = axes.transData.transform((point.cost, point.ndcg))
        others = [box for box in taken if not box.contains(x, y)]  # points at the same place are its own
        tried: list[tuple[int, Place]] = []
        for place in (*NEAR, *FAR):
            name = _written(axes, point, place)
            box = name.get_window_extent()
            name.remove()
            line = Path([(x, y), ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)])
            outside = box.x0 < inside.x0 or inside.x1 < box.x1 or box.y0 < inside.y0 or inside.y1 < box.y1
            covers = any(box.overlaps(other) for other in taken)
            crosses = sum(other.intersects_bbox(box) for other in lines)
            crosses += sum(line.intersects_bbox(other) for other in others) if place in FAR else 0
            tried.append((len(found) * (2 * outside + covers) + crosses, place))
            if tried[-1][0] == 0:
                break
        _, place = min(tried, key=lambda each: each[0])
        box = _written(axes, point, place).get_window_extent()
        taken.append(box)
        if place in FAR:
            middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            lines.append(Path([(x, y), middle]))
            _lined(axes, point, ((middle[0] - x) / scale, (middle[1] - y) / scale))


def _written(axes: Axes, point: Point, place: Place) -> Annotation:
    """The name of a point at a place beside it."""
    right, up = place
    name = axes.annotate(
        label(point.system),
        (point.cost, point.ndcg),
        (right * MARKER, up * MARKER),
        textcoords="offset points",
        ha=ALIGNED[(right > 0) - (right < 0)][0],
        va=ALIGNED[(up > 0) - (up < 0)][1],
        fontsize=8.5,
        color=LIGHT["accent" if point.system == SHIPPED else "ink"],
        weight="bold" if point.system == SHIPPED else "normal",
        bbox={"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 0.5},
    )
    name.set_in_layout(False)  # a name at the edge must not move the points, whose places are taken
    return name


def _lined(axes: Axes, point: Point, middle: tuple[float, float]) -> None:
    """Draw a line from a point to the middle of its name, in points from it, behind all names."""
    thin = {"arrowstyle": "-", "color": LIGHT["muted"], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
    line = axes.annotate("", (point.cost, point.ndcg), middle, textcoords="offset points", arrowprops=thin, zorder=2.5)
    line.set_in_layout(False)
