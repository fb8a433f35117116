"""How every figure looks, and how it becomes bytes: the same bytes for the same data."""

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from roadmap.report.analyse.cells import MARK, Cell, Group
from roadmap.text import clean, shorten

COLUMN = 3.5  # inches: one column of a paper
# Blues that keep their order in grey; shape and outline, not colour, carry the meaning.
KEPT, TRIED, INK, QUIET, BAND = "#6baed6", "#deebf7", "#1a1a1a", "#6a6a6a", "#f3f3f3"
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same bytes everywhere
    "font.size": 7,
    "axes.linewidth": 0.6,
    "axes.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 5.8,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 0.8,
    "legend.labelspacing": 0.2,
    "text.parse_math": False,  # labels are text, never formulas
    "axes.unicode_minus": True,
    "svg.hashsalt": "roadmap",
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3 fonts
    "text.color": INK,
}
METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
PANELS = 3  # small ones in a row
NO_INTERVAL = "no interval is known (one seed, or all seeds equal)"
MARKED = f"{MARK} counts runs that differ from most of the study"
HOVER = "hover:"  # an artist's gid that becomes the <title> of its group in SVG


class NothingToDraw(ValueError):
    """The data have nothing for this figure."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save in our style, independent of the user's settings."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def image(figure: Figure, kind: str) -> bytes:
    """Return the figure as the bytes of a `png` (200 dpi), `svg` or `pdf` file: the same bytes for the same data."""
    out = io.BytesIO()
    with styled():
        if figure.get_layout_engine() is not None:  # computed once for all kinds
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            for axes in figure.axes:  # the solver's last digits hang on where its variables lie in memory
                axes.set_position(Bbox.from_bounds(*(round(number, 6) for number in axes.get_position().bounds)))
        figure.savefig(out, format=kind, dpi=200, metadata=METADATA[kind], facecolor="white")
    if kind != "svg":
        return out.getvalue()
    return re.sub(rf"""<g id=(["']){HOVER}(.*?)\1>""".encode(), rb"<g><title>\2</title>", out.getvalue())


def hover(artist: Artist, text: str) -> None:
    """Let an artist show a text where the pointer rests on it in SVG."""
    artist.set_gid(HOVER + clean(text, 300))


def new_figure(title: str, height: float, width: float = COLUMN, size: float = 7, pad: float = 0.05) -> Figure:
    """Return a figure that draws without a screen, of a size in inches, with its title in the upper left corner."""
    figure = Figure((width, height), layout=ConstrainedLayoutEngine(h_pad=pad, w_pad=pad))
    FigureCanvasAgg(figure)
    left = 0.06 / width
    shown = wrapped(figure, title, size, width * (1 - 2 * left), "bold", lines=3)
    figure.suptitle(shown, x=left, ha="left", size=size, weight="bold")
    return figure


def small_panels(title: str, height: float, labels: Sequence[str], share_x: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a figure with a small panel under each label, and their axes; `height` is that of the rest, in inches."""
    lines = math.ceil(len(labels) / PANELS)
    figure = new_figure(title, height + 0.8 * lines)
    grid = figure.subplots(lines, PANELS, sharex=share_x, sharey=True, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(labels):
            axes.remove()
            continue
        axes.set_title(wrapped(figure, labels[i], 5.5, 0.98), size=5.5, pad=2)
        axes.tick_params(labelsize=5.5)
        if i + PANELS >= len(labels):
            axes.tick_params(labelbottom=True)
    return figure, list(grid.flat)[: len(labels)]


def legend(figure: Figure, handles: Sequence[Any], words: str = "", **options: Any) -> None:
    """Explain a figure at its foot: `words`, what a mark means, and below them handles with their labels."""
    texts = [*(text.get_text() for text in figure.findobj(Text)), *(str(handle.get_label()) for handle in handles)]
    lines = "\n".join(texts).splitlines()
    if any(MARK in line for line in lines) and not any(line.startswith(MARK) for line in lines):
        words = f"{words}\n{MARKED}".lstrip()
    options = {"loc": "outside lower left", "ncols": 2, **options}
    size = options.get("fontsize", 5.8)
    title = "\n".join(wrapped(figure, line, size, figure.get_figwidth() - 0.12, lines=3) for line in words.splitlines())
    found = figure.legend(handles=handles, title=title, alignment="left", borderpad=0, **options)
    found.get_title().set(size=size, color=QUIET)


def wrapped(figure: Figure, text: str, size: float, width: float, weight: str = "normal", lines: int = 2) -> str:
    """Return the text in as many lines of at most `width` inches as it needs; past `lines` of them it is cut short."""
    limit = len(text)
    while limit > 4 and text_width(figure, [text[:limit]], size, weight) > width:
        limit -= max(1, limit // 12)
    parts = textwrap.wrap(text, limit) or [text]
    if len(parts) > lines:
        parts = [*parts[: lines - 1], shorten(" ".join(parts[lines - 1 :]), limit)]
    return "\n".join(parts)


def text_width(figure: Figure, texts: Sequence[str], size: float, weight: str = "normal") -> float:
    """Return the width of the widest text in inches."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    widths = []
    for text in filter(None, texts):
        probe = figure.text(0, 0, text, size=size, weight=weight)
        widths.append(probe.get_window_extent(renderer).width / figure.dpi)
        probe.remove()
    return max(widths, default=0.0)


def drawable(label: str, name: str, limit: int = 36) -> str:
    """Return a label that the font can draw, in at most `limit` letters; the name where it can draw too little."""
    font = get_font(findfont("DejaVu Sans"))
    text = "".join(c if font.get_char_index(ord(c)) else "?" for c in clean(label))
    return shorten(name if 2 * text.count("?") > len(text) else text, limit)


def row_label(cell: Cell, limit: int = 36) -> str:
    """Return a row's label as the font can draw it, marked where runs count that differ from most of the study."""
    return drawable(cell.label, cell.step, limit) + f"\N{NO-BREAK SPACE}{MARK}" * bool(cell.marks)


def beside(axes: Axes, text: str, point: Any, offset: tuple[float, float], **options: Any) -> None:
    """Write a text at an offset in points from a point, on the side where the offset leads."""
    right, up = offset
    side, rest = "left" if right > 0 else "right" if right < 0 else "center", "top" if up < 0 else "bottom"
    text_at = axes.annotate(text, point, offset, textcoords="offset points", ha=side, va=rest, **options)
    text_at.set_in_layout(False)


def label_rows(axes: Axes, labels: Sequence[str], size: float | None = None) -> None:
    """Let the y axis lead from row to row, the first on top, each with its label."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels, parse_math=False, size=size)
    axes.tick_params(axis="y", length=0)


def where(group: Group) -> str:
    """Return study, regime and data for a title."""
    return f"{drawable(group.study, 'study', 24)} ({group.regime}, {group.data})"
