"""The figures beside the roadmap's chart, each a function from a group to a figure at one column's width. Writes no file.

A function raises ValueError where its group has nothing for it to draw; `roadmap.report.gallery` asks before.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from roadmap.report.cells import Cell, Group
from roadmap.report.columns import between, signed
from roadmap.report.lines import where
from roadmap.report.quantities import QUANTITIES
from roadmap.report.ranking import Ranking
from roadmap.report.style import (
    COLUMN,
    INK,
    KEPT,
    MARGIN,
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
    title,
)

ROW, HEAD, FOOT = 0.17, 0.5, 0.68  # inches
SEEDS, IMAGES, PAPER = "ours, 95 % over seeds", "ours, 95 % over images only", "paper, 95 % over seeds"


def step_gains(group: Group) -> Figure:
    """Draw what each step gains over its parent, with 95 % intervals, ours and the paper's."""
    cells = [cell for cell in group.rows if cell.gain]
    if not cells:
        raise ValueError("there is no step to draw: no row whose parent has a usable run")
    with styled():
        figure, axes = _rows(
            f"Gain of each step, {where(group)}", [drawable(c.label, c.step) for c in cells], _gain_axis()
        )
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
    kind, interval = (
        (IMAGES, gain.over_images) if gain.over_images and not gain.over_seeds else (SEEDS, gain.over_seeds)
    )
    kinds = {kind} if interval else set()
    if interval:
        axes.plot(
            [interval.low, interval.high], [row + shift] * 2, color=INK, lw=1.2, ls=":" if kind == IMAGES else "-"
        )
    (dot,) = axes.plot(
        gain.gain, row + shift, "o", ms=3.5, mfc=INK if cell.adopted == "yes" else "white", mec=INK, mew=0.8, zorder=3
    )
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
        figure, axes = _rows(f"{title} {base}, {where(group)}", labels, "change of top-1 (points)")
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
    return [
        cell
        for cell in group.others
        if cell.gain and cell.variant and cell.variant.startswith(prefix) and "," not in cell.cell
    ]


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
        title(figure, f"Training curves, {where(group)}")
        for i, cell in enumerate(cells):
            axes = axes_at(
                figure, 0.42 + (i % columns) * (width + 0.1), 0.45 + (i // columns) * (height + 0.22), width, height
            )
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
        title(figure, f"Kernel size, {where(group)}")
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
        words = (
            "lines: 95 % over seeds" if any(cell.interval for _, cell in points) else "one seed: no interval is known"
        )
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
        title(figure, f"Does this scale order the steps as the paper does? {where(group)}")
        axes = axes_at(figure, 0.5, 0.35, COLUMN - 0.62, 1.6)
        for cell, printed in zip(found.rows, found.paper, strict=True):
            (dot,) = axes.plot(
                printed.top1, cell.top1, "o", ms=3.5, mfc=KEPT if cell.adopted == "yes" else "white", mec=INK, mew=0.7
            )
            hover(dot, f"{cell.label}: ours {cell.top1:.2f} %, the paper's {printed.top1:.2f} %")
        axes.set(
            xlabel=f"the paper's {QUANTITIES['top1_mean'].axis}, regime {found.table}",
            ylabel=f"ours, {QUANTITIES['top1_mean'].axis}",
        )
        axes.yaxis.set_major_locator(MaxNLocator(5))
        quiet(axes)
        for i, line in enumerate(found.lines):
            figure.text(MARGIN / COLUMN, (0.22 - 0.14 * i) / 2.75, line, size=6.5)
        return figure


def _gain_axis() -> str:
    return QUANTITIES["gain"].axis


def _rows(heading: str, labels: Sequence[str], xlabel: str) -> tuple[Figure, Axes]:
    """Return a figure of rows from top to bottom, labelled on the left, and its axes."""
    figure = new_figure()
    shown = [fitted(figure, label, 6.5, COLUMN * 0.45) for label in labels]
    left = MARGIN + text_width(figure, shown, 6.5) + 0.06
    height = HEAD - 0.2 + ROW * len(labels) + FOOT
    figure.set_size_inches(COLUMN, height)
    title(figure, heading)
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
