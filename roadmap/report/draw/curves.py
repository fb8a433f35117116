"""Accuracy over the epochs, over kernel sizes, over learning rates, against each cost, and against the paper."""

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
from roadmap.report.analyse.ranking import ranking
from roadmap.report.analyse.tuning import TunedRow, Tuning
from roadmap.report.draw import style
from roadmap.report.draw.roadmap_figure import roadmap_chart
from roadmap.report.draw.style import INK, KEPT, QUIET, NothingToDraw, drawable, hover, small_panels, where
from roadmap.runs.schema import QUANTITIES, Quantity

KERNELS = {"move_up_depthwise": 3, "kernel_5": 5, "kernel_7": 7, "kernel_9": 9, "kernel_11": 11}
LEAST_RANGE = 2.0  # points: smaller differences are not blown up to the height of a panel
MOST = 0.9  # of the values lie within the panels: what fell further stands at the foot
FRACTIONS = {1 / 16: "1/16", 1 / 8: "1/8", 1 / 4: "1/4", 1 / 2: "1/2"}
RELATIVE, ABSOLUTE = "across: the learning rate over the recipe's own", "across: the learning rate"
MARKS = "filled: chosen; dotted: the recipe's own rate; triangle: below the axis; cross: no result"
TOP1 = QUANTITIES["top1"]
FRONT = "squares and steps: Pareto front"
NO_FRONT = "no front where the cost was measured on a CPU, or on several kinds of machines"
COLUMNS, KEY_SIZE = 2, 5.5
LABEL_SIZE = 4.8
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
    names = [f"{i} {drawable(cell.label, cell.step)}" for i, cell in enumerate(rows, 1)]
    columns = int((style.COLUMN - 0.12) // (style.text_width(figure, names, KEY_SIZE) + 0.1)) or 1
    return names, columns, 0.11 * math.ceil(len(names) / columns)


def number_rows(figure: Figure, names: Sequence[str], columns: int, words: str) -> None:
    """Write the numbers of the rows, which are the labels of their points, beside these, and what they mean below."""
    handles = [Line2D([], [], ls="", label=name) for name in names]
    style.legend(figure, handles, words, ncols=columns, fontsize=KEY_SIZE, handlelength=0, handletextpad=0)
    figure.draw_without_rendering()  # the layout, before labels are placed in it
    for axes in figure.axes:
        _number(axes)


def costs(group: Group) -> list[Quantity]:
    """Return the costs that at least two rows know: what runs record, but for their accuracies."""
    quantities = [quantity for quantity in group.quantities.values() if quantity.unit != TOP1.unit]
    return [q for q in quantities if sum(q.key in row.numbers for row in group.rows) > 1]


def is_sound(cost: Quantity, rows: Sequence[Cell]) -> bool:
    """Return whether a cost orders the rows: it is counted, or was measured on GPUs of one kind.

    A CPU also runs other programs.
    """
    hardware = {run.hardware for row in rows for run in row.runs}
    return not cost.measured or (len(hardware) == 1 and not any("CPU" in name for name in hardware))


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


def _number(axes: Axes) -> None:
    """Write the number of each point where it is free of others and nearer to its own than to any; else nowhere."""
    point = axes.figure.dpi / 72
    dots = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    points = np.array([line.get_xydata() for line in dots])[:, 0]
    middles = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 2 * point, y - 2 * point, 4 * point, 4 * point) for x, y in middles]
    for i in sorted(range(len(dots)), key=lambda i: dots[i].get_marker() != "s"):  # those of the front first
        text = str(dots[i].get_label())
        width, height = 0.64 * LABEL_SIZE * len(text) * point, 0.8 * LABEL_SIZE * point
        for right, up in OFFSETS:
            x = middles[i][0] + right * point - width * ((1 - np.sign(right)) / 2)
            y = middles[i][1] + up * point - height * (up < 0)
            box = Bbox.from_bounds(x, y, width, height)
            far = np.hypot(*(middles - (x + width / 2, y + height / 2)).T)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0
            if inside and far.argmin() == i and not any(map(box.overlaps, taken)):
                taken.append(box)
                style.beside(axes, text, points[i], (right, up), size=LABEL_SIZE, color=QUIET)
                break


