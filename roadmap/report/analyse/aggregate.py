"""From runs to groups: the report's whole arithmetic."""

from collections.abc import Callable, Iterable, Sequence

from roadmap.report.analyse.attribution import with_attribution
from roadmap.report.analyse.cells import Group, group_runs
from roadmap.report.analyse.gains import with_gains
from roadmap.report.analyse.tuning import at_own_rates
from roadmap.report.read.run import Run

# What else some studies are for: each returns a group, one of all, with that; or as it is.
ANALYSES: tuple[Callable[[Group, Sequence[Group]], Group], ...] = (with_attribution, at_own_rates)


def aggregate(runs: Iterable[Run]) -> list[Group]:
    """Return the groups of some runs, every cell with what it gains over its parent."""
    groups = with_gains(group_runs(runs))
    for add in ANALYSES:
        groups = [add(group, groups) for group in groups]
    return groups
