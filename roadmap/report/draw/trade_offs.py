"""The trade-offs: accuracy against each cost, with the Pareto front and the way of the kept steps. Writes no file."""

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from roadmap.report.analyse.cells import Cell, Group
from roadmap.report.draw import style
from roadmap.report.draw.style import INK, KEPT, QUIET, NothingToDraw, drawable, hover, where
from roadmap.runs.schema import QUANTITIES, Quantity

TOP1 = QUANTITIES["top1"]
ABOUT = "squares and steps: Pareto front; grey line: the kept steps in order"
COLUMNS, KEY_SIZE = 2, 5.5


def trade_offs(group: Group) -> Figure:
    """Draw top-1 against each known cost, with the Pareto front and the roadmap's path; numbers name the rows."""
    known = costs(group)
    if not known:
        raise NothingToDraw("there is no cost to draw: fewer than two rows with one")
    rows = math.ceil(len(known) / COLUMNS)
    names = [f"{i} {drawable(cell.label, cell.step, 28)}" for i, cell in enumerate(group.rows, 1)]
    with style.styled():
        figure = style.new_figure(f"What accuracy costs, {where(group)}", 1)
        columns = int((style.COLUMN - 0.12) // (style.text_width(figure, names, KEY_SIZE) + 0.1)) or 1
        figure.set_figheight(0.5 + 1.55 * rows + 0.11 * math.ceil(len(names) / columns))
        panels = figure.subplots(rows, COLUMNS, squeeze=False)
        for i, axes in enumerate(panels.flat):
            if i < len(known):
                _trade_off(axes, group.rows, known[i])
                axes.set_ylabel(TOP1.heading if i % COLUMNS == 0 else "", labelpad=2)
            else:
                axes.remove()
        handles = [Line2D([], [], ls="", label=name) for name in names]
        style.legend(figure, handles, ABOUT, ncols=columns, fontsize=KEY_SIZE, handlelength=0, handletextpad=0)
        return figure


def costs(group: Group) -> list[Quantity]:
    """Return the costs that at least two rows know: what runs record, but for their accuracies."""
    quantities = [quantity for quantity in QUANTITIES.values() if quantity.unit != TOP1.unit]
    return [q for q in quantities if sum(q.key in row.numbers for row in group.rows) > 1]


def pareto(points: Sequence[tuple[float, float]], higher_is_better: bool = False) -> list[int]:
    """Return which points no other one beats, by cost: none is at once as cheap and better, or cheaper and as good."""
    sign = -1 if higher_is_better else 1
    front: list[int] = []
    best = -math.inf
    for i in sorted(range(len(points)), key=lambda i: (sign * points[i][0], -points[i][1])):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def _trade_off(axes: Axes, rows: Sequence[Cell], cost: Quantity) -> None:
    """Draw one panel: the path of the kept steps, the points with their numbers, and the front."""
    known = [(i, cell) for i, cell in enumerate(rows, 1) if cost.key in cell.numbers]
    points = [(cell.numbers[cost.key], cell.top1) for _, cell in known]
    at = {cell.step: point for (_, cell), point in zip(known, points, strict=True)}
    for _, cell in known:
        if cell.adopted == "yes" and cell.parent in at:
            axes.plot(*zip(at[cell.parent], at[cell.step], strict=True), color="#b5b5b5", lw=0.7, zorder=1)
    front = pareto(points, cost.better == "higher")
    for before, after in pairwise([points[i] for i in front]):
        axes.plot([before[0], after[0], after[0]], [before[1], before[1], after[1]], color=INK, lw=0.8, zorder=2)
    for i, ((number, cell), point) in enumerate(zip(known, points, strict=True)):
        shape, size = ("s", 3.2) if i in front else ("o", 3.0)
        fill = KEPT if cell.adopted == "yes" else "white"
        (dot,) = axes.plot(*point, shape, ms=size, mfc=fill, mec=INK, mew=0.6, zorder=3)
        hover(dot, f"{cell.label}: top-1 {cell.top1:.2f} %, {cost.title} {point[0]:.4g} {cost.unit}")
        axes.annotate(str(number), point, (2.2, 1.2), textcoords="offset points", size=4.6, color=QUIET)
    axes.set_xlabel(cost.heading, labelpad=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(0.1)
    axes.tick_params(labelsize=5.8)
