"""What each step gains over its parent, what each variant changes, what each toggle is worth: rows of
differences with their intervals; and which images and classes each step changes."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from roadmap import paper
from roadmap.report.analyse.attribution import Attribution, Worth
from roadmap.report.analyse.cells import MARK, Cell, Gain, Group
from roadmap.report.analyse.formats import between, count, signed
from roadmap.report.draw import style
from roadmap.report.draw.style import INK, KEPT, QUIET, TRIED, NothingToDraw, drawable, hover, row_label, where

SEEDS, IMAGES, PAPER = "ours, 95 % over seeds", "ours, 95 % over images only", "paper, 95 % over seeds"
SIGNIFICANT = "* significant by Welch's test, adjusted by Holm for the study"
PAPER_ALONE = "paper, no spread printed"
# What stands beside a worth: name, value, marker, colour, and how far below the middle of the row.
BESIDE: tuple[tuple[str, Callable[[Worth], float | None], str, str, float], ...] = (
    ("its step, the paper's order", lambda worth: worth.in_order, "s", KEPT, 0.14),
    ("left out of the whole net", lambda worth: worth.left_out, "v", "white", 0.14),
    ("its step, as printed", lambda worth: worth.paper_gain, "D", "white", 0.3),
)
MOST_DOTS = 40  # a row
FILLED = "filled: significant over seeds (Welch's test, adjusted by Benjamini and Hochberg for the study)"


@style.styled()
def step_gains(group: Group) -> Figure:
    """Draw what each step gains over its parent, with 95 % intervals, ours and the paper's."""
    compared = [(row, row.gain) for row in group.rows if row.gain]
    if not compared:
        raise NothingToDraw("there is no step to draw: no row whose parent has a usable run")
    labels = [row_label(cell) + "\N{NO-BREAK SPACE}*" * gain.significant for cell, gain in compared]
    figure, axes = draw_rows(f"Gain of each step, {where(group)}", labels, "gain (points)")
    axes.axvline(0, color=QUIET, lw=0.7)
    beside = any(gain.paper_gain is not None for _, gain in compared)
    drawn: set[str] = set()
    for row, (cell, gain) in enumerate(compared):
        drawn |= _gain(axes, row - 0.12 if beside else row, cell, gain)
        drawn |= _paper_gain(axes, row + 0.22, cell, gain)
    if PAPER in drawn:
        drawn.discard(PAPER_ALONE)
    words = [style.NO_INTERVAL] * (not {SEEDS, IMAGES} & drawn) + [SIGNIFICANT] * any(
        gain.significant for _, gain in compared
    )
    style.legend(figure, _handles(drawn, compared), "\n".join(words))
    return figure


def _gain(axes: Axes, y: float, cell: Cell, gain: Gain) -> set[str]:
    """Draw one step's gain; return which interval was drawn."""
    kind = IMAGES if gain.over_images and not gain.over_seeds else SEEDS
    interval = gain.over_images if kind == IMAGES else gain.over_seeds
    if interval:
        axes.plot([interval.low, interval.high], [y, y], color=INK, lw=1.2, ls=":" if kind == IMAGES else "-")
    fill = INK if cell.adopted == "yes" else "white"
    (dot,) = axes.plot(gain.gain, y, "o", ms=3.5, mfc=fill, mec=INK, mew=0.8, zorder=3)
    hover(dot, f"{cell.label}: gain {signed(gain.gain)} points; 95 % {between(interval) or 'not known'} ({kind})")
    return {kind} if interval else set()


def _paper_gain(axes: Axes, y: float, cell: Cell, gain: Gain) -> set[str]:
    if gain.paper_gain is None:
        return set()
    if gain.paper_interval:
        axes.plot([gain.paper_interval.low, gain.paper_interval.high], [y, y], color=QUIET, lw=0.8)
    (dot,) = axes.plot(gain.paper_gain, y, "D", ms=2.8, mfc="white", mec=QUIET, mew=0.8, zorder=3)
    hover(dot, f"{cell.label}: the paper's gain {signed(gain.paper_gain)} points")
    return {PAPER if gain.paper_interval else PAPER_ALONE}


