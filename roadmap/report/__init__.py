"""The report: a function of run directories. `python -m roadmap.report RUNS --out DIR`; the notebook uses these names.

    collected = collect(["runs"])
    groups = aggregate(collected.runs)
    table = frame(groups)
    figures = gallery(groups)  # name -> figure

Imports neither torch nor Hydra.
"""

from roadmap.report.cells import Cell, Gain, Group
from roadmap.report.figures import roadmap_chart
from roadmap.report.find import Finding
from roadmap.report.findings import findings
from roadmap.report.gains import aggregate
from roadmap.report.gallery import gallery
from roadmap.report.lines import charts
from roadmap.report.plots import step_gains
from roadmap.report.record import Run
from roadmap.report.runs import Collected, collect
from roadmap.report.tables import frame
from roadmap.report.tradeoffs import trade_offs

__all__ = [
    "Cell",
    "Collected",
    "Finding",
    "Gain",
    "Group",
    "Run",
    "aggregate",
    "charts",
    "collect",
    "findings",
    "frame",
    "gallery",
    "roadmap_chart",
    "step_gains",
    "trade_offs",
]
