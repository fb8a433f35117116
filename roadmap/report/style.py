"""How every figure looks, how wide its texts are, and how it becomes bytes: the same bytes for the same data."""

import io
import re
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

from roadmap.report.text import clean, shorten

COLUMN, MARGIN = 3.5, 0.06  # inches: one column of a paper, and what stays free at its edges
# Blues that keep their order in grey; hatching, shape and outline, not colour, carry the meaning.
KEPT, TRIED, REFERENCE, INK, QUIET, BAND = "#6baed6", "#deebf7", "#ffffff", "#1a1a1a", "#6a6a6a", "#f3f3f3"
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same bytes on_all_ranks
    "font.size": 7,
    "hatch.linewidth": 0.7,
    "axes.linewidth": 0.6,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "text.parse_math": False,  # labels are text, never formulas
    "axes.unicode_minus": True,
    "svg.hashsalt": "roadmap",
    "text.color": INK,
}
METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
HOVER = "hover:"  # an artist's gid that becomes the <title> of its group in SVG


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save in our style, whatever the user's settings are."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def image(figure: Figure, kind: str) -> bytes:
    """Return the figure as the bytes of a `png` (200 dpi), `svg` or `pdf` file: the same bytes for the same data."""
    out = io.BytesIO()
    with styled():
        figure.savefig(out, format=kind, dpi=200, metadata=METADATA[kind], facecolor="white")
    if kind != "svg":
        return out.getvalue()
    return re.sub(rf"""<g id=(["']){HOVER}(.*?)\1>""".encode(), rb"<g><title>\2</title>", out.getvalue())


def hover(artist: Artist, text: str) -> None:
    """Let an artist show a text where the pointer rests on it in SVG."""
    artist.set_gid(HOVER + clean(text, 300))


def new_figure() -> Figure:
    """Return an empty figure that draws without a screen."""
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure


def text_width(figure: Figure, texts: Sequence[str], size: float, weight: str = "normal") -> float:
    """Return the width of the widest text in inches."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    widths = []
    for text in filter(None, texts):
        probe = figure.text(0, 0, text, size=size, weight=weight)
        widths.append(probe.get_window_extent(renderer).width / figure.dpi)
        probe.remove()
    return max(widths, default=0.0)


def fitted(figure: Figure, text: str, size: float, width: float, weight: str = "normal") -> str:
    """Return the text, its middle left out where it is wider than `width` inches."""
    limit = len(text)
    while limit > 4 and text_width(figure, [shorten(text, limit)], size, weight) > width:
        limit -= max(1, limit // 12)
    return shorten(text, limit)


def drawable(label: str, name: str, limit: int = 36) -> str:
    """Return a label that the font can draw, not longer than there is room for; the name where it can draw too little."""
    font = get_font(findfont("DejaVu Sans"))
    text = "".join(c if font.get_char_index(ord(c)) else "?" for c in clean(label))
    return shorten(name if 2 * text.count("?") > len(text) else text, limit)


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return axes at a place given in inches from the figure's upper left corner."""
    whole_width, whole_height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    )
    axes.patch.set_visible(False)
    return axes


def quiet(axes: Axes) -> None:
    """Take away the frame's upper and right side."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def title(figure: Figure, text: str) -> None:
    """Write the title in the upper left corner, no wider than the figure."""
    width, height = figure.get_size_inches()
    shown = fitted(figure, text, 7, width - 2 * MARGIN, "bold")
    figure.text(MARGIN / width, 1 - 0.13 / height, shown, size=7, weight="bold", va="center")
