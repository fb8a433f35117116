"""The report: a function of run directories. `python -m roadmap.report RUNS --out DIR`; the notebook uses these names.

    collected = collect(["runs"])
    groups = aggregate(collected.runs)
    table = frame(groups)
    figures = {name: roadmap_chart(together) for name, together in charts(groups).items()}

Imports neither torch nor Hydra.
"""

from roadmap.report.cells import Cell, Gain, Group
from roadmap.report.figures import roadmap_chart
from roadmap.report.find import Finding
from roadmap.report.gains import aggregate
from roadmap.report.lines import charts
from roadmap.report.record import Run
from roadmap.report.runs import Collected, collect
from roadmap.report.tables import frame

__all__ = ["Cell", "Collected", "Finding", "Gain", "Group", "Run", "aggregate", "charts", "collect", "frame", "roadmap_chart"]
