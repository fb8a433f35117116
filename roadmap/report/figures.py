"""The roadmap's chart in the manner of the paper's Figure 2: one function returns the figure, one its bytes. Writes no file."""

import io
from collections.abc import Sequence

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from roadmap.report.cells import Cell, Group
from roadmap.report.columns import small
from roadmap.report.lines import Line, chart_lines, drawable, head_lines, limits, macs_unit, value_text

# Inches.
ROW, MARGIN, GAP, HEAD_LINE = 0.27, 0.15, 0.12, 0.19
BARS, MACS, MACS_VALUES, PAPER_VALUES, PANEL_GAP = 3.0, 1.15, 0.5, 0.62, 0.35
FOOT = 0.85  # the axes' numbers and names, and the legend

# Blues that keep their order in grey; hatching, not colour, says what was not adopted.
KEPT, TRIED, REFERENCE, INK, QUIET, BAND = "#6baed6", "#deebf7", "#ffffff", "#1a1a1a", "#6a6a6a", "#f3f3f3"
STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same bytes everywhere
    "font.size": 8.5,
    "hatch.linewidth": 0.7,
    "axes.linewidth": 0.7,
    "text.parse_math": False,  # labels are text, never formulas
    "svg.hashsalt": "roadmap",
    "text.color": INK,
}
METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def roadmap_chart(groups: Group | Sequence[Group]) -> Figure:
    """Return the chart of one group, or of several side by side with common rows.

    Bars are means of the last epoch's top-1 in percent, error bars one standard deviation over seeds. Raises ValueError
    where no group has a row.
    """
    groups = [groups] if isinstance(groups, Group) else list(groups)
    lines = chart_lines(groups)
    if not lines:
        raise ValueError("there is no row to draw: no finished run of a plain step")
    with matplotlib.style.context(["default", STYLE]):
        return _Sheet(groups, lines).draw()


def image(figure: Figure, kind: str) -> bytes:
    """Return the figure as the bytes of a `png` (200 dpi), `svg` or `pdf` file: the same bytes for the same data."""
    out = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(out, format=kind, dpi=200, metadata=METADATA[kind], facecolor="white")
    return out.getvalue()


class _Sheet:
    """The chart while it is drawn: columns in inches from the left, rows in inches from the top."""

    def __init__(self, groups: Sequence[Group], lines: Sequence[Line]) -> None:
        self.groups, self.lines = groups, lines
        self.figure = Figure()
        FigureCanvasAgg(self.figure)
        self.sections = MARGIN + GAP + self._width([line.section for line in lines], 7.5)
        self.left = self.sections + self._width([line.label for line in lines], 8.5) + GAP
        self.heads = [head_lines(group) for group in groups]
        self.top = MARGIN + 0.34 + HEAD_LINE * max(map(len, self.heads)) + 0.28
        self.height = self.top + ROW * len(lines) + FOOT
        self.values = [0.08 + self._width([value_text(cell, group) for cell in group.rows], 8.5) for group in groups]
        self.papers = [PAPER_VALUES if any(row.paper for row in group.rows) else 0.0 for group in groups]
        self.widths = [BARS + v + p + GAP + MACS + MACS_VALUES for v, p in zip(self.values, self.papers, strict=True)]
        heads = [self._width(head, 8.5) for head in self.heads]
        body = self.left + sum(self.widths) + PANEL_GAP * (len(groups) - 1) + MARGIN
        self.width = max(body, MARGIN * 2 + heads[0]) if len(groups) == 1 else body
        self.figure.set_size_inches(self.width, self.height)
        self.page = self._axes(0, 0, self.width, self.height)
        self.page.set(xlim=(0, self.width), ylim=(self.height, 0))
        self.page.axis("off")

    def _width(self, texts: Sequence[str], size: float) -> float:
        """Return the width of the widest text in inches."""
        renderer = self.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        widths = []
        for text in filter(None, texts):
            probe = self.figure.text(0, 0, text, size=size)
            widths.append(probe.get_window_extent(renderer).width / self.figure.dpi)
            probe.remove()
        return max(widths, default=0.0)

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.patch.set_visible(False)
        return axes

    def _y(self, row: int) -> float:
        return self.top + ROW * (row + 0.5)

    def draw(self) -> Figure:
        """Draw everything and return the figure."""
        title = "From ResNet to ConvNeXt, step by step"
        self.page.text(MARGIN, MARGIN + 0.1, title, size=12, weight="bold", va="center")
        self._bands()
        span = limits(self.groups) if len(self.groups) == 1 else None
        x = self.left
        for number, group in enumerate(self.groups):
            start = MARGIN if len(self.groups) == 1 else x
            for i, text in enumerate(self.heads[number]):
                bold = "bold" if text == group.caution or (i == 0 and len(self.groups) > 1) else "normal"
                self.page.text(start, MARGIN + 0.36 + HEAD_LINE * i, text, va="center", weight=bold)
            self._panel(number, x, span or limits([group]))
            x += self.widths[number] + PANEL_GAP
        self._legend()
        return self.figure

    def _bands(self) -> None:
        """Shade every other section of the paper and name each where it begins."""
        shaded, before = False, None
        for row, line in enumerate(self.lines):
            if line.section != before:
                shaded, before = not shaded, line.section
                self.page.text(MARGIN, self._y(row), line.section, size=7.5, style="italic", color=QUIET, va="center_baseline")
            if shaded:
                end = self.width - MARGIN * 0.5
                self.page.fill_between([MARGIN * 0.5, end], self._y(row) - ROW / 2, self._y(row) + ROW / 2, color=BAND, lw=0)

    def _panel(self, number: int, x: float, span: tuple[float, float]) -> None:
        group = self.groups[number]
        cells = [(row, cell) for row, line in enumerate(self.lines) if (cell := line.cells[number]) is not None]
        height = ROW * len(self.lines)
        axes = self._axes(x, self.top, BARS, height)
        axes.set(xlim=span, ylim=(len(self.lines) - 0.5, -0.5))
        _bars(axes, cells)
        _reference(axes, group, cells)
        axes.set(xlim=span, ylim=(len(self.lines) - 0.5, -0.5))  # again: drawing may widen them
        axes.set_xlabel("top-1 accuracy (%)" + (f"; the axis starts at {span[0]:g}" if span[0] else ""))
        axes.set_yticks(range(len(self.lines)), [line.label if number == 0 else "" for line in self.lines], parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        _quiet(axes)
        values, papers = x + BARS + self.values[number], x + BARS + self.values[number] + self.papers[number]
        macs = self._axes(papers + GAP, self.top, MACS, height)
        unit, scale = macs_unit(group)
        _macs(macs, cells, len(self.lines), scale)
        macs.set_xlabel(f"MACs ({unit})")
        self._column(values, "top-1 (%)", {row: value_text(cell, group) for row, cell in cells}, "no run")
        if self.papers[number]:
            self._column(papers, "paper", {row: f"{cell.paper.top1:.2f}" for row, cell in cells if cell.paper}, "")
        self._column(
            papers + GAP + MACS + MACS_VALUES - 0.04,
            f"{unit}MACs",
            {row: small(cell.gmacs and cell.gmacs * scale) for row, cell in cells},
            "",
        )

    def _column(self, right: float, name: str, texts: dict[int, str], missing: str) -> None:
        """Write a column of numbers that ends at `right`."""
        self.page.text(right, self.top - 0.1, name, ha="right", va="center", size=7.5, color=QUIET)
        for row in range(len(self.lines)):
            color = INK if row in texts and name != "paper" else QUIET
            self.page.text(right, self._y(row), texts.get(row, missing), ha="right", va="center_baseline", color=color)

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
            handles.append(Line2D([], [], ls="", marker="D", ms=4.5, mfc="white", mec=INK, label="paper"))
        self.figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 0.05 / self.height), ncols=len(handles), frameon=False, fontsize=8
        )


