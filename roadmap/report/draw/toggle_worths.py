"""What each toggle is worth over sampled orders, beside what it gained where the paper put it."""

from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from roadmap import paper
from roadmap.report.analyse.attribution import Attribution, Worth
from roadmap.report.analyse.cells import Group
from roadmap.report.analyse.formats import between, signed
from roadmap.report.draw import style
from roadmap.report.draw.step_gains import draw_rows
from roadmap.report.draw.style import INK, KEPT, QUIET, NothingToDraw, drawable, hover, where

# What stands beside a worth: name, value, marker, colour, and how far below the middle of the row.
BESIDE: tuple[tuple[str, Callable[[Worth], float | None], str, str, float], ...] = (
    ("its step, the paper's order", lambda worth: worth.in_order, "s", KEPT, 0.14),
    ("left out of the whole net", lambda worth: worth.left_out, "v", "white", 0.14),
    ("its step, as printed", lambda worth: worth.paper_gain, "D", "white", 0.3),
)


@style.styled()
def toggle_worths(group: Group) -> Figure:
    """Draw each toggle's worth over the orders with its 95 % interval; beside it its gains elsewhere."""
    found = group.attribution
    if found is None or not found.worths:
        raise NothingToDraw("there is no worth to draw: no order of toggles whose nets are all trained")
    labels = [_label(group, worth) for worth in found.worths]
    title = f"Mean gain of each toggle over {found.orders} orders, {where(group)}"
    figure, axes = draw_rows(title, labels, "gain (points)")
    axes.axvline(0, color=QUIET, lw=0.7)
    for row, worth in enumerate(found.worths):
        if worth.interval:
            axes.plot([worth.interval.low, worth.interval.high], [row - 0.14] * 2, color=INK, lw=1.2)
        (dot,) = axes.plot(worth.value, row - 0.14, "o", ms=3.5, color=INK, zorder=3)
        hover(dot, f"{labels[row]}: {signed(worth.value)} points; 95 % {between(worth.interval) or 'not known'}")
        for name, value, marker, color, below in BESIDE:
            if (gain := value(worth)) is not None:
                (mark,) = axes.plot(gain, row + below, marker, ms=3, mfc=color, mec=INK, mew=0.6, zorder=2)
                hover(mark, f"{labels[row]}, {name}: {signed(gain)} points")
    style.legend(figure, _handles(found), _notes(found))
    return figure


def _label(group: Group, worth: Worth) -> str:
    told = any(worth.is_told(worth.in_order, worth.in_order_p, flatters) for flatters in (True, False))
    return drawable(paper.label(worth.toggle, group.regime) or worth.toggle, worth.toggle) + " *" * told


def _handles(found: Attribution) -> list[Line2D]:
    handles = [Line2D([], [], color=INK, lw=1.2 * (not found.lacks), marker="o", ms=3.5, label="mean over the orders")]
    for name, value, marker, color, _ in BESIDE:
        if any(value(worth) is not None for worth in found.worths):
            handles.append(Line2D([], [], ls="", marker=marker, ms=3, mfc=color, mec=INK, mew=0.6, label=name))
    return handles


def _notes(found: Attribution) -> str:
    if found.lacks:
        return f"no interval is known: {found.lacks}"
    told = any(worth.in_order_p is not None for worth in found.worths)
    return "lines: 95 % over orders and seeds" + (
        "\n* its step in the paper's order differs significantly from the mean (Holm)" * told
    )
