"""A study in which every row has its own learning rate: the two roadmaps side by side, and accuracy over the rate."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from roadmap.report.analyse.cells import Group
from roadmap.report.analyse.tuning import TunedRow, Tuning
from roadmap.report.draw import style
from roadmap.report.draw.roadmap_figure import roadmap_chart
from roadmap.report.draw.style import INK, QUIET, NothingToDraw, drawable, hover, small_panels, where

LEAST_RANGE = 2.0  # points: smaller differences are not blown up to the height of a panel
MOST = 0.9  # of the values lie within the panels: what fell further stands at the foot
FRACTIONS = {1 / 16: "1/16", 1 / 8: "1/8", 1 / 4: "1/4", 1 / 2: "1/2"}
UP = "up: held-out top-1 below the row's best, points"  # as a label it is longer than a line of panels is high
RELATIVE, ABSOLUTE = "across: the learning rate over the recipe's own", "across: the learning rate"
MARKS = "filled: chosen; dotted: the recipe's own rate; triangle: below the axis; cross: no result"


def own_rates(group: Group) -> Figure:
    """Draw the roadmap with the one recipe beside the one with each row at its own rate, on one axis."""
    tuning = group.tuning
    if tuning is None or not tuning.tuned.rows:
        raise NothingToDraw("there is no row to draw: none has been trained at a rate of its own yet")
    if not tuning.plain.rows:
        return roadmap_chart(tuning.tuned, heads=["Each row at its own rate"])
    return roadmap_chart((tuning.plain, tuning.tuned), heads=["The one recipe", "Each row at its own rate"])


@style.styled()
def rate_sensitivity(group: Group) -> Figure:
    """Draw how far each row's held-out accuracy lies below its best over the rates, a small panel a row."""
    tuning = group.tuning
    if tuning is None:
        raise NothingToDraw("there is no curve to draw: no row with two rates")
    rows = tuning.rows
    drops = sorted(max(row.accuracies.values()) - top1 for row in rows for top1 in row.accuracies.values())
    depth = max(LEAST_RANGE, 1.1 * drops[int(MOST * (len(drops) - 1))])
    labels = [drawable(row.label, row.step, 40) for row in rows]
    title = f"Sensitivity to the learning rate, {where(group)}"
    figure, panels = small_panels(title, 0.95, labels, share_x=bool(tuning.factors))
    panels[0].set_ylim(-1.12 * depth, 0.18 * depth)
    for axes, row in zip(panels, rows, strict=True):
        _sensitivity(axes, row, tuning, depth)
    figure.supylabel("points", size=7)
    style.legend(figure, [], f"{UP}\n{RELATIVE if tuning.factors else ABSOLUTE}\n{MARKS}")
    return figure


def _sensitivity(axes: Axes, row: TunedRow, tuning: Tuning, depth: float) -> None:
    """Draw one row: a line over the rates, the chosen one filled."""
    scale = row.own if tuning.factors and row.own else 1.0
    best = max(row.accuracies.values())
    points = [(rate / scale, max(top1 - best, -depth)) for rate, top1 in row.accuracies.items()]
    axes.set_xscale("log", base=2)
    axes.plot(*zip(*points, strict=True), color=INK, lw=0.7)
    for (x, y), (rate, top1) in zip(points, row.accuracies.items(), strict=True):
        chosen = rate == row.rate
        marker = "v" if best - top1 > depth else "o"
        (dot,) = axes.plot(x, y, marker, ms=4 if chosen else 2.8, mfc=INK if chosen else "white", mec=INK, mew=0.6)
        hover(dot, f"{row.label}: {top1:.2f} % held-out at rate {rate:g}" + " (chosen)" * chosen)
    for factor in row.lacking:
        (cross,) = axes.plot(factor, -depth, "x", ms=3.5, color=QUIET, mew=0.8)
        hover(cross, f"{row.label}: no result at {factor_text(factor)} of the recipe's own rate")
    if row.own:
        axes.axvline(row.own / scale, color=QUIET, lw=0.6, ls=":", zorder=0)
    _ticks(axes, tuning.factors or tuple(row.accuracies))


def _ticks(axes: Axes, at: Sequence[float]) -> None:
    """Name at most five of the rates below an axis."""
    shown = at[:: math.ceil(len(at) / 5)]
    axes.set_xticks(shown, [factor_text(x) for x in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(at) / 1.35, max(at) * 1.35)


def factor_text(factor: float) -> str:
    """Return `1/4` or `2`; a number that is no such fraction in three digits."""
    near = [text for value, text in FRACTIONS.items() if math.isclose(value, factor, rel_tol=1e-6)]
    return near[0] if near else f"{factor:.3g}"
