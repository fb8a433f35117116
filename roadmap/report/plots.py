"""The figures beside the roadmap's chart, each a function from a group to a figure at one column's width. Writes no file.

A function raises ValueError where its group has nothing for it to draw; `roadmap.report.gallery` asks before.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from roadmap.report.cells import Cell, Group
from roadmap.report.columns import between, signed
from roadmap.report.quantities import QUANTITIES, Quantity
from roadmap.report.ranking import Ranking
from roadmap.report.style import (
    COLUMN,
    INK,
    KEPT,
    QUIET,
    TRIED,
    axes_at,
    drawable,
    fitted,
    hover,
    new_figure,
    quiet,
    styled,
    text_width,
)

ROW, MARGIN, HEAD, FOOT = 0.17, 0.06, 0.5, 0.68  # inches
COSTS = ("gmacs", "params_m", "train_images_per_s", "gpu_hours", "peak_memory_gb")
MORE_IS_BETTER = ("train_images_per_s",)
FRONT = "squares and steps: Pareto front; grey line: the kept steps in order"
SEEDS, IMAGES, PAPER = "ours, 95 % over seeds", "ours, 95 % over images only", "paper, 95 % over seeds"


def step_gains(group: Group) -> Figure:
    """Draw what each step gains over its parent, with 95 % intervals, ours and the paper's."""
    cells = [cell for cell in group.rows if cell.gain]
    if not cells:
        raise ValueError("there is no step to draw: no row whose parent has a usable run")
    with styled():
        figure, axes = _rows(f"Gain of each step, {_where(group)}", [drawable(c.label, c.step) for c in cells], _gain_axis())
        axes.axvline(0, color=QUIET, lw=0.7)
        kinds: set[str] = set()
        beside = any(cell.gain and cell.gain.paper_gain is not None for cell in cells)
        for row, cell in enumerate(cells):
            kinds |= _gain(axes, row, cell, -0.12 if beside else 0.0)
        _legend(figure, *_gain_legend(kinds, cells))
        return figure


def _gain(axes: Axes, row: int, cell: Cell, shift: float) -> set[str]:
    """Draw one step's gain, ours and the paper's; return which intervals were drawn."""
    gain = cell.gain
    assert gain is not None
    kind, interval = (IMAGES, gain.over_images) if gain.over_images and not gain.over_seeds else (SEEDS, gain.over_seeds)
    kinds = {kind} if interval else set()
    if interval:
        axes.plot([interval.low, interval.high], [row + shift] * 2, color=INK, lw=1.2, ls=":" if kind == IMAGES else "-")
    (dot,) = axes.plot(gain.gain, row + shift, "o", ms=3.5, mfc=INK if cell.adopted == "yes" else "white", mec=INK, mew=0.8, zorder=3)
    hover(dot, f"{cell.label}: gain {signed(gain.gain)} points; 95 % {between(interval) or 'not known'} ({kind})")
    if gain.paper_gain is not None:
        kinds.add(PAPER)
        if gain.paper_interval:
            axes.plot([gain.paper_interval.low, gain.paper_interval.high], [row + 0.22] * 2, color=QUIET, lw=0.8)
        (dot,) = axes.plot(gain.paper_gain, row + 0.22, "D", ms=2.8, mfc="white", mec=QUIET, mew=0.8, zorder=3)
        hover(dot, f"{cell.label}: the paper's gain {signed(gain.paper_gain)} points")
    return kinds


def _gain_legend(kinds: set[str], cells: Sequence[Cell]) -> tuple[list[Line2D], str]:
    """Return handles for what was drawn, and words for what is not known."""
    looks = {
        SEEDS: Line2D([], [], color=INK, lw=1.2, marker="o", ms=3.5, label=SEEDS),
        IMAGES: Line2D([], [], color=INK, lw=1.2, ls=":", marker="o", ms=3.5, label=IMAGES),
        PAPER: Line2D([], [], color=QUIET, lw=0.8, marker="D", ms=2.8, mfc="white", label=PAPER),
    }
    handles = [look for kind, look in looks.items() if kind in kinds]
    if any(cell.adopted == "no" for cell in cells):
        handles.append(Line2D([], [], ls="", marker="o", ms=3.5, mfc="white", mec=INK, label="tried, not kept"))
    return handles, "" if {SEEDS, IMAGES} & kinds else "one seed a row: no interval is known"


