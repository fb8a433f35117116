"""Which figures some groups have, by file name. Used by the command and the page."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from roadmap.report import plots, tradeoffs
from roadmap.report.cells import Group
from roadmap.report.figures import roadmap_chart
from roadmap.report.lines import charts
from roadmap.report.ranking import ranking


def gallery(groups: Sequence[Group]) -> dict[str, Figure]:
    """Return every figure that the groups have data for: the roadmap's charts first, then those of each group."""
    figures: dict[str, Figure] = {}
    for name, together in charts(groups).items():
        figures[name] = roadmap_chart(together)
        for group in together:
            narrow = name.replace("roadmap", "roadmap-column", 1) + (f"-{group.regime}" if len(together) > 1 else "")
            figures[narrow] = roadmap_chart(group, narrow=True)
    for suffix, group in zip(suffixes(groups), groups, strict=True):
        figures |= {name + suffix: draw(group) for name, draw in of_group(group).items()}
    return figures


def of_group(group: Group) -> dict[str, Callable[[Group], Figure]]:
    """Return the figures that one group has data for, by name."""
    ranks = ranking(group)
    draws: dict[str, tuple[bool, Callable[[Group], Figure]]] = {
        "gains": (any(cell.gain for cell in group.rows), plots.step_gains),
        "tradeoffs": (bool(tradeoffs.costs(group)), tradeoffs.trade_offs),
        "curves": (any(run.curve for cell in group.rows for run in cell.runs), plots.training_curves),
        "kernel_size": (len(plots.kernels(group)) > 1, plots.kernel_curve),
        "leave_one_out": (bool(plots.toggled(group, "without_")), lambda group: plots.toggles(group, "without_")),
        "one_at_a_time": (bool(plots.toggled(group, "with_")), lambda group: plots.toggles(group, "with_")),
    }
    found = {name: draw for name, (there, draw) in draws.items() if there}
    if ranks is not None:
        found["ranking"] = lambda group: plots.rank_agreement(group, ranks)
    return found


def suffixes(groups: Sequence[Group]) -> list[str]:
    """Return what tells the files of each group apart: nothing for the only group, else its names."""
    if len(groups) == 1:
        return [""]
    names: list[str] = []
    for group in groups:
        name = f"-{group.study}-{group.regime}-{group.data}"
        if len(name) > 100 or name.casefold() in map(str.casefold, names):
            name = f"{name[:90]}-{len(names)}"
        names.append(name)
    return names
