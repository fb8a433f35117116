"""The roadmap's chart in the manner of the paper's Figure 2, wide or at one column's width. Writes no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from roadmap import paper
from roadmap.report.analyse.cells import Cell, Group
from roadmap.report.analyse.formats import signed
from roadmap.report.draw import style
from roadmap.report.draw.chart_rows import ChartRow, chart_rows, head_lines, limits, value_text
from roadmap.report.draw.style import INK, KEPT, QUIET, TRIED, drawable, hover
from roadmap.runs.schema import QUANTITIES

TOP1 = QUANTITIES["top1"]
SYMBOLS = {"yes": ("o", INK), "no": ("o", "white"), "reference": ("s", "white")}  # by adopted: marker, fill
OWN = "^"  # marker in place of a circle, of a step that the paper does not have
SIGNIFICANT = "* significant (Welch, Holm)"
NO_WIDTH = 0.01  # of axes that only hold text: the layout leaves room for it
TITLE = "From ResNet to ConvNeXt, step by step"
Cells = Sequence[tuple[int, Cell]]  # row and cell


@dataclass(frozen=True)
class Sizes:
    """Fonts in points, sizes in inches."""

    font: float
    small: float
    row: float
    line: float  # of the head
    letters: int  # in a line of the head
    label: float  # the widest label
    wide: bool  # sections, the paper's values and the panel of multiply-accumulates have room


WIDE = Sizes(font=8.5, small=7.5, row=0.27, line=0.19, letters=95, label=3.0, wide=True)
NARROW = Sizes(font=6.5, small=6, row=0.19, line=0.14, letters=62, label=style.COLUMN * 0.38, wide=False)


@style.styled()
def roadmap_chart(groups: Group | Sequence[Group], narrow: bool = False, heads: Sequence[str] = ()) -> Figure:
    """Return the chart of one group, or of several side by side with common rows; `narrow` fits a paper's column.

    With `heads`, one for each, they are one study in several ways: their accuracies share an axis.

    Dots are means of the last epoch's top-1 in percent, error bars one standard deviation over seeds; a bar leads to
    each from the step before. Raises NothingToDraw where no group has a row.
    """
    groups = [groups] if isinstance(groups, Group) else list(groups)
    rows, sizes = chart_rows(groups), NARROW if narrow else WIDE
    if not rows:
        raise style.NothingToDraw("there is no row to draw: no finished run of a plain step")
    lines = [head_lines(group, sizes.letters if len(groups) == 1 else 70) for group in groups]
    lines = [[*heads[i : i + 1], *each] for i, each in enumerate(lines)]
    height = sizes.row * len(rows) + sizes.line * max(map(len, lines)) + (1.5 if sizes.wide else 1.25)
    width = 2.6 + 6.5 * len(groups) if sizes.wide else style.COLUMN
    figure = style.new_figure(TITLE, height, width, sizes.font * 1.4, pad=0.07 if sizes.wide else 0.05)
    parts = [["steps", "values", "gain", *(["paper", "macs"] if sizes.wide else []), "gmacs"] for _ in groups]
    ratios = {"steps": 3.0, "macs": 1.15}
    widths = [NO_WIDTH, *(ratios.get(name, NO_WIDTH) for part in parts for name in part)]
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    sections = figure.add_subplot(grid[0])
    _bands(sections, rows, sizes)
    column = 1
    for number, (group, part) in enumerate(zip(groups, parts, strict=True)):
        axes = {name: figure.add_subplot(grid[column + i]) for i, name in enumerate(part)}
        _panel(axes, group, rows, number, limits(groups if heads else [group]), sizes)
        _head(sections if len(groups) == 1 else axes["steps"], lines[number], group, sizes, len(groups) > 1)
        column += len(part)
    _legend(figure, [cell for row in rows for cell in row.cells if cell], sizes)
    return figure


def _head(axes: Axes, lines: Sequence[str], group: Group, sizes: Sizes, several: bool) -> None:
    """Write lines above a panel, what it must not be read for in bold; an empty title makes room for them."""
    spaces = [72 * sizes.line * (len(lines) - i) + 4 for i in range(len(lines))]
    for i, line in enumerate(lines):
        weight = "bold" if line == group.caution or (i == 0 and several) else "normal"
        at: dict[str, Any] = {"xytext": (0, spaces[i]), "xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(line, (0, 1), **at, size=sizes.font, weight=weight).set_in_layout(False)
    axes.set_title(" ", pad=max(spaces, default=0), size=sizes.font)


def _bands(axes: Axes, rows: Sequence[ChartRow], sizes: Sizes) -> None:
    """Shade every other section of the paper across the figure, and name each where it begins."""
    axes.axis("off")
    axes.set(ylim=(len(rows) - 0.5, -0.5), zorder=-1)
    across = blended_transform_factory(axes.figure.transFigure, axes.transData)
    shaded, before = False, None
    for i, row in enumerate(rows):
        if row.section != before:
            shaded, before = not shaded, row.section
            if sizes.wide:
                axes.text(0, i, row.section, size=sizes.small, style="italic", color=QUIET, va="center_baseline")
        if shaded:
            band = Rectangle((0.005, i - 0.5), 0.99, 1, transform=across, color=style.BAND, lw=0, clip_on=False)
            band.set_in_layout(False)
            axes.add_patch(band)


def _panel(
    axes: dict[str, Axes], group: Group, rows: Sequence[ChartRow], number: int, span: tuple[float, float], sizes: Sizes
) -> None:
    """Draw one group: the dots, the panel of multiply-accumulates, and the columns of numbers."""
    cells = [(i, cell) for i, row in enumerate(rows) if (cell := row.cells[number]) is not None]
    steps = axes["steps"]
    _steps(steps, cells, sizes)
    steps.set_xlim(span)
    _reference(steps, group, cells, sizes.small)
    labels = [style.wrapped(steps.figure, row.label, sizes.font, sizes.label) for row in rows]  # type: ignore[arg-type]
    style.label_rows(steps, labels if number == 0 else [""] * len(rows), sizes.font)
    steps.set_xlabel(TOP1.heading, size=sizes.small)
    steps.xaxis.set_major_locator(MaxNLocator(6 if sizes.wide else 3, steps=[1, 2, 5, 10]))
    steps.grid(axis="x", color=QUIET, alpha=0.25, lw=0.4)
    if "macs" in axes and not any("gmacs" in cell.numbers for _, cell in cells):
        axes["macs"].axis("off")
    elif "macs" in axes:
        _macs(axes["macs"], cells, len(rows), group.macs.scale)
        axes["macs"].set_xlabel(group.macs.heading, size=sizes.small)
        axes["macs"].tick_params(axis="x", labelsize=sizes.small)
    steps.tick_params(axis="x", labelsize=sizes.small)
    texts = {i: value_text(cell, group, sizes.wide) for i, cell in cells}
    _column(axes["values"], TOP1.heading, {i: texts.get(i, "no run") for i in range(len(rows))}, sizes, texts)
    gains = {i: signed(cell.gain.gain) + "*" * cell.gain.significant for i, cell in cells if cell.gain}
    _column(axes["gain"], "gain" if gains else "", gains, sizes, gains)
    if "paper" in axes:
        papers = {i: f"{cell.paper.top1:.2f}" for i, cell in cells if cell.paper}
        _column(axes["paper"], "paper" if papers else "", papers, sizes, ())
    macs = {i: group.macs.text(cell.numbers["gmacs"]) for i, cell in cells if "gmacs" in cell.numbers}
    _column(axes["gmacs"], f"{group.macs.unit}MACs" if macs else "", macs, sizes, macs)
    for name in axes.keys() - {"steps", "macs"}:
        axes[name].set_ylim(steps.get_ylim())


def _column(axes: Axes, heading: str, texts: dict[int, str], sizes: Sizes, ours: Any) -> None:
    """Write a column of numbers, `ours` in ink, that ends at axes without width."""
    axes.axis("off")
    axes.text(0, -0.6, heading, ha="right", va="bottom", size=sizes.small, color=QUIET)
    for row, text in texts.items():
        color = INK if row in ours else QUIET
        axes.text(0, row, text, ha="right", va="center_baseline", color=color, size=sizes.font)


def _steps(axes: Axes, cells: Cells, sizes: Sizes) -> None:
    """Draw each row as a dot with its spread over seeds, and a bar that leads there from the step before.

    The paper's numbers stand below ours as diamonds.
    """
    beside = any(cell.paper for _, cell in cells)
    middle = -0.16 if beside else 0.0
    there = {cell.step: cell.top1 for _, cell in cells}
    for row, cell in cells:
        if (before := there.get(cell.parent or "")) is not None:
            width = cell.top1 - before
            color, edge = (KEPT, KEPT) if width >= 0 else (TRIED, QUIET)
            box: dict[str, Any] = {"color": color, "edgecolor": edge, "linewidth": 0.4, "label": f"from {cell.parent}"}
            axes.barh(row + middle, width, left=before, height=0.3 if beside else 0.42, zorder=2, **box)
        _dot(axes, row + middle, cell, sizes)
        if cell.paper:
            point: dict[str, Any] = {"ms": 0.36 * sizes.font, "mfc": "white", "mec": QUIET, "mew": 0.7, "zorder": 5}
            (dot,) = axes.plot(cell.paper.top1, row + 0.26, "D", label=f"paper {cell.step}", **point)
            hover(dot, f"{cell.label}: the paper's top-1 {cell.paper.top1:.2f} %")
            if (std := cell.paper.top1_std) is not None:
                axes.errorbar(cell.paper.top1, row + 0.26, xerr=std, fmt="none", ecolor=QUIET, elinewidth=0.7)


def _dot(axes: Axes, y: float, cell: Cell, sizes: Sizes) -> None:
    """Draw the mean of a row, and one standard deviation over its seeds."""
    if cell.top1_std is not None:
        axes.errorbar(cell.top1, y, xerr=cell.top1_std, fmt="none", ecolor=INK, elinewidth=1.0, capsize=2.0, zorder=4)
    symbol, fill = _symbol(cell)
    size = 0.55 * sizes.font
    (dot,) = axes.plot(cell.top1, y, symbol, label=cell.step, ms=size, mfc=fill, mec=INK, mew=0.9, zorder=5)
    std = "" if cell.top1_std is None else f" ± {cell.top1_std:.2f}"
    gain = f", {signed(cell.gain.gain)} over {cell.gain.parent}" if cell.gain else ""
    hover(dot, f"{cell.label}: top-1 {cell.top1:.2f} %{std}, n = {cell.n}{gain}")


def _symbol(cell: Cell) -> tuple[str, str]:
    """Return marker and fill of a row."""
    symbol, fill = SYMBOLS[cell.adopted]
    return (symbol if symbol != "o" or cell.step in paper.order() else OWN), fill


def _reference(axes: Axes, group: Group, cells: Cells, size: float) -> None:
    """Draw a dashed line at our run of a reference net; at the paper's number where there is no such run."""
    lines = [
        (cell.top1, f"{drawable(cell.label, cell.step)} {cell.top1:.2f}")
        for _, cell in cells
        if cell.adopted == "reference"
    ]
    theirs = group.paper_reference
    if not lines and theirs:
        lines = [(theirs.top1, f"{theirs.label} (paper, its own recipe) {theirs.top1:.2f}")]
    for at, _ in lines:
        axes.axvline(at, color=INK, ls=(0, (5, 3)), lw=0.9, zorder=3)
    if lines:
        at, name = lines[0]
        low, high = axes.get_xlim()
        side = "right" if at > low + 0.75 * (high - low) else "left" if at < low + 0.25 * (high - low) else "center"
        axes.text(at, 1.0, name, transform=axes.get_xaxis_transform(), size=size, ha=side, va="bottom")