def toggles(group: Group, prefix: str) -> Figure:
    """Draw what each variant changes beside the net it was made from: `without_` leave-one-out, `with_` one-at-a-time."""
    cells = toggled(group, prefix)
    if not cells:
        raise ValueError(f"there is no variant {prefix}... to draw beside its plain step")
    base = cells[0].gain.parent if cells[0].gain else ""
    title = {"without_": "Left out of", "with_": "Alone on top of"}[prefix]
    with styled():
        labels = [(cell.variant or "").removeprefix(prefix).replace("_", " ") for cell in cells]
        figure, axes = _rows(f"{title} {base}, {_where(group)}", labels, "change of top-1 (points)")
        axes.axvline(0, color=INK, lw=0.7)
        for row, cell in enumerate(cells):
            gain = cell.gain
            assert gain is not None
            (bar,) = axes.barh(row, gain.gain, height=0.62, color=KEPT if gain.gain >= 0 else TRIED, ec=INK, lw=0.6)
            interval = gain.over_seeds or gain.over_images
            hover(bar, f"{cell.variant}: {signed(gain.gain)} points; 95 % {between(interval) or 'not known'}")
            if interval:
                line = "-" if gain.over_seeds else ":"
                axes.plot([interval.low, interval.high], [row, row], color=INK, lw=1.1, ls=line)
        only = any(cell.gain and not cell.gain.over_seeds and cell.gain.over_images for cell in cells)
        known = any(cell.gain and cell.gain.over_seeds for cell in cells)
        words = ["lines: 95 % over seeds (Welch)"] if known else []
        words += ["dotted: over images only, one seed"] if only else []
        _legend(figure, [], "; ".join(words) or "one seed a row: no interval is known")
        return figure