def _handles(drawn: set[str], compared: Sequence[tuple[Cell, Gain]]) -> list[Line2D]:
    """Return a handle for each thing that was drawn."""
    looks = {
        SEEDS: Line2D([], [], color=INK, lw=1.2, marker="o", ms=3.5, label=SEEDS),
        IMAGES: Line2D([], [], color=INK, lw=1.2, ls=":", marker="o", ms=3.5, label=IMAGES),
        PAPER: Line2D([], [], color=QUIET, lw=0.8, marker="D", ms=2.8, mfc="white", label=PAPER),
        PAPER_ALONE: Line2D([], [], color=QUIET, ls="", marker="D", ms=2.8, mfc="white", label=PAPER_ALONE),
    }
    handles = [look for kind, look in looks.items() if kind in drawn]
    if not {SEEDS, IMAGES} & drawn:
        handles.insert(0, Line2D([], [], ls="", color=INK, marker="o", ms=3.5, label="ours"))
    if any(cell.adopted == "no" for cell, _ in compared):
        handles.append(Line2D([], [], ls="", marker="o", ms=3.5, mfc="white", mec=INK, label="tried, not kept"))
    return handles


def leave_one_out(group: Group) -> Figure:
    """Draw what each toggle is worth that was taken out of the whole net."""
    return _variants(group, "without_", "Left out of")


def one_at_a_time(group: Group) -> Figure:
    """Draw what each toggle is worth alone on top of a plain net."""
    return _variants(group, "with_", "Alone on top of")


@style.styled()
def _variants(group: Group, prefix: str, heading: str) -> Figure:
    """Draw what each variant of a kind changes beside the net that it was made from."""
    found = [(cell, cell.variant, cell.gain) for cell in group.others if cell.gain and cell.variant]
    variants = [(c, name, g) for c, name, g in found if name.startswith(prefix) and "," not in c.cell]
    if not variants:
        raise NothingToDraw(f"there is no variant {prefix}... to draw beside its plain step")
    parent, _ = Counter(gain.parent for *_, gain in variants).most_common(1)[0]
    shown = [variant for variant in variants if variant[2].parent == parent]  # others are on top of other nets
    hidden, variants = len(variants) - len(shown), shown
    labels = [name.removeprefix(prefix).replace("_", " ") + f" {MARK}" * bool(c.marks) for c, name, _ in variants]
    title = f"{heading} {parent}, {where(group)}"
    figure, axes = draw_rows(title, labels, "change of top-1 (points)")
    axes.axvline(0, color=INK, lw=0.7)
    for row, (_, name, gain) in enumerate(variants):
        (bar,) = axes.barh(row, gain.gain, height=0.62, color=KEPT if gain.gain >= 0 else TRIED, ec=INK, lw=0.6)
        interval = gain.over_seeds or gain.over_images
        hover(bar, f"{name}: {signed(gain.gain)} points; 95 % {between(interval) or 'not known'}")
        if interval:
            line = "-" if gain.over_seeds else ":"
            axes.plot([interval.low, interval.high], [row, row], color=INK, lw=1.1, ls=line)
    words = []
    if any(gain.over_seeds for *_, gain in variants):
        words.append("lines: 95 % over seeds (Welch)")
    if any(gain.over_images and not gain.over_seeds for *_, gain in variants):
        words.append("dotted: over images only")
    text = "; ".join(words) or style.NO_INTERVAL
    style.legend(figure, [], text + "\nvariants of other rows are in the tables alone" * bool(hidden))
    return figure


@style.styled()
def toggle_worths(group: Group) -> Figure:
    """Draw each toggle's worth over the orders with its 95 % interval; beside it its gains elsewhere."""
    found = group.attribution
    if found is None or not found.worths:
        raise NothingToDraw("there is no worth to draw: no order of toggles whose nets are all trained")
    labels = [_worth_label(group, worth) for worth in found.worths]
    title = f"Mean gain of each toggle over {found.orders} order{'s' * (found.orders > 1)}, {where(group)}"
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
    style.legend(figure, _worth_handles(found), _worth_notes(found))
    return figure


def _worth_label(group: Group, worth: Worth) -> str:
    significant = any(worth.is_significant(worth.in_order, worth.in_order_p, flatters) for flatters in (True, False))
    return drawable(paper.label(worth.toggle, group.regime) or worth.toggle, worth.toggle) + " *" * significant


def _worth_handles(found: Attribution) -> list[Line2D]:
    handles = [Line2D([], [], color=INK, lw=1.2 * (not found.lacks), marker="o", ms=3.5, label="mean over the orders")]
    for name, value, marker, color, _ in BESIDE:
        if any(value(worth) is not None for worth in found.worths):
            handles.append(Line2D([], [], ls="", marker=marker, ms=3, mfc=color, mec=INK, mew=0.6, label=name))
    return handles


def _worth_notes(found: Attribution) -> str:
    if found.lacks:
        return f"no interval is known: {found.lacks}"
    note = "\n* its step in the paper's order differs significantly from the mean (Holm)"
    return "lines: 95 % over orders and seeds" + note * any(w.in_order_p is not None for w in found.worths)


