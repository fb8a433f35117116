"""How a study stands, as a table and as JSON. Composes nothing and imports no torch."""

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roadmap.files import read_json
from roadmap.runs.progress import clock, hours_text, size_text
from roadmap.sweep.cell_states import STATES, CellState
from roadmap.sweep.slurm_queue import Queue
from roadmap.sweep.study_dir import TUNING, StudyDir
from roadmap.text import plain_table

COLUMNS = ("cell", "state", "epoch", "top-1", "images/s", "left", "restarts", "log or reason")


def as_json(study: StudyDir, cells: Sequence[CellState], queue: Queue) -> dict[str, Any]:
    """Return all that is known, for scripts."""
    return {
        "study": study.name,
        "path": str(study.path),
        "queue_answers": queue.answered,
        "totals": totals(cells),
        "left_s": study_left(cells),
        "device_hours": device_hours(cells),
        "never_start": sum(cell.never_starts for cell in cells),
        "left_out": study.record().get("left_out", []),
        "phases": phase_line(study, cells) or None,
        "cells": [asdict(cell) for cell in cells],
    }


def as_text(study: StudyDir, cells: Sequence[CellState], queue: Queue) -> str:
    """Return the table of cells, and the totals below it."""
    counts = ", ".join(f"{number} {state}" for state, number in totals(cells).items())
    left = study_left(cells)
    lines = [
        plain_table([COLUMNS, *map(table_row, cells)]),
        f"{study.name}: {len(cells)} cells: {counts}" + (f"; about {clock(left)} left at this pace" if left else ""),
    ]
    lines += filter(None, [phase_line(study, cells), hours_line(cells), disk_line(study, cells)])
    if stuck := sum(cell.never_starts for cell in cells):
        again = "make cancel, then make roadmap with other settings"
        lines.append(f"{stuck} of them can never start as submitted: {again}.")
    if not queue.answered:
        lines.append(f"The queue does not answer ({queue.error}); what only the queue knows is unknown.")
    return "\n".join(lines)


def device_hours(cells: Sequence[CellState]) -> dict[str, float | None]:
    """Return the hours of all devices together that a study has used, that restarts did again (`lost`, at least, and
    not among those used), and that it still needs (`left`); None where no cell's length is known.

    A cell that has not begun is taken to need what the others do, on average.
    """
    known = [cell.total_s * cell.devices for cell in cells if cell.total_s and cell.devices]
    todo = [cell for cell in cells if cell.state != "done"]
    left = [cell.left_s * cell.devices if cell.left_s is not None and cell.devices else None for cell in todo]
    return {
        "used": sum((cell.used_s or 0.0) * (cell.devices or 0) for cell in cells) / 3600,
        "lost": sum(cell.lost_s * (cell.devices or 0) for cell in cells) / 3600,
        "left": sum(statistics.mean(known) if each is None else each for each in left) / 3600 if known else None,
    }


def phase_line(study: StudyDir, cells: Sequence[CellState]) -> str:
    """Return how far the phases of a study of own learning rates are, in one line; nothing for another study."""
    try:
        noted = read_json(study.notes / TUNING)
        rows = [row for row in noted["rows"] if isinstance(row, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    first = {record["key"] for record in study.cells() if record["config"].get("data", {}).get("holdout")}
    phases = [[cell for cell in cells if (cell.key in first) is one] for one in (True, False)]
    done = [sum(cell.state == "done" for cell in phase) for phase in phases]
    have = sum(row.get("rate") is not None for row in rows)
    text = (
        f"phase 1, rates on held-out images: {done[0]} of {len(phases[0])} done; "
        f"phase 2, all training images: {done[1]} of {len(phases[1])} done, of the {have} of {len(rows)} rows "
        "whose rate is known"
    )
    more = any(not row.get("ended") for row in rows) and all(cell.state in ("done", "failed") for cell in phases[0])
    return text + (f"; make roadmap STUDY={study.name} continues with the others" if more else "")


def hours_line(cells: Sequence[CellState]) -> str:
    """Return the hours of a study in words; nothing where nothing has run."""
    hours = device_hours(cells)
    if not hours["used"] and not hours["lost"]:
        return ""
    on_cpu = all((cell.hardware or "CPU").startswith("CPU") for cell in cells)
    used, lost, left = (hours[name] or 0.0 for name in ("used", "lost", "left"))
    parts = [f"{hours_text(used)} used", *([f"{hours_text(lost)} more lost to restarts"] if lost else [])]
    parts += [] if hours["left"] is None else [f"about {hours_text(left)} left"]
    return f"{'CPU' if on_cpu else 'GPU'}-hours: {', '.join(parts)}"


def disk_line(study: StudyDir, cells: Sequence[CellState]) -> str:
    """Return what the checkpoints take on the disk, and what of it finished runs no longer need; nothing for none."""
    taken = sum(cell.checkpoints_gb or 0.0 for cell in cells)
    surplus = sum(cell.surplus_gb or 0.0 for cell in cells)
    more = f"; make prune STUDY={study.name} removes {size_text(surplus)} that finished runs no longer need"
    return f"checkpoints: {size_text(taken)}" + (more if surplus else "") if taken else ""


def table_row(cell: CellState) -> list[str]:
    """Return a cell as text."""
    log = cell.log if cell.log and cell.state not in ("done", "planned") else ""
    if log and Path(log).is_relative_to(Path.cwd()):
        log = os.path.relpath(log)
    return [
        cell.key,
        cell.state,
        "" if cell.epoch is None else f"{cell.epoch}/{cell.epochs}",
        "" if cell.top1 is None else f"{cell.top1:.2f}",
        "" if cell.images_per_s is None else f"{cell.images_per_s:,.0f}",
        clock(cell.left_s) if cell.left_s else "",
        str(cell.restarts or ""),
        " - ".join(filter(None, [log, cell.reason])),
    ]


def totals(cells: Iterable[CellState]) -> dict[str, int]:
    """Return how many cells are in each state."""
    counts = Counter(cell.state for cell in cells)
    return {state: counts[state] for state in STATES if counts[state]}


def study_left(cells: Sequence[CellState]) -> float | None:
    """Return the seconds that a study will take at this pace, None where nothing runs or no cell's length is known.

    A cell that has not begun is taken to last as long as those that can be told, on average.
    """
    running = sum(cell.state == "running" for cell in cells)
    known = [cell.total_s for cell in cells if cell.total_s]
    if not running or not known:
        return None
    todo = [cell for cell in cells if cell.state != "done"]
    work = sum(statistics.mean(known) if cell.left_s is None else cell.left_s for cell in todo)
    longest = max((cell.left_s for cell in todo if cell.state == "running" and cell.left_s is not None), default=0.0)
    return max(work / running, longest)
