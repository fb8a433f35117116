"""The trade-offs: accuracy against each cost, with the Pareto front and the way of the kept steps. Writes no file."""

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from roadmap.report.cells import Cell, Group
from roadmap.report.lines import where
from roadmap.report.quantities import QUANTITIES, Quantity
from roadmap.report.style import (
    COLUMN,
    INK,
    KEPT,
    MARGIN,
    QUIET,
    axes_at,
    drawable,
    hover,
    new_figure,
    quiet,
    styled,
    text_width,
    title,
)

COSTS = ("gmacs", "params_m", "train_images_per_s", "gpu_hours", "peak_memory_gb")
MORE_IS_BETTER = ("train_images_per_s",)
FRONT = "squares and steps: Pareto front; grey line: the kept steps in order"


def trade_offs(group: Group) -> Figure:
    """Draw top-1 against each cost that is known, with the Pareto front and the roadmap's path; numbers name the rows."""
    known = costs(group)
    if not known:
        raise ValueError("there is no cost to draw: fewer than two rows with one")
    columns, width, height = 2, 1.28, 1.15
    rows = math.ceil(len(known) / columns)
    with styled():
        figure = new_figure()
        names = [f"{i} {drawable(cell.label, cell.step, 28)}" for i, cell in enumerate(group.rows, 1)]
        keys = _in_columns(figure, names, COLUMN - 2 * MARGIN, 5.5)
        top = 0.3
        figure.set_size_inches(COLUMN, top + rows * (height + 0.5) + 0.12 * len(keys) + 0.3)
        title(figure, f"What accuracy costs, {where(group)}")
        for i, quantity in enumerate(known):
            left, down = 0.42 + (i % columns) * (width + 0.42), top + (i // columns) * (height + 0.5)
            axes = axes_at(figure, left, down, width, height)
            _trade_off(axes, group.rows, quantity)
            axes.set_ylabel(QUANTITIES["top1_mean"].axis if i % columns == 0 else "", labelpad=2)
        down = top + rows * (height + 0.5) + 0.05
        high = figure.get_size_inches()[1]
        figure.text(
            MARGIN / COLUMN,
            1 - down / high,
            "squares and steps: Pareto front; grey line: the kept steps in order",
            size=6,
            color=QUIET,
        )
        for i, line in enumerate(keys):
            for x, text in line:
                figure.text((MARGIN + x) / COLUMN, 1 - (down + 0.12 * (i + 1)) / high, text, size=5.5)
        return figure


def costs(group: Group) -> list[Quantity]:
    """Return the costs that at least two rows know."""
    return [q for q in map(QUANTITIES.__getitem__, COSTS) if sum(q.value(cell) is not None for cell in group.rows) > 1]


def pareto(points: Sequence[tuple[float, float]], more_is_better: bool = False) -> list[int]:
    """Return which points no other one beats, by cost: none is at once as cheap and better, or cheaper and as good."""
    sign = -1 if more_is_better else 1
    front: list[int] = []
    best = -math.inf
    for i in sorted(range(len(points)), key=lambda i: (sign * points[i][0], -points[i][1])):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def _trade_off(axes: Axes, rows: Sequence[Cell], quantity: Quantity) -> None:
    """Draw one panel: the path of the kept steps, the points with their numbers, and the front."""
    placed = [(i, cell, cost) for i, cell in enumerate(rows, 1) if (cost := quantity.value(cell)) is not None]
    at = {cell.step: (cost, cell.top1) for _, cell, cost in placed}
    for _, cell, _ in placed:
        if cell.adopted == "yes" and cell.parent in at:
            axes.plot(*zip(at[cell.parent], at[cell.step], strict=True), color="#b5b5b5", lw=0.7, zorder=1)
    points = [(cost, cell.top1) for _, cell, cost in placed]
    front = pareto(points, quantity.key in MORE_IS_BETTER)
    for before, after in pairwise([points[i] for i in front]):
        axes.plot([before[0], after[0], after[0]], [before[1], before[1], after[1]], color=INK, lw=0.8, zorder=2)
    for place, (number, cell, cost) in enumerate(placed):
        shape, size = ("s", 3.2) if place in front else ("o", 3.0)
        fill = "white" if cell.adopted != "yes" else KEPT
        (dot,) = axes.plot(cost, cell.top1, shape, ms=size, mfc=fill, mec=INK, mew=0.6, zorder=3)
        hover(dot, f"{cell.label}: top-1 {cell.top1:.2f} %, {quantity.name} {cost:.4g} {quantity.unit}")
        axes.annotate(
            str(number), (cost, cell.top1), xytext=(2.2, 1.2), textcoords="offset points", size=4.6, color=QUIET
        )
    axes.set_xlabel(quantity.axis, labelpad=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(0.1)
    axes.tick_params(labelsize=5.8)
    quiet(axes)


def _in_columns(figure: Figure, texts: Sequence[str], width: float, size: float) -> list[list[tuple[float, str]]]:
    """Return the texts as lines of (inches from the left, text), in as many equal columns as fit, read downwards."""
    each = text_width(figure, texts, size) + 0.1
    columns = max(1, int(width // each))
    lines = math.ceil(len(texts) / columns)
    return [[(i // lines * each, texts[i]) for i in range(line, len(texts), lines)] for line in range(lines)]