def draw_rows(title: str, labels: Sequence[str], xlabel: str) -> tuple[Figure, Axes]:
    """Return a figure of rows from top to bottom, labelled on the left, and its axes."""
    figure = style.new_figure(title, 0.95 + 0.17 * len(labels))
    axes = figure.subplots()
    style.label_rows(axes, [style.wrapped(figure, label, 6.5, style.COLUMN * 0.45) for label in labels])
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for row in range(1, len(labels), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=style.BAND, lw=0, zorder=0)
    return figure, axes


@style.styled()
def changed_images(group: Group) -> Figure:
    """Draw how many images each step fixed and broke beside its parent, paired by seed, and how many a seed does."""
    found = [(row, row.gain.changes) for row in group.rows if row.gain and row.gain.changes]
    if not found:
        raise NothingToDraw("there is no step whose runs and whose parent's say which images they have right")
    labels = [row_label(cell) for cell, _ in found]
    figure, axes = draw_rows(f"Images that each step changes, {where(group)}", labels, "images broken | fixed")
    axes.axvline(0, color=INK, lw=0.7)
    for y, (cell, changes) in enumerate(found):
        for width, color, verb in ((changes.fixed, KEPT, "fixes"), (-changes.broke, TRIED, "breaks")):
            (bar,) = axes.barh(y, width, height=0.62, color=color, ec=INK, lw=0.6)
            over = f", mean over {changes.seeds} seeds" * (changes.seeds > 1)
            hover(bar, f"{cell.label}: {verb} {count(abs(width))} images{over}")
        if changes.by_seed is not None:
            for x in (-changes.by_seed, changes.by_seed):
                (tick,) = axes.plot([x, x], [y - 0.42, y + 0.42], color=QUIET, lw=1.2)
                hover(tick, f"{cell.label}: another seed alone changes {count(changes.by_seed)} images each way")
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    handles: list[Line2D | Patch] = [
        Patch(fc=KEPT, ec=INK, lw=0.6, label="fixed: right here, wrong before"),
        Patch(fc=TRIED, ec=INK, lw=0.6, label="broken"),
    ]
    if any(changes.by_seed is not None for _, changes in found):
        label = "what another seed alone changes"
        handles.append(Line2D([], [], ls="", marker="|", ms=6, mew=1.2, color=QUIET, label=label))
    style.legend(figure, handles)
    return figure


@style.styled()
def changed_classes(group: Group) -> Figure:
    """Draw how much the accuracy of every class changes with each step: all, the middle half, the ends by name."""
    found = [(row, row.gain.changes.classes) for row in group.rows if row.gain and row.gain.changes]
    known = [(row, classes) for row, classes in found if classes]
    if not known:
        raise NothingToDraw("there is no step whose runs and whose parent's say which class each image has")
    labels = [row_label(cell) for cell, _ in known]
    figure, axes = draw_rows(f"Classes that each step changes, {where(group)}", labels, "change of a class (points)")
    axes.axvline(0, color=QUIET, lw=0.7)
    for y, (_, classes) in enumerate(known):
        low, first, middle, third, high = np.quantile(classes.change, [0, 0.25, 0.5, 0.75, 1])
        axes.plot([low, high], [y, y], color=QUIET, lw=0.7, zorder=1)
        axes.plot([first, third], [y, y], color=KEPT, lw=4, solid_capstyle="butt", zorder=2)
        axes.plot([middle, middle], [y - 0.3, y + 0.3], color=INK, lw=1, zorder=3)
        ends = {*classes.most(1, 1), *classes.most(-1, 1), *np.flatnonzero(classes.significant).tolist()}
        for i in sorted(ends, key=lambda i: -abs(classes.change[i]))[:MOST_DOTS]:
            fill = INK if classes.significant[i] else "white"
            (dot,) = axes.plot(classes.change[i], y, "o", ms=3, mfc=fill, mec=INK, mew=0.7, zorder=4)
            hover(dot, f"{classes.names[i]}: {signed(classes.change[i])} points, {classes.images[i]} images")
    handles = [
        Line2D([], [], color=QUIET, lw=0.7, label="all classes"),
        Line2D([], [], color=KEPT, lw=4, label="the middle half"),
        Line2D([], [], ls="", marker="o", ms=3, mfc="white", mec=INK, label="helped and hurt most"),
    ]
    style.legend(figure, handles, FILLED if any(classes.significant.any() for _, classes in known) else "", ncols=3)
    return figure
