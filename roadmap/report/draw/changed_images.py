"""Which images and classes each step changes beside its parent. Writes no file."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from roadmap.report.analyse.cells import Group
from roadmap.report.analyse.formats import count, signed
from roadmap.report.draw import style
from roadmap.report.draw.step_gains import draw_rows
from roadmap.report.draw.style import INK, KEPT, QUIET, TRIED, NothingToDraw, drawable, hover, where

MOST_DOTS = 40  # a row
SIGNIFICANT = "filled: significant over seeds (Welch's test, adjusted by Benjamini and Hochberg for the study)"


@style.styled()
def changed_images(group: Group) -> Figure:
    """Draw how many images each step fixed and broke beside its parent, paired by seed, and how many a seed does."""
    found = [(row, row.gain.changes) for row in group.rows if row.gain and row.gain.changes]
    if not found:
        raise NothingToDraw("there is no step whose runs and whose parent's say which images they have right")
    labels = [drawable(cell.label, cell.step) for cell, _ in found]
    figure, axes = draw_rows(f"Images that each step changes, {where(group)}", labels, "images broken | fixed")
    axes.axvline(0, color=INK, lw=0.7)
    for y, (cell, changes) in enumerate(found):
        for width, color, verb in ((changes.fixed, KEPT, "fixes"), (-changes.broke, TRIED, "breaks")):
            (bar,) = axes.barh(y, width, height=0.62, color=color, ec=INK, lw=0.6)
            hover(bar, f"{cell.label}: {verb} {count(abs(width))} images, mean over {changes.seeds} seeds")
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
    labels = [drawable(cell.label, cell.step) for cell, _ in known]
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
    style.legend(
        figure, handles, SIGNIFICANT if any(classes.significant.any() for _, classes in known) else "", ncols=3
    )
    return figure