def _macs(axes: Axes, cells: Cells, count: int, scale: float) -> None:
    """Draw the multiply-accumulates of every row; lines lead along the kept steps, from parent to child."""
    known = {cell.step: (cell.numbers["gmacs"] * scale, row) for row, cell in cells if "gmacs" in cell.numbers}
    for _, cell in cells:
        if cell.step not in known:
            continue
        if cell.adopted == "yes" and cell.parent in known:
            axes.plot(*zip(known[cell.parent], known[cell.step], strict=True), color=INK, lw=0.9, zorder=2)
        symbol, fill = _symbol(cell)
        axes.plot(*known[cell.step], symbol, ms=4.5, mfc=fill, mec=INK, mew=0.9, zorder=3)
    most = max((gmacs for gmacs, _ in known.values()), default=1.0)
    axes.set(xlim=(0, most * 1.12 or 1), ylim=(count - 0.5, -0.5), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(3))


def _legend(figure: Figure, cells: Sequence[Cell], sizes: Sizes) -> None:
    """Explain what occurs in this chart, and nothing else."""
    there = {cell.step for cell in cells}
    gains = [cell.gain for cell in cells if cell.gain and cell.parent in there]
    size: dict[str, Any] = {"ls": "", "mec": INK, "ms": 0.55 * sizes.font}
    texts = {"yes": "kept", "no": "tried, not kept", "reference": "reference"}
    found = {cell.adopted for cell in cells if _symbol(cell)[0] != OWN}
    handles: list[Patch | Line2D] = [
        Line2D([], [], marker=symbol, mfc=fill, label=texts[kind], **size)
        for kind, (symbol, fill) in SYMBOLS.items()
        if kind in found
    ]
    if any(_symbol(cell)[0] == OWN for cell in cells):
        handles.append(Line2D([], [], marker=OWN, mfc=INK, label=paper.BEYOND, **size))
    if any(gain.gain >= 0 for gain in gains):
        handles.append(Patch(fc=KEPT, ec=KEPT, lw=0.4, label="gain over the step before"))
    if any(gain.gain < 0 for gain in gains):
        handles.append(Patch(fc=TRIED, ec=QUIET, lw=0.4, label="loss"))
    if any(cell.top1_std is not None for cell in cells):
        handles.append(Line2D([], [], color=INK, lw=1.1, marker="|", ms=6, label="± 1 std. dev. over seeds"))
    if any(cell.paper for cell in cells):
        handles.append(Line2D([], [], marker="D", **{**size, "mec": QUIET, "mfc": "white"}, label="paper"))
    if any(gain.significant for gain in gains):
        handles.append(Line2D([], [], ls="", label=SIGNIFICANT))
    columns = (len(handles) if len(handles) < 9 else 5) if sizes.wide else 2  # nine do not fit on one line
    style.legend(figure, handles, ncols=columns, fontsize=sizes.small)