@style.styled()
def training_curves(group: Group) -> Figure:
    """Draw top-1 over the epochs, one small panel per row, one line per seed."""
    cells = [cell for cell in group.rows if any(run.curve for run in cell.runs)]
    if not cells:
        raise NothingToDraw("there is no curve to draw: no row with an evaluation")
    top1s = [top1 for cell in cells for run in cell.runs for _, top1 in run.curve]
    last = max(epoch for cell in cells for run in cell.runs for epoch, _ in run.curve)
    labels = [drawable(cell.label, cell.step, 40) for cell in cells]
    figure, panels = small_panels(f"Training curves, {where(group)}", 0.65, labels)
    panels[0].set(xlim=(0, last * 1.03), ylim=(min(top1s) - 1, min(100.0, max(top1s) + 2)))
    panels[0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panels[0].yaxis.set_major_locator(MaxNLocator(3))
    for axes, cell in zip(panels, cells, strict=True):
        for run in cell.runs:
            (line,) = axes.plot(*zip(*run.curve, strict=True), color=INK, lw=0.6, alpha=0.75)
            hover(line, f"{cell.label}, seed {run.seed}: {run.top1:.2f} % after epoch {run.curve[-1][0]}")
    figure.supxlabel("epoch", size=7)
    figure.supylabel(TOP1.heading, size=7)
    return figure


@style.styled()
def compared_curves(a: Cell, b: Cell) -> Figure:
    """Draw top-1 over the epochs of two cells on the same axes, one line per seed: A grey and dashed, B black."""
    figure = style.new_figure("Training curves of A and B", 2.4)
    axes = figure.subplots()
    handles = []
    for cell, name, looks in ((a, "A", {"color": QUIET, "ls": (0, (4, 1.5))}), (b, "B", {"color": INK})):
        for run in cell.runs:
            (line,) = axes.plot(*zip(*run.curve, strict=True), lw=0.8, alpha=0.85, **looks)
            hover(line, f"{name}, seed {run.seed}: {run.top1:.2f} % after epoch {run.curve[-1][0]}")
        where_from = f"{cell.study}, {cell.regime}, {cell.data}"
        line.set_label(f"{name}: {drawable(cell.cell, cell.step, 44)} ({drawable(where_from, 'study', 40)})")
        handles.append(line)
    axes.set(xlabel="epoch", ylabel=TOP1.heading)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    style.legend(figure, handles, "one line per seed", ncols=1)
    return figure


@style.styled()
def kernel_curve(group: Group) -> Figure:
    """Draw top-1 over the kernel sizes of the rows that differ in it, with 95 % intervals; the paper's dashed."""
    points = sorted((KERNELS[cell.step], cell) for cell in group.rows if cell.step in KERNELS)
    if len(points) < 2:
        raise NothingToDraw("there is no curve to draw: fewer than two kernel sizes")
    figure = style.new_figure(f"Kernel size, {where(group)}", 2.2)
    axes = figure.subplots()
    axes.plot(*zip(*[(size, cell.top1) for size, cell in points], strict=True), color=INK, lw=0.9)
    for size, cell in points:
        if cell.interval:
            axes.plot([size, size], [cell.interval.low, cell.interval.high], color=INK, lw=1.2)
        fill = INK if cell.adopted == "yes" else "white"
        (dot,) = axes.plot(size, cell.top1, "o", ms=4, mfc=fill, mec=INK, zorder=3)
        hover(dot, f"kernel {size}: {cell.top1:.2f} %, n = {cell.n}")
    if theirs := [(size, cell.paper.top1) for size, cell in points if cell.paper]:
        axes.plot(*zip(*theirs, strict=True), "D--", color=QUIET, lw=0.8, ms=3, mfc="white")
    axes.set(xlabel="kernel size", ylabel=TOP1.heading, xticks=[size for size, _ in points])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(y=0.12)
    known = any(cell.interval for _, cell in points)
    words = "lines: 95 % over seeds" if known else "one seed: no interval is known"
    style.legend(figure, [], words + "; filled: kept" + ("; dashed: paper" if theirs else ""))
    return figure


@style.styled()
def rank_agreement(group: Group) -> Figure:
    """Draw our top-1 against the paper's, row by row, with the rank correlations and their intervals."""
    ranks = ranking(group)
    if ranks is None:
        raise NothingToDraw("there is no order to draw: fewer than five rows of the paper")
    figure = style.new_figure(f"Order of the steps here and in the paper, {where(group)}", 2.6)
    names, columns, height = row_key(figure, ranks.rows)
    figure.set_figheight(2.6 + height)
    axes = figure.subplots()
    for number, (cell, printed) in enumerate(zip(ranks.rows, ranks.paper, strict=True), 1):
        fill = KEPT if cell.adopted == "yes" else "white"
        (dot,) = axes.plot(printed.top1, cell.top1, "o", ms=3.5, mfc=fill, mec=INK, mew=0.7)
        dot.set_label(str(number))
        hover(dot, f"{cell.label}: ours {cell.top1:.2f} %, the paper's {printed.top1:.2f} %")
    axes.set(xlabel=f"the paper's {TOP1.heading}, regime {ranks.table}", ylabel=f"ours, {TOP1.heading}")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    number_rows(figure, names, columns, "\n".join(ranks.lines))
    return figure


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
    figure, panels = small_panels(title, 0.85, labels, share_x=bool(tuning.factors))
    panels[0].set_ylim(-1.12 * depth, 0.18 * depth)
    for axes, row in zip(panels, rows, strict=True):
        _sensitivity(axes, row, tuning, depth)
    figure.supylabel("held-out top-1, points below the row's best", size=7)
    style.legend(figure, [], f"{RELATIVE if tuning.factors else ABSOLUTE}\n{MARKS}")
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
