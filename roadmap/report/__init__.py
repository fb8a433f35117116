"""The report: a function of run directories. `python -m roadmap.report RUNS --out DIR`, or in a notebook:

    collected = collect(["runs"])
    groups = aggregate(collected.runs)
    table = frame(groups)
    figure = roadmap_chart(groups[0])

Imports neither torch nor Hydra.
"""

from roadmap.report.analyse.aggregate import aggregate
from roadmap.report.analyse.cells import Cell, Gain, Group
from roadmap.report.analyse.collect import Collected, collect
from roadmap.report.analyse.findings import findings
from roadmap.report.draw.chart_rows import charts
from roadmap.report.draw.gallery import Drawing, gallery
from roadmap.report.draw.roadmap_figure import roadmap_chart
from roadmap.report.draw.step_gains import step_gains
from roadmap.report.draw.trade_offs import trade_offs
from roadmap.report.read.run import Run
from roadmap.report.write.csv_files import frame
from roadmap.runs.search import Problem

__all__ = [
    "Cell",
    "Collected",
    "Drawing",
    "Gain",
    "Group",
    "Problem",
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
