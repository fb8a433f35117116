"""`report.json`: everything the report holds, for other programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from roadmap.files import finite_or_null
from roadmap.report.analyse.cells import Cell, Group
from roadmap.report.analyse.collect import Collected
from roadmap.report.analyse.ranking import ranking
from roadmap.report.write.columns import numbers
from roadmap.report.write.csv_files import OF_GROUP, TUNING, cell_paths, line
from roadmap.runs.search import Problem
from roadmap.text import clean

SCHEMA = 1
OF_A_RUN = ("seed", "top1", "commit", "code", "hardware")


def to_json(groups: Sequence[Group], collected: Collected, findings: Sequence[str]) -> bytes:
    """Return the report as JSON; a number that is not known is null."""
    report = {
        "schema": SCHEMA,
        "quantities": {key: {"name": n.name, "unit": n.unit, "about": n.about} for key, n in numbers().items()},
        "findings": list(findings),
        "suspect": _problems(collected.suspect),
        "allowed": _problems(collected.allowed),
        "rounding": _problems(collected.rounding),
        "unfinished": _problems(collected.unfinished),
        "foreign_runs": collected.foreign,
        "groups": [_group(group) for group in groups],
    }
    return (json.dumps(finite_or_null(_safe(report)), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _problems(problems: Sequence[Problem]) -> list[dict[str, str]]:
    return [{"path": problem.path, "reason": problem.reason} for problem in problems]


def _group(group: Group) -> dict[str, Any]:
    ranks = ranking(group)
    return {
        "study": group.study,
        "regime": group.regime,
        "data": group.data,
        "caution": group.caution,
        "notes": group.notes,
        "missing": group.missing,
        "attribution": asdict(group.attribution) if group.attribution else None,
        "ranking": {"paper": ranks.table, **asdict(ranks.found)} if ranks else None,
        "cells": [_cell(group, cell) for cell in group.cells],
        "holdout_cells": [_cell(group, cell) for cell in group.holdouts],
        "tuning": [line(group, row, TUNING) for row in group.tuning.rows] if group.tuning else None,
    }


def _cell(group: Group, cell: Cell) -> dict[str, Any]:
    return {
        **line(group, cell, OF_GROUP | cell_paths()),
        "only_this": cell.gain.only_this if cell.gain else None,
        "only_parent": cell.gain.only_parent if cell.gain else None,
        "runs": [{name: getattr(run, name) for name in OF_A_RUN} for run in cell.runs],
    }


def _safe(value: Any) -> Any:
    """Return the value with every text made safe to show."""
    if isinstance(value, dict):
        return {key: _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    return clean(value, 5_000) if isinstance(value, str) else value
