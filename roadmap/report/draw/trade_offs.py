"""The trade-offs: accuracy against each cost, with the Pareto front. Writes no file."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from roadmap.report.analyse.cells import Cell, Group
from roadmap.report.draw import style
from roadmap.report.draw.style import INK, KEPT, QUIET, NothingToDraw, hover, row_label, where
from roadmap.runs.schema import QUANTITIES, Quantity

TOP1 = QUANTITIES["top1"]
FRONT = "squares and steps: Pareto front"
NO_FRONT = "no front where the cost was measured on a CPU, or in several ways (GPUs, code, runs side by side)"
UNNUMBERED = "a point without a number stands too close to others"
COLUMNS, KEY_SIZE = 2, 5.5
LABEL_SIZE, GAP = 4.8, 2.0  # points; less room between numbers on a line makes them one
# Where a label may stand beside its point, in points: the first that is free is taken.
OFFSETS = ((3, 2), (-3, 2), (3, -2), (-3, -2), (0, 3.5), (0, -3.5), (5, 5), (-5, 5), (5, -5), (-5, -5))


@style.styled()
def trade_offs(group: Group) -> Figure:
    """Draw top-1 against each known cost; numbers name the rows, where there is room for one."""
    known = costs(group)
    if not known:
        raise NothingToDraw("there is no cost to draw: fewer than two rows with one")
    rows = math.ceil(len(known) / COLUMNS)
    figure = style.new_figure(f"What accuracy costs, {where(group)}", 1)
    names, columns, height = row_key(figure, group.rows)
    figure.set_figheight(0.55 + 1.55 * rows + height)
    panels = figure.subplots(rows, COLUMNS, squeeze=False)
    fronts = [_trade_off(axes, group, cost) for axes, cost in zip(panels.flat, known, strict=False)]
    for axes in panels.flat[len(known) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel(TOP1.heading, labelpad=2)
    words = "\n".join([FRONT] * any(fronts) + [NO_FRONT] * (not all(fronts)))
    number_rows(figure, names, columns, words)
    return figure


def row_key(figure: Figure, rows: Sequence[Cell]) -> tuple[list[str], int, float]:
    """Return the rows' numbers and names, in how many columns they fit below a figure, and their height in inches."""
    names = [f"{i} {row_label(cell)}" for i, cell in enumerate(rows, 1)]
    columns = int((style.COLUMN - 0.12) // (style.text_width(figure, names, KEY_SIZE) + 0.1)) or 1
    return names, columns, 0.11 * math.ceil(len(names) / columns)


def number_rows(figure: Figure, names: Sequence[str], columns: int, words: str) -> None:
    """Write the numbers of the rows, which are the labels of their points, beside these, and what they mean below."""
    handles = [Line2D([], [], ls="", label=name) for name in names]
    style.legend(figure, handles, words, ncols=columns, fontsize=KEY_SIZE, handlelength=0, handletextpad=0)
    figure.draw_without_rendering()  # the layout, before labels are placed in it
    complete = [_number(axes) for axes in figure.axes]
    if not all(complete):
        title = figure.legends[0].get_title()
        title.set_text(f"{title.get_text()}\n{UNNUMBERED}".strip())
        figure.set_figheight(figure.get_figheight() + 0.1)  # the panels keep their size


def costs(group: Group) -> list[Quantity]:
    """Return the costs that at least two rows know, and one has: what runs record, but for their accuracies."""
    quantities = [quantity for quantity in group.quantities.values() if quantity.unit != TOP1.unit]
    found = [(q, [row.numbers[q.key] for row in group.rows if q.key in row.numbers]) for q in quantities]
    return [quantity for quantity, numbers in found if len(numbers) > 1 and any(numbers)]


def is_sound(cost: Quantity, rows: Sequence[Cell]) -> bool:
    """Return whether a cost orders the rows: it is counted, or was measured in the same way on GPUs of one kind.

    A CPU also runs other programs, and other code may be faster or count otherwise.
    """
    ways = {(run.hardware, run.code, run.group_size) for row in rows for run in row.runs}
    return not cost.measured or (len(ways) == 1 and not any("CPU" in hardware for hardware, *_ in ways))


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


def _trade_off(axes: Axes, group: Group, cost: Quantity) -> bool:
    """Draw one panel: one point per row, and the front where the cost is sound. Return whether it is."""
    known = [(i, cell) for i, cell in enumerate(group.rows, 1) if cost.key in cell.numbers]
    points = [(cell.numbers[cost.key] * cost.scale, cell.top1) for _, cell in known]
    sound = is_sound(cost, [cell for _, cell in known])
    front = pareto(points, cost.better == "higher") if sound else []
    for before, after in pairwise([points[i] for i in front]):
        axes.plot([before[0], after[0], after[0]], [before[1], before[1], after[1]], color=INK, lw=0.8, zorder=2)
    for i, ((number, cell), point) in enumerate(zip(known, points, strict=True)):
        shape, size = ("s", 3.2) if i in front else ("o", 3.0)
        fill = KEPT if cell.adopted == "yes" else "white"
        (dot,) = axes.plot(*point, shape, ms=size, mfc=fill, mec=INK, mew=0.6, zorder=3, label=str(number))
        hover(dot, f"{cell.label}: top-1 {cell.top1:.2f} %, {cost.title} {point[0]:.4g} {cost.unit}")
    axes.set_xlabel(cost.heading, labelpad=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(0.1)
    axes.tick_params(labelsize=5.8)
    return sound


def _number(axes: Axes) -> bool:
    """Write the number of each point where it is free of others and nearer to its own than to any; else nowhere.
    Return whether every point has one."""
    point = axes.figure.dpi / 72
    dots = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    points = np.array([line.get_xydata() for line in dots])[:, 0]
    middles = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 2 * point, y - 2 * point, 4 * point, 4 * point) for x, y in middles]
    steps = [axes.transData.transform_path(line.get_path()) for line in axes.lines if line not in dots]
    complete = True
    for i in sorted(range(len(dots)), key=lambda i: dots[i].get_marker() != "s"):  # those of the front first
        text = str(dots[i].get_label())
        width, height = 0.64 * LABEL_SIZE * len(text) * point, 0.8 * LABEL_SIZE * point
        for right, up in OFFSETS:
            x = middles[i][0] + right * point - width * ((1 - np.sign(right)) / 2)
            y = middles[i][1] + up * point - height * (up < 0)
            box = Bbox.from_bounds(x, y, width, height)
            far = np.hypot(*(middles - (x + width / 2, y + height / 2)).T)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0
            free = not any(map(box.overlaps, taken)) and not any(line.intersects_bbox(box, False) for line in steps)
            if inside and far.argmin() == i and free:
                taken.append(box.padded(GAP * point, 0))
                style.beside(axes, text, points[i], (right, up), size=LABEL_SIZE, color=QUIET)
                break
        else:
            complete = False
    return complete