def _bars(axes: Axes, cells: Sequence[tuple[int, Cell]]) -> None:
    """Draw a bar a row, hatched where the step was not kept, and the spread over seeds where there is one.

    The spread lies above the middle of the bar and the paper's mark below it, so that neither hides the other.
    """
    looks = {"yes": (KEPT, "", "-"), "no": (TRIED, "/////", "-"), "reference": (REFERENCE, "", "--")}
    for row, cell in cells:
        color, hatch, line = looks[cell.adopted]
        axes.barh(row, cell.top1, height=0.68, color=color, edgecolor=INK, linewidth=0.6, hatch=hatch, linestyle=line, label=cell.step)
        if cell.top1_std is not None:
            axes.errorbar(
                cell.top1, row - 0.1, xerr=cell.top1_std, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5, capthick=1.1, zorder=4
            )
        if cell.paper:
            axes.plot(cell.paper.top1, row + 0.2, "D", ms=3.6, mfc="white", mec=INK, mew=0.9, zorder=5)


def _reference(axes: Axes, group: Group, cells: Sequence[tuple[int, Cell]]) -> None:
    """Draw a dashed line at our run of a reference net; at the paper's number where there is no such run."""
    lines = [(cell.top1, f"{drawable(cell.label, cell.step)} {cell.top1:.2f}") for _, cell in cells if cell.adopted == "reference"]
    if not lines and group.paper_reference:
        lines = [(group.paper_reference.top1, f"{group.paper_reference.label} (paper) {group.paper_reference.top1:.2f}")]
    for at, _ in lines:
        axes.axvline(at, color=INK, ls=(0, (5, 3)), lw=0.9, zorder=3)
    if lines:
        at, name = lines[0]
        low, high = axes.get_xlim()
        side = "right" if at > low + 0.75 * (high - low) else "left" if at < low + 0.25 * (high - low) else "center"
        axes.text(at, 1.0, name, transform=axes.get_xaxis_transform(), size=7.5, ha=side, va="bottom")


def _macs(axes: Axes, cells: Sequence[tuple[int, Cell]], count: int, scale: float) -> None:
    """Draw the multiply-accumulates of every row; lines lead along the kept steps, from parent to child."""
    known = {cell.step: (cell.gmacs * scale, row) for row, cell in cells if cell.gmacs is not None}
    for _, cell in cells:
        if cell.step not in known:
            continue
        if cell.adopted == "yes" and cell.parent in known:
            axes.plot(*zip(known[cell.parent], known[cell.step], strict=True), color=INK, lw=0.9, zorder=2)
        axes.plot(*known[cell.step], "o", ms=4.5, mfc=INK if cell.adopted == "yes" else "white", mec=INK, mew=0.9, zorder=3)
    most = max((gmacs for gmacs, _ in known.values()), default=1.0)
    axes.set(xlim=(0, most * 1.12 or 1), ylim=(count - 0.5, -0.5), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(3))
    _quiet(axes)


def _quiet(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7.5, width=0.7)
    axes.xaxis.label.set_fontsize(8)
