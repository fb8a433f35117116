"""The roadmap's chart in the manner of the paper's Figure 2, wide or at one column's width. Writes no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from roadmap.report.cells import Cell, Group
from roadmap.report.columns import small
from roadmap.report.lines import Line, chart_lines, head_lines, limits, macs_unit, value_text
from roadmap.report.quantities import QUANTITIES
from roadmap.report.style import (
    BAND,
    COLUMN,
    INK,
    KEPT,
    QUIET,
    REFERENCE,
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


@dataclass(frozen=True)
class Layout:
    """Sizes in inches, fonts in points; `None` where a part is left out."""

    font: float
    small: float
    row: float
    bars: float
    macs: float | None  # the panel of multiply-accumulates; their numbers are always there
    sections: bool
    paper_values: float | None
    head: int  # characters in a line above the chart
    head_line: float
    margin: float = 0.15
    gap: float = 0.12
    macs_values: float = 0.5
    between: float = 0.35  # panels
    foot: float = 0.85  # the axes' numbers and names, and the legend


WIDE = Layout(
    font=8.5, small=7.5, row=0.27, bars=3.0, macs=1.15, sections=True, paper_values=0.62, head=95, head_line=0.19
)
# The bars take what the texts leave of a column.
NARROW = Layout(
    font=6.5,
    small=6,
    row=0.19,
    bars=0.9,
    macs=None,
    sections=False,
    paper_values=None,
    head=62,
    head_line=0.14,
    margin=0.05,
    gap=0.05,
    macs_values=0.34,
    foot=0.72,
)


def roadmap_chart(groups: Group | Sequence[Group], narrow: bool = False) -> Figure:
    """Return the chart of one group, or of several side by side with common rows; `narrow` fits one into a paper's column.

    Bars are means of the last epoch's top-1 in percent, error bars one standard deviation over seeds. Raises ValueError
    where no group has a row.
    """
    groups = [groups] if isinstance(groups, Group) else list(groups)
    lines = chart_lines(groups)
    if not lines:
        raise ValueError("there is no row to draw: no finished run of a plain step")
    with styled():
        return _Sheet(groups, lines, NARROW if narrow else WIDE).draw()


class _Sheet:
    """The chart while it is drawn: columns in inches from the left, rows in inches from the top."""

    def __init__(self, groups: Sequence[Group], lines: Sequence[Line], look: Layout) -> None:
        self.groups, self.lines, self.look = groups, lines, look
        self.figure = new_figure()
        sections = (
            text_width(self.figure, [line.section for line in lines], look.small) + look.gap if look.sections else 0.0
        )
        widest = COLUMN if look.macs is None else 99.0
        self.labels = [fitted(self.figure, line.label, look.font, widest * 0.38) for line in lines]
        self.left = look.margin + sections + text_width(self.figure, self.labels, look.font) + look.gap
        self.heads = [head_lines(group, look.head) for group in groups]
        self.top = look.margin + 0.34 + look.head_line * max(map(len, self.heads)) + 0.28
        self.height = self.top + look.row * len(lines) + look.foot
        self.values = [
            0.08 + text_width(self.figure, [value_text(c, group) for c in group.rows], look.font) for group in groups
        ]
        self.papers = [(look.paper_values or 0.0) if any(row.paper for row in group.rows) else 0.0 for group in groups]
        fixed = look.gap + (look.macs or 0.0) + look.macs_values
        spare = COLUMN - self.left - sum(self.values) - sum(self.papers) - fixed * len(groups) - look.margin
        self.bars = look.bars if look.macs is not None else max(look.bars, spare)
        self.widths = [self.bars + v + p + fixed for v, p in zip(self.values, self.papers, strict=True)]
        body = self.left + sum(self.widths) + look.between * (len(groups) - 1) + look.margin
        heads = text_width(self.figure, self.heads[0], look.font)
        self.width = max(body, look.margin * 2 + heads) if len(groups) == 1 else body
        self.figure.set_size_inches(self.width, self.height)
        self.page = axes_at(self.figure, 0, 0, self.width, self.height)
        self.page.set(xlim=(0, self.width), ylim=(self.height, 0))
        self.page.axis("off")

    def _y(self, row: int) -> float:
        return self.top + self.look.row * (row + 0.5)

    def draw(self) -> Figure:
        """Draw everything and return the figure."""
        look = self.look
        self.page.text(
            look.margin,
            look.margin + 0.1,
            "From ResNet to ConvNeXt, step by step",
            size=look.font * 1.4,
            weight="bold",
            va="center",
        )
        self._bands()
        span = limits(self.groups) if len(self.groups) == 1 else None
        x = self.left
        for number, group in enumerate(self.groups):
            start = look.margin if len(self.groups) == 1 else x
            for i, text in enumerate(self.heads[number]):
                bold = "bold" if text == group.caution or (i == 0 and len(self.groups) > 1) else "normal"
                self.page.text(
                    start, look.margin + 0.36 + look.head_line * i, text, va="center", weight=bold, size=look.font
                )
            self._panel(number, x, span or limits([group]))
            x += self.widths[number] + look.between
        self._legend()
        return self.figure

    def _bands(self) -> None:
        """Shade every other section of the paper and name each where it begins."""
        shaded, before, look = False, None, self.look
        for row, line in enumerate(self.lines):
            if line.section != before:
                shaded, before = not shaded, line.section
                if look.sections:
                    style = {"size": look.small, "style": "italic", "color": QUIET, "va": "center_baseline"}
                    self.page.text(look.margin, self._y(row), line.section, **style)  # type: ignore[arg-type]
            if shaded:
                ends = [look.margin * 0.5, self.width - look.margin * 0.5]
                self.page.fill_between(ends, self._y(row) - look.row / 2, self._y(row) + look.row / 2, color=BAND, lw=0)

    def _panel(self, number: int, x: float, span: tuple[float, float]) -> None:
        group, look, count = self.groups[number], self.look, len(self.lines)
        cells = [(row, cell) for row, line in enumerate(self.lines) if (cell := line.cells[number]) is not None]
        axes = axes_at(self.figure, x, self.top, self.bars, look.row * count)
        axes.set(xlim=span, ylim=(count - 0.5, -0.5))
        _bars(axes, cells)
        _reference(axes, group, cells, look.small)
        axes.set(xlim=span, ylim=(count - 0.5, -0.5))  # again: drawing may widen them
        axes.set_xlabel(
            QUANTITIES["top1_mean"].axis + (f"; the axis starts at {span[0]:g}" if span[0] else ""), size=look.small
        )
        axes.set_yticks(range(count), self.labels if number == 0 else [""] * count, parse_math=False, size=look.font)
        axes.xaxis.set_major_locator(MaxNLocator(6 if look.macs is not None else 3, steps=[1, 2, 5, 10]))
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=look.small)
        quiet(axes)
        values, papers = x + self.bars + self.values[number], x + self.bars + self.values[number] + self.papers[number]
        unit, scale = macs_unit(group)
        if look.macs is not None:
            macs = axes_at(self.figure, papers + look.gap, self.top, look.macs, look.row * count)
            _macs(macs, cells, count, scale)
            macs.set_xlabel(f"{QUANTITIES['gmacs'].name} ({unit})", size=look.small)
            macs.tick_params(axis="x", labelsize=look.small)
        self._column(
            values, QUANTITIES["top1_mean"].heading, {row: value_text(cell, group) for row, cell in cells}, "no run"
        )
        if self.papers[number]:
            self._column(papers, "paper", {row: f"{cell.paper.top1:.2f}" for row, cell in cells if cell.paper}, "")
        right = papers + look.gap + (look.macs or 0.0) + look.macs_values - 0.04
        self._column(right, f"{unit}MACs", {row: small(cell.gmacs and cell.gmacs * scale) for row, cell in cells}, "")

    def _column(self, right: float, name: str, texts: dict[int, str], missing: str) -> None:
        """Write a column of numbers that ends at `right`."""
        look = self.look
        self.page.text(right, self.top - 0.1, name, ha="right", va="center", size=look.small, color=QUIET)
        for row in range(len(self.lines)):
            color = INK if row in texts and name != "paper" else QUIET
            text = texts.get(row, missing)
            self.page.text(right, self._y(row), text, ha="right", va="center_baseline", color=color, size=look.font)

    def _legend(self) -> None:
        """Explain what occurs in this chart, and nothing else."""
        cells = [cell for line in self.lines for cell in line.cells if cell]
        handles: list[Patch | Line2D] = [Patch(fc=KEPT, ec=INK, lw=0.6, label="kept")]
        if any(cell.adopted == "no" for cell in cells):
            handles.append(Patch(fc=TRIED, ec=INK, lw=0.6, hatch="/////", label="tried, not kept"))
        if any(cell.adopted == "reference" for cell in cells):
            handles.append(Patch(fc=REFERENCE, ec=INK, lw=0.8, ls="--", label="reference"))
        if any(cell.top1_std is not None for cell in cells):
            handles.append(Line2D([], [], color=INK, lw=1.1, marker="|", ms=6, label="± 1 std. dev. over seeds"))
        if any(cell.paper for cell in cells):
            handles.append(Patch(fc="none", ec=INK, lw=0.8, label="paper"))
        self.figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 0.03 / self.height),
            ncols=len(handles) if self.look.macs is not None else 3,
            frameon=False,
            fontsize=self.look.small,
            columnspacing=1.0,
            handlelength=1.6,
        )


def _bars(axes: Axes, cells: Sequence[tuple[int, Cell]]) -> None:
    """Draw a bar a row, hatched where the step was not kept; the paper's below it as an outline; spreads over seeds."""
    looks = {"yes": (KEPT, "", "-"), "no": (TRIED, "/////", "-"), "reference": (REFERENCE, "", "--")}
    beside = any(cell.paper for _, cell in cells)
    height, middle = (0.44, -0.16) if beside else (0.68, 0.0)
    spread: dict[str, Any] = {
        "fmt": "none",
        "ecolor": INK,
        "elinewidth": 1.0,
        "capsize": 2.0,
        "capthick": 1.0,
        "zorder": 4,
    }
    for row, cell in cells:
        color, hatch, line = looks[cell.adopted]
        y = row + middle
        (bar,) = axes.barh(
            y,
            cell.top1,
            height=height,
            color=color,
            edgecolor=INK,
            linewidth=0.6,
            hatch=hatch,
            linestyle=line,
            label=cell.step,
        )
        hover(bar, f"{cell.label}: top-1 {cell.top1:.2f} %{_spread(cell)}, n = {cell.n}")
        if cell.top1_std is not None:
            axes.errorbar(cell.top1, y, xerr=cell.top1_std, **spread)
        if cell.paper:
            (bar,) = axes.barh(
                row + 0.24, cell.paper.top1, height=0.26, fc="none", ec=INK, lw=0.6, label=f"paper {cell.step}"
            )
            hover(bar, f"{cell.label}: the paper's top-1 {cell.paper.top1:.2f} %")
            if cell.paper.top1_std is not None:
                axes.errorbar(
                    cell.paper.top1,
                    row + 0.24,
                    xerr=cell.paper.top1_std,
                    **{**spread, "elinewidth": 0.7, "capsize": 1.2},
                )


