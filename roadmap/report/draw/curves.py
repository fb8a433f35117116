"""Accuracy over the epochs, over kernel sizes, and against the paper's."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from roadmap.report.analyse.cells import Cell, Group
from roadmap.report.analyse.ranking import ranking
from roadmap.report.draw import style
from roadmap.report.draw.style import INK, KEPT, QUIET, NothingToDraw, drawable, hover, row_label, small_panels, where
from roadmap.report.draw.trade_offs import number_rows, row_key
from roadmap.runs.schema import QUANTITIES

KERNELS = {"move_up_depthwise": 3, "kernel_5": 5, "kernel_7": 7, "kernel_9": 9, "kernel_11": 11}
TOP1 = QUANTITIES["top1"]


@style.styled()
def training_curves(group: Group) -> Figure:
    """Draw top-1 over the epochs, one small panel per row, one line per seed."""
    cells = [cell for cell in group.rows if any(run.curve for run in cell.runs)]
    if not cells:
        raise NothingToDraw("there is no curve to draw: no row with an evaluation")
    top1s = [top1 for cell in cells for run in cell.runs for _, top1 in run.curve]
    last = max(epoch for cell in cells for run in cell.runs for epoch, _ in run.curve)
    labels = [row_label(cell, 40) for cell in cells]
    figure, panels = small_panels(f"Training curves, {where(group)}", 0.65, labels)
    panels[0].set(xlim=(0, last * 1.03), ylim=(min(top1s) - 1, min(100.0, max(top1s) + 2)))
    panels[0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panels[0].yaxis.set_major_locator(MaxNLocator(3))
    for axes, cell in zip(panels, cells, strict=True):
        for run in cell.runs:
            (line,) = axes.plot(*zip(*run.curve, strict=True), color=INK, lw=0.6, alpha=0.75)
            hover(line, f"{cell.label}, seed {run.seed}: {run.top1:.2f} % after epoch {run.curve[-1][0]}")
    figure.supxlabel("epoch" + f"\n{style.MARKED}" * any(cell.marks for cell in cells), size=7)
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
    axes.set_ylim(top=min(100.0, axes.get_ylim()[1]))
    known = any(cell.interval for _, cell in points)
    words = "lines: 95 % over seeds" if known else style.NO_INTERVAL
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