def toggled(group: Group, prefix: str) -> list[Cell]:
    """Return the variants of a kind that have a plain step to stand beside."""
    return [cell for cell in group.others if cell.gain and cell.variant and cell.variant.startswith(prefix) and "," not in cell.cell]


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
        _title(figure, f"What accuracy costs, {_where(group)}")
        for i, quantity in enumerate(known):
            left, down = 0.42 + (i % columns) * (width + 0.42), top + (i // columns) * (height + 0.5)
            axes = axes_at(figure, left, down, width, height)
            _trade_off(axes, group.rows, quantity)
            axes.set_ylabel(QUANTITIES["top1_mean"].axis if i % columns == 0 else "", labelpad=2)
        down = top + rows * (height + 0.5) + 0.05
        high = figure.get_size_inches()[1]
        figure.text(
            MARGIN / COLUMN, 1 - down / high, "squares and steps: Pareto front; grey line: the kept steps in order", size=6, color=QUIET
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


def training_curves(group: Group) -> Figure:
    """Draw top-1 over the epochs, a small panel a row, a line a seed."""
    cells = [cell for cell in group.rows if any(run.curve for run in cell.runs)]
    if not cells:
        raise ValueError("there is no curve to draw: no row with an evaluation")
    columns, width, height = 3, 0.92, 0.62
    rows = math.ceil(len(cells) / columns)
    most = max(epoch for cell in cells for run in cell.runs for epoch, _ in run.curve)
    tops = [top1 for cell in cells for run in cell.runs for _, top1 in run.curve]
    with styled():
        figure = new_figure()
        figure.set_size_inches(COLUMN, 0.45 + rows * (height + 0.22) + 0.42)
        _title(figure, f"Training curves, {_where(group)}")
        for i, cell in enumerate(cells):
            axes = axes_at(figure, 0.42 + (i % columns) * (width + 0.1), 0.45 + (i // columns) * (height + 0.22), width, height)
            for run in cell.runs:
                (line,) = axes.plot(*zip(*run.curve, strict=True), color=INK, lw=0.6, alpha=0.75)
                hover(line, f"{cell.label}, seed {run.seed}: {run.top1:.2f} % after epoch {run.curve[-1][0]}")
            axes.set(xlim=(0, most * 1.03), ylim=(min(tops) - 1, min(100.0, max(tops) + 2)))
            axes.set_title(fitted(figure, drawable(cell.label, cell.step, 40), 5.5, width), size=5.5, pad=2)
            axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(3))
            last_in_column = i + columns >= len(cells)
            axes.tick_params(labelsize=5.5, labelleft=i % columns == 0, labelbottom=last_in_column)
            quiet(axes)
        figure.supxlabel("epoch", size=7, y=0.06 / figure.get_size_inches()[1])
        figure.supylabel(QUANTITIES["top1_mean"].axis, size=7, x=0.012)
        return figure


def kernel_curve(group: Group) -> Figure:
    """Draw top-1 against the kernel size of the rows that differ in it, with 95 % intervals over seeds; the paper's dashed."""
    points = kernels(group)
    if len(points) < 2:
        raise ValueError("there is no curve to draw: fewer than two kernel sizes")
    with styled():
        figure = new_figure()
        figure.set_size_inches(COLUMN, 2.3)
        _title(figure, f"Kernel size, {_where(group)}")
        axes = axes_at(figure, 0.5, 0.35, COLUMN - 0.62, 1.35)
        axes.plot(*zip(*[(size, cell.top1) for size, cell in points], strict=True), color=INK, lw=0.9)
        for size, cell in points:
            if cell.interval:
                axes.plot([size, size], [cell.interval.low, cell.interval.high], color=INK, lw=1.2)
            fill = INK if cell.adopted == "yes" else "white"
            (dot,) = axes.plot(size, cell.top1, "o", ms=4, mfc=fill, mec=INK, zorder=3)
            hover(dot, f"kernel {size}: {cell.top1:.2f} %, n = {cell.n}")
        if theirs := [(size, cell.paper.top1) for size, cell in points if cell.paper]:
            axes.plot(*zip(*theirs, strict=True), "D--", color=QUIET, lw=0.8, ms=3, mfc="white")
        axes.set(xlabel="kernel size", ylabel=QUANTITIES["top1_mean"].axis, xticks=[size for size, _ in points])
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(y=0.12)
        quiet(axes)
        words = "lines: 95 % over seeds" if any(cell.interval for _, cell in points) else "one seed: no interval is known"
        _legend(figure, [], words + ("; filled: kept; dashed: paper" if theirs else "; filled: kept"))
        return figure


def kernels(group: Group) -> list[tuple[int, Cell]]:
    """Return the rows of the kernel study by kernel size: `move_up_depthwise` and its children that change nothing else."""
    sizes = {"move_up_depthwise": 3, "kernel_5": 5, "kernel_7": 7, "kernel_9": 9, "kernel_11": 11}
    return sorted(((sizes[cell.step], cell) for cell in group.rows if cell.step in sizes), key=lambda pair: pair[0])


def rank_agreement(group: Group, found: Ranking) -> Figure:
    """Draw our top-1 against the paper's, row by row, with the rank correlations and their intervals."""
    with styled():
        figure = new_figure()
        figure.set_size_inches(COLUMN, 2.75)
        _title(figure, f"Does this scale order the steps as the paper does? {_where(group)}")
        axes = axes_at(figure, 0.5, 0.35, COLUMN - 0.62, 1.6)
        for cell, printed in zip(found.rows, found.paper, strict=True):
            (dot,) = axes.plot(printed.top1, cell.top1, "o", ms=3.5, mfc=KEPT if cell.adopted == "yes" else "white", mec=INK, mew=0.7)
            hover(dot, f"{cell.label}: ours {cell.top1:.2f} %, the paper's {printed.top1:.2f} %")
        axes.set(xlabel=f"the paper's {QUANTITIES['top1_mean'].axis}, regime {found.table}", ylabel=f"ours, {QUANTITIES['top1_mean'].axis}")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        quiet(axes)
        for i, line in enumerate(found.lines):
            figure.text(MARGIN / COLUMN, (0.22 - 0.14 * i) / 2.75, line, size=6.5)
        return figure


def _where(group: Group) -> str:
    return f"{drawable(group.study, 'study', 24)} ({group.regime}, {group.data})"


def _gain_axis() -> str:
    return QUANTITIES["gain"].axis


def _title(figure: Figure, text: str) -> None:
    """Write the title in the upper left corner, no wider than the figure."""
    width, height = figure.get_size_inches()
    shown = fitted(figure, text, 7, width - 2 * MARGIN, "bold")
    figure.text(MARGIN / width, 1 - 0.13 / height, shown, size=7, weight="bold", va="center")


def _rows(title: str, labels: Sequence[str], xlabel: str) -> tuple[Figure, Axes]:
    """Return a figure of rows from top to bottom, labelled on the left, and its axes."""
    figure = new_figure()
    shown = [fitted(figure, label, 6.5, COLUMN * 0.45) for label in labels]
    left = MARGIN + text_width(figure, shown, 6.5) + 0.06
    height = HEAD - 0.2 + ROW * len(labels) + FOOT
    figure.set_size_inches(COLUMN, height)
    _title(figure, title)
    axes = axes_at(figure, left, HEAD - 0.2, COLUMN - left - 0.12, ROW * len(labels))
    axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel=xlabel)
    axes.set_yticks(range(len(labels)), shown, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    quiet(axes)
    for row in range(1, len(labels), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", lw=0, zorder=0)
    return figure, axes


def _legend(figure: Figure, handles: Sequence[Line2D], words: str) -> None:
    """Explain the figure at its foot: handles with their labels, and words below."""
    height = figure.get_size_inches()[1]
    if words:
        figure.text(MARGIN / COLUMN, 0.05 / height, words, size=5.8, color=QUIET)
    if handles:
        at = (0, (0.1 if words else 0.0) / height)
        look = {"frameon": False, "fontsize": 5.8, "handlelength": 1.6, "columnspacing": 0.8, "labelspacing": 0.2}
        figure.legend(handles=handles, loc="lower left", bbox_to_anchor=at, ncols=2, **look)


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
        axes.annotate(str(number), (cost, cell.top1), xytext=(2.2, 1.2), textcoords="offset points", size=4.6, color=QUIET)
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