def _spread(cell: Cell) -> str:
    return "" if cell.top1_std is None else f" ± {cell.top1_std:.2f}"


def _reference(axes: Axes, group: Group, cells: Sequence[tuple[int, Cell]], size: float) -> None:
    """Draw a dashed line at our run of a reference net; at the paper's number where there is no such run."""
    lines = [
        (cell.top1, f"{drawable(cell.label, cell.step)} {cell.top1:.2f}")
        for _, cell in cells
        if cell.adopted == "reference"
    ]
    if not lines and group.paper_reference:
        lines = [
            (group.paper_reference.top1, f"{group.paper_reference.label} (paper) {group.paper_reference.top1:.2f}")
        ]
    for at, _ in lines:
        axes.axvline(at, color=INK, ls=(0, (5, 3)), lw=0.9, zorder=3)
    if lines:
        at, name = lines[0]
        low, high = axes.get_xlim()
        side = "right" if at > low + 0.75 * (high - low) else "left" if at < low + 0.25 * (high - low) else "center"
        axes.text(at, 1.0, name, transform=axes.get_xaxis_transform(), size=size, ha=side, va="bottom")


def _macs(axes: Axes, cells: Sequence[tuple[int, Cell]], count: int, scale: float) -> None:
    """Draw the multiply-accumulates of every row; lines lead along the kept steps, from parent to child."""
    known = {cell.step: (cell.gmacs * scale, row) for row, cell in cells if cell.gmacs is not None}
    for _, cell in cells:
        if cell.step not in known:
            continue
        if cell.adopted == "yes" and cell.parent in known:
            axes.plot(*zip(known[cell.parent], known[cell.step], strict=True), color=INK, lw=0.9, zorder=2)
        axes.plot(
            *known[cell.step], "o", ms=4.5, mfc=INK if cell.adopted == "yes" else "white", mec=INK, mew=0.9, zorder=3
        )
    most = max((gmacs for gmacs, _ in known.values()), default=1.0)
    axes.set(xlim=(0, most * 1.12 or 1), ylim=(count - 0.5, -0.5), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(3))
    quiet(axes)
