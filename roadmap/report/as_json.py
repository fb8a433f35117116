"""`report.json`: everything the report says, for other programs. A function of the groups and of what was collected."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from roadmap.report.cells import Group
from roadmap.report.find import Finding
from roadmap.report.quantities import QUANTITIES
from roadmap.report.ranking import ranking
from roadmap.report.runs import Collected
from roadmap.report.tables import values
from roadmap.report.text import clean

SCHEMA = 1


def to_json(groups: Sequence[Group], collected: Collected, findings: Sequence[str]) -> bytes:
    """Return the report as JSON; a number that is not known is null."""
    report = {
        "schema": SCHEMA,
        "quantities": {key: {"name": q.name, "unit": q.unit, "about": q.about} for key, q in QUANTITIES.items()},
        "findings": list(findings),
        "suspect": _found(collected.suspect),
        "allowed": _found(collected.allowed),
        "unfinished": _found(collected.unfinished),
        "foreign_runs": collected.foreign,
        "groups": [_group(group) for group in groups],
    }
    return (json.dumps(_plain(report), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _found(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [{"path": finding.path, "reason": finding.reason} for finding in findings]


def _group(group: Group) -> dict[str, Any]:
    ranks = ranking(group)
    return {
        "study": group.study,
        "regime": group.regime,
        "data": group.data,
        "caution": group.caution,
        "notes": group.notes,
        "missing": group.missing,
        "ranking": {"paper": ranks.table, **asdict(ranks.found)} if ranks else None,
        "cells": [
            values(group, cell)
            | {
                "only_this": cell.gain.only_this if cell.gain else None,
                "only_parent": cell.gain.only_parent if cell.gain else None,
                "runs": [
                    {
                        "seed": run.seed,
                        "top1": run.top1,
                        "commit": run.commit,
                        "code": run.code,
                        "hardware": run.hardware,
                    }
                    for run in cell.runs
                ],
            }
            for cell in group.cells
        ],
    }


def _plain(value: Any) -> Any:
    """Return the value with every text made safe to show and every number that is not finite as null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return clean(value, 5_000)
    return None if isinstance(value, float) and not math.isfinite(value) else value
