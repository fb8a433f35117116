"""Which figures there are: a function, a name and a caption each."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from matplotlib.figure import Figure

from roadmap.report.analyse.cells import Group
from roadmap.report.draw.chart_rows import charts, file_name
from roadmap.report.draw.curves import kernel_curve, rank_agreement, training_curves
from roadmap.report.draw.rate_figures import own_rates, rate_sensitivity
from roadmap.report.draw.roadmap_figure import roadmap_chart
from roadmap.report.draw.step_gains import (
    changed_classes,
    changed_images,
    leave_one_out,
    one_at_a_time,
    step_gains,
    toggle_worths,
)
from roadmap.report.draw.style import NothingToDraw
from roadmap.report.draw.trade_offs import trade_offs

NARROW = "The same chart at the width of one column."
# The figures of one group. A function raises NothingToDraw where the group has no data for it.
FIGURES: tuple[tuple[str, Callable[[Group], Figure], str], ...] = (
    ("roadmap-rates", own_rates, "The roadmap with the one recipe, and with each row at its own learning rate."),
    ("rates", rate_sensitivity, "Accuracy on held-out training images over the learning rate."),
    ("gains", step_gains, "Gain in top-1 of each step over its parent."),
    ("images", changed_images, "Images that each step fixed and broke compared with its parent, paired by seed."),
    ("classes", changed_classes, "How much the accuracy of each class changes with each step."),
    ("tradeoffs", trade_offs, "Top-1 against each cost."),
    ("curves", training_curves, "Top-1 over the epochs, one line per seed."),
    ("kernel_size", kernel_curve, "Top-1 over the size of the depthwise kernel."),
    ("leave_one_out", leave_one_out, "Change in top-1 when one toggle is removed."),
    ("one_at_a_time", one_at_a_time, "Change in top-1 when one toggle is added alone."),
    ("attribution", toggle_worths, "Mean gain of each toggle over random orders."),
    ("ranking", rank_agreement, "Top-1 of each row here against the paper's."),
)


@dataclass(frozen=True)
class Drawing:
    """A figure, the name of its files, and its caption."""

    name: str
    figure: Figure
    caption: str


def gallery(groups: Sequence[Group]) -> Iterator[Drawing]:
    """Draw every figure that the groups have data for: the roadmap's charts first, then those of each group."""
    for name, shown in charts(groups).items():
        yield Drawing(name, roadmap_chart(shown), _caption(shown))
        for group in shown:
            narrow = name.replace("roadmap", "roadmap-column", 1) + (f"-{group.regime}" if len(shown) > 1 else "")
            yield Drawing(narrow, roadmap_chart(group, narrow=True), NARROW)
    for suffix, group in zip(suffixes(groups), groups, strict=True):
        for name, draw, caption in FIGURES:
            with suppress(NothingToDraw):
                yield Drawing(name + suffix, draw(group), caption)


def _caption(groups: Sequence[Group]) -> str:
    """Return the roadmap's caption: it names what is drawn, and no more."""
    rows = [row for group in groups for row in group.rows]
    parts = ["Top-1 after the last epoch" + (", mean over seeds" if any(row.n > 1 for row in rows) else "")]
    parts += ["a bar leads from the step before"] if any(row.gain for row in rows) else []
    parts += ["hollow: tried, not kept"] if any(row.adopted == "no" for row in rows) else []
    parts += ["diamonds: the paper's numbers"] if any(row.paper for row in rows) else []
    return "; ".join(parts) + "."


def suffixes(groups: Sequence[Group]) -> list[str]:
    """Return what tells the files of each group apart: nothing for the only group, else its names."""
    if len(groups) == 1:
        return [""]
    names: list[str] = []
    for group in groups:
        names.append(file_name(f"-{group.study}-{group.regime}-{group.data}", names))
    return names
