"""Figures of quality against cost: NDCG@10 by the size of the models, and by the time of one query.

matplotlib draws them as SVG like the other figures, and the reader can point at their points. An SVG has a few
kilobytes. A charting library would add a megabyte of script, and the Content-Security-Policy would have to let it
evaluate strings.
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
"""The diameter of a marker in typographic points."""
Place = tuple[int, int]
"""The place of a name: its offset from the marker to the right and up, in markers."""
NEAR: tuple[Place, ...] = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
FAR: tuple[Place, ...] = tuple(
    (side * right, far * up)
    for far in (3, 5, 7, 9, 11)
    for right in (1, 0, 5, 10)
    for up in (1, -1)
    for side in (1, -1)
)
"""Places for a name, in the order in which they are tried; a line joins names at far places to their markers."""
ALIGNED = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}


class Point(NamedTuple):
    """A system in a figure."""

    system: str
    cost: float
    """Above 0."""
    ndcg: float


def system_points(comparison: pd.DataFrame, costs: pd.DataFrame, column: str) -> list[Point]:
    """The systems with an NDCG@10 and a cost above 0, the cheapest first.

    Args:
        comparison: columns system, mode, ndcg@10; figures of the mode `retrieved` are used.
        costs: columns system and `column`.
        column: the column with the cost.
    """
    retrieved = comparison[comparison["mode"] == "retrieved"]
    both = retrieved.merge(costs[costs[column] > 0], on="system").dropna(subset=["ndcg@10"])
    points = (Point(*row) for row in both[["system", column, "ndcg@10"]].itertuples(index=False, name=None))
    return sorted(points, key=lambda point: (point.cost, -point.ndcg, point.system))


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: the points whose NDCG@10 is higher than that of all cheaper or equally cheap points.

    Args:
        points: see `system_points`.
    """
    best: list[Point] = []
    for point in points:
        if not best or point.ndcg > best[-1].ndcg:
            best.append(point)
    return best


def size_figure(comparison: pd.DataFrame, costs: pd.DataFrame) -> Picture:
    """Draw NDCG@10 against the parameters of a system's models; a dashed line shows the retriever.

    Args:
        comparison: columns system, mode, ndcg@10.
        costs: columns system, parameters.
    """
    return _scatter(
        system_points(comparison, costs, "parameters"),
        comparison,
        title="NDCG@10 by model size",
        unit="parameters",
        axis="Parameters of all its models; dashed: the retriever",
    )


def latency_figure(comparison: pd.DataFrame, costs: pd.DataFrame) -> Picture:
    """Draw NDCG@10 against the time to rerank the top 30 of one query; a line shows the Pareto front.

    Args:
        comparison: columns system, mode, ndcg@10.
        costs: columns system, p50_ms_30.
    """
    points = system_points(comparison, costs, "p50_ms_30")
    return _scatter(
        points,
        comparison,
        title="NDCG@10 by time to rerank the top 30",
        unit="ms a query",
        axis="Milliseconds a query, median; dashed: the retriever; line: the Pareto front",
        line=front(points),
    )


def _scatter(
    points: Sequence[Point],
    comparison: pd.DataFrame,
    *,
    title: str,
    unit: str,
    axis: str,
    line: Sequence[Point] = (),
) -> Picture:
    texts = [
        f"{label(point.system)}: NDCG@10 {score(point.ndcg)}, {magnitude(point.cost)} {unit}"
        f"{', on the Pareto front' if point in line else ''}"
        for point in points
    ]
    tips = tuple(Tip(f"point{place}", text) for place, text in enumerate(texts))

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
        for tip, point in zip(tips, points, strict=True):
            colour = LIGHT["accent"] if point.system == SHIPPED else LIGHT["muted"]
            axes.plot([point.cost], [point.ndcg], "o", color=colour, markersize=MARKER, gid=tip.id, zorder=4)
        figure.draw_without_rendering()  # this lays the figure out, so that names can be placed
        _write_names(axes, points)

    return render(draw, height=3.8, alt=f"{title}. {'; '.join(texts) or 'No system has costs'}.", tips=tips)


def _write_names(axes: Axes, points: Sequence[Point]) -> None:
    """Write each system's name at the place where the name and its line cover as little as possible."""
    scale = axes.figure.dpi / 72
    half = MARKER / 2 * scale
    centres = axes.transData.transform([(point.cost, point.ndcg) for point in points] or [(1, 0)])
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in centres[: len(points)]]
    lines: list[Path] = []
    inside = axes.get_window_extent()
    # the most expensive systems have the least room, at the right edge
    for point in sorted(points, key=lambda point: (point.system == SHIPPED, point.cost), reverse=True):
        x, y = axes.transData.transform((point.cost, point.ndcg))
        others = [box for box in taken if not box.contains(x, y)]  # a name may cover its own marker
        tried: list[tuple[int, Place]] = []
        for place in (*NEAR, *FAR):
            name = _write_name(axes, point, place)
            box = name.get_window_extent()
            name.remove()
            line = Path([(x, y), ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)])
            outside = box.x0 < inside.x0 or inside.x1 < box.x1 or box.y0 < inside.y0 or inside.y1 < box.y1
            covers = any(box.overlaps(other) for other in taken)
            crosses = sum(other.intersects_bbox(box) for other in lines)
            crosses += sum(line.intersects_bbox(other) for other in others) if place in FAR else 0
            tried.append((len(points) * (2 * outside + covers) + crosses, place))
            if tried[-1][0] == 0:
                break
        _, place = min(tried, key=lambda each: each[0])
        box = _write_name(axes, point, place).get_window_extent()
        taken.append(box)
        if place in FAR:
            middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            lines.append(Path([(x, y), middle]))
            _draw_line(axes, point, ((middle[0] - x) / scale, (middle[1] - y) / scale))


def _write_name(axes: Axes, point: Point, place: Place) -> Annotation:
    """Write the name of a point at a place beside it."""
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
    name.set_in_layout(
        False
    )  # a name at the edge must not change the layout, which the places of other names depend on
    return name


def _draw_line(axes: Axes, point: Point, middle: tuple[float, float]) -> None:
    """Draw a line behind all names from a point to the middle of its name, which is an offset in typographic points."""
    thin = {"arrowstyle": "-", "color": LIGHT["muted"], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
    line = axes.annotate("", (point.cost, point.ndcg), middle, textcoords="offset points", arrowprops=thin, zorder=2.5)
    line.set_in_layout(False)
