"""The report: a function of run directories. `python -m roadmap.report RUNS --out DIR`, or in a notebook:

    collected = collect(["runs"])
    groups = aggregate(collected.runs)
    table = frame(groups)
    figure = roadmap_chart(groups[0])

Imports neither torch nor Hydra.
"""

from roadmap.report.analyse.collect import aggregate as aggregate
from roadmap.report.analyse.collect import collect as collect
from roadmap.report.analyse.findings import findings as findings
from roadmap.report.draw.chart_rows import charts as charts
from roadmap.report.draw.gallery import gallery as gallery
from roadmap.report.draw.roadmap_figure import roadmap_chart as roadmap_chart
from roadmap.report.draw.step_gains import step_gains as step_gains
from roadmap.report.draw.style import NothingToDraw as NothingToDraw
from roadmap.report.draw.trade_offs import trade_offs as trade_offs
from roadmap.report.write.csv_files import frame as frame
