"""Accuracy over the epochs, over kernel sizes, over learning rates, and against the paper's."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from roadmap.report.analyse.cells import Cell, Group
from roadmap.report.analyse.ranking import ranking
from roadmap.report.analyse.tuning import TunedRow, Tuning
from roadmap.report.draw import style
from roadmap.report.draw.roadmap_figure import roadmap_chart
from roadmap.report.draw.style import INK, KEPT, QUIET, NothingToDraw, drawable, hover, small_panels, where
from roadmap.report.draw.trade_offs import number_rows, row_key
from roadmap.runs.schema import QUANTITIES

TOP1 = QUANTITIES["top1"].heading
KERNELS = {"move_up_depthwise": 3, "kernel_5": 5, "kernel_7": 7, "kernel_9": 9, "kernel_11": 11}
LEAST_RANGE = 2.0  # points: smaller differences are not blown up to the height of a panel
MOST = 0.9  # of the values lie within the panels: what fell further stands at the foot
FRACTIONS = {1 / 16: "1/16", 1 / 8: "1/8", 1 / 4: "1/4", 1 / 2: "1/2"}
RELATIVE, ABSOLUTE = "across: the learning rate over the recipe's own", "across: the learning rate"
MARKS = "filled: chosen; dotted: the recipe's own rate; triangle: below the axis; cross: no result"


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
    figure.supylabel(TOP1, size=7)
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
    axes.set(xlabel="epoch", ylabel=TOP1)
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
    axes.set(xlabel="kernel size", ylabel=TOP1, xticks=[size for size, _ in points])
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
    names, columns, height = row_key(figure, group)
    figure.set_figheight(2.6 + height)
    axes = figure.subplots()
    for cell, printed in zip(ranks.rows, ranks.paper, strict=True):
        fill = KEPT if cell.adopted == "yes" else "white"
        (dot,) = axes.plot(printed.top1, cell.top1, "o", ms=3.5, mfc=fill, mec=INK, mew=0.7)
        dot.set_label(str(1 + group.rows.index(cell)))
        hover(dot, f"{cell.label}: ours {cell.top1:.2f} %, the paper's {printed.top1:.2f} %")
    axes.set(xlabel=f"the paper's {TOP1}, regime {ranks.table}", ylabel=f"ours, {TOP1}")
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
