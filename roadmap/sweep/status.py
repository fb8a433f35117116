"""How a study stands: `status.json` first, then the queue; what neither says is unknown.

Reads what was written at submission and what the runs write; composes nothing and imports no torch.
"""

import json
import os
import re
import socket
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roadmap.files import read_json
from roadmap.runs.progress import clock
from roadmap.runs.schema import METRICS, STATUS, SUMMARY
from roadmap.sweep import queue
from roadmap.sweep.folder import Record, StudyDir

STATES = ("queued", "running", "stopped", "done", "failed", "unknown", "planned")
TAIL = 2**16, 2**22  # bytes read at first and at most from a ledger's end: an epoch of ImageNet is 0.3 MB


@dataclass
class CellState:
    """One cell as it stands. Times in seconds, accuracies in percent."""

    key: str
    step: str
    variant: str | None
    seed: int
    state: str
    killed: bool = False  # it ended without a word of its own: a kill, memory, a lost node
    cancelled: bool = False
    epoch: int | None = None
    epochs: int | None = None
    global_step: int | None = None
    top1: float | None = None
    images_per_s: float | None = None
    left_s: float | None = None
    total_s: float | None = None  # what the whole run takes, where it can be told
    restarts: int = 0
    exit_code: int | None = None
    reason: str = ""
    job: str | None = None
    log: str | None = None
    hardware: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None


def look(study: StudyDir) -> tuple[list[CellState], queue.Queue]:
    """Return every cell of a study as it stands now, and what the queue said. Raises DataError where nothing was submitted."""
    cells, jobs = study.cells(), study.jobs()
    slurm = [row for rows in jobs.values() for row in rows if row.get("kind") == "slurm"]
    answer = queue.ask(
        (str(row["name"]) for row in slurm), (rows[-1]["job"] for rows in map(job_rows, jobs.values()) if rows)
    )
    return [cell_state(study, cell, jobs.get(cell["key"], []), answer) for cell in cells], answer


def job_rows(rows: Sequence[Record]) -> list[Record]:
    """Return the Slurm jobs among what was noted of a cell."""
    return [row for row in rows if row.get("kind") == "slurm"]


def cell_state(study: StudyDir, cell: Record, rows: Sequence[Record], answer: queue.Queue) -> CellState:
    """Put together what is known of one cell."""
    run = study.path / cell["key"]
    try:
        status = read_json(run / STATUS)
    except (OSError, ValueError):
        status = {}
    submitted = [row for row in rows if row.get("job")]
    last = submitted[-1] if submitted else None
    ended = rows[-1] if rows and rows[-1].get("kind") == "ended" else None  # by this machine's scheduler
    state, reason, killed = judge(status, last, queue.GONE if ended else seen(last, answer))
    if ended and ended.get("exit_code") and not status:
        state, reason = "failed", f"exit code {ended.get('exit_code')} before the run began; see its log"
    found = CellState(cell["key"], cell["step"], cell["variant"], cell["seed"], state, killed, reason=reason)
    found.cancelled = bool(rows) and rows[-1].get("kind") == "cancelled"
    found.epochs = cell["config"]["recipe"]["epochs"]
    if last is not None:
        found.job, found.log = str(last["job"]), str(study.notes / last["log"])
        found.git_commit, found.git_dirty = last.get("git_commit"), last.get("git_dirty")
    if status:
        _progress(found, run, status)
    return found


def seen(last: Record | None, answer: queue.Queue) -> str | None:
    """Return the state of a cell's last job: Slurm's word, GONE, LOCAL for one of this machine's scheduler, None for no answer."""
    if last is None:
        return None
    if last["kind"] == "local":
        if last["host"] != socket.gethostname():
            return None
        return "LOCAL" if alive(last["pid"], last.get("born")) else queue.GONE
    return answer.state(str(last["job"]))


def judge(status: Record, last: Record | None, job: str | None) -> tuple[str, str, bool]:
    """Return a cell's state, the reason for it, and whether it was killed, from its own word and its job's state."""
    own, reason = status.get("state"), str(status.get("reason") or "")
    if own == "done":
        return "done", "", False
    if queue.waits(job):
        return "queued", reason, False
    if queue.goes(job):
        return "running", "" if own == "running" else reason, False
    lives = process_alive(status) if own in ("running", "begun") else False
    if job == "LOCAL":
        return "running" if lives else "queued", reason, False
    if own in ("stopped", "failed"):
        return str(own), reason, False
    if lives:
        return "running", "", False
    if last is None:
        return _without_job(own, lives, status)
    if job is None:
        return "unknown", _no_answer(last), False
    return _ended(own, last, job)


def _without_job(own: Any, lives: bool | None, status: Record) -> tuple[str, str, bool]:
    """Judge a cell that this study never submitted: somebody may run it by hand."""
    if own is None:
        return "planned", "", False
    if lives is None:
        return "unknown", f"was begun on {status.get('host')}, not by this study; ask there", False
    return "failed", "killed: its process is gone", True


def _ended(own: Any, last: Record, job: str) -> tuple[str, str, bool]:
    """Judge a cell whose job has ended without the run having said how."""
    if own is None and last["kind"] == "local":
        return "planned", "", False
    if own is None and job.startswith("CANCELLED"):
        return "stopped", "cancelled before it began", False
    how = "" if job == queue.GONE else f" ({job})"
    if own is None:
        return "failed", f"its job ended before the run began{how}; see its log", True
    return "failed", f"ended without a word{how}: killed, out of memory, or its node was lost", True


def _no_answer(last: Record) -> str:
    return f"it is on {last['host']}, ask there" if last["kind"] == "local" else "Slurm does not answer"


def process_alive(status: Record) -> bool | None:
    """Tell whether the process that writes a run still lives; None on another host."""
    if status.get("host") != socket.gethostname():
        return None
    return alive(status.get("pid"), None)


def alive(pid: Any, born: Any) -> bool:
    """Tell whether a process of this host lives, and is the one that began at `born`."""
    now = birth(pid)
    return now is not None and (born is None or now == born)


def birth(pid: Any) -> int | None:
    """Return when a process of this host began, in the kernel's ticks; None where there is none."""
    try:
        text = Path("/proc", str(int(pid)), "stat").read_text()
    except (OSError, ValueError, TypeError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _progress(found: CellState, run: Path, status: Record) -> None:
    found.epoch, found.global_step = status.get("epoch"), status.get("step")
    found.restarts = max(int(status.get("starts") or 1) - 1, 0)
    found.exit_code, found.hardware = status.get("exit_code"), status.get("hardware")
    if found.state == "done":
        try:
            summary = read_json(run / SUMMARY)
        except (OSError, ValueError):
            summary = {}
        found.top1, found.images_per_s = summary.get("top1"), summary.get("train_images_per_s")
        found.total_s, found.left_s = summary.get("time_s"), 0.0
        return
    train, val = last_rows(run / METRICS)
    found.top1, found.images_per_s = val.get("val/top1"), train.get("train/images_per_s")
    step, time_s = train.get("global_step"), train.get("time_s")
    total = (found.epochs or 0) * int(status.get("steps_per_epoch") or 0)
    if step and time_s and total:
        found.global_step = max(step, found.global_step or 0)
        found.epoch = max(val.get("epoch") or 0, found.epoch or 0)
        found.total_s = time_s * total / step
        found.left_s = found.total_s - time_s


def last_rows(path: Path) -> tuple[Record, Record]:
    """Return the last training row and the last evaluation of a ledger, reading no more of its end than is needed."""
    size, most = TAIL
    while True:
        try:
            with open(path, "rb") as ledger:
                end = ledger.seek(0, os.SEEK_END)
                ledger.seek(max(0, end - size))
                lines = ledger.read().splitlines()
        except OSError:
            return {}, {}
        found: dict[str, Record] = {}
        for line in reversed(lines):
            match = re.search(rb'"kind": "(train|val)"', line)
            if match and (kind := match[1].decode()) not in found:
                try:
                    found[kind] = json.loads(line)
                except ValueError:
                    continue
            if len(found) == 2:
                break
        if len(found) == 2 or size >= min(end, most):
            return found.get("train", {}), found.get("val", {})
        size *= 8


def as_json(study: StudyDir, cells: Sequence[CellState], answer: queue.Queue) -> dict[str, Any]:
    """Return all that is known, for scripts."""
    return {
        "study": study.name,
        "path": str(study.path),
        "queue_answers": answer.answered,
        "totals": totals(cells),
        "left_s": study_left(cells),
        "cells": [asdict(cell) for cell in cells],
    }


def totals(cells: Iterable[CellState]) -> dict[str, int]:
    """Return how many cells are in each state."""
    counts = Counter(cell.state for cell in cells)
    return {state: counts[state] for state in STATES if counts[state]}


def study_left(cells: Sequence[CellState]) -> float | None:
    """Return the seconds that a study will still take at the pace of now, None where nothing runs or a cell's length is not known.

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


def as_text(study: StudyDir, cells: Sequence[CellState], answer: queue.Queue) -> str:
    """Return the table of cells, and the totals below it."""
    head = ["cell", "state", "epoch", "top-1", "images/s", "left", "restarts", "log or reason"]
    lines = [head]
    for cell in cells:
        lines.append([
            cell.key,
            cell.state,
            "" if cell.epoch is None else f"{cell.epoch}/{cell.epochs}",
            "" if cell.top1 is None else f"{cell.top1:.2f}",
            "" if cell.images_per_s is None else f"{cell.images_per_s:,.0f}",
            clock(cell.left_s) if cell.left_s else "",
            str(cell.restarts or ""),
            " - ".join(filter(None, [_short(study, cell.log) if cell.state not in ("done", "planned") else "", cell.reason])),
        ])  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    table = "\n".join(
        "  ".join([*(text.ljust(w) for text, w in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )
    count = ", ".join(f"{number} {state}" for state, number in totals(cells).items())
    left = study_left(cells)
    parts = [
        table,
        f"{study.name}: {len(cells)} cells: {count}" + (f"; about {clock(left)} left at this pace" if left else ""),
    ]
    if not answer.answered:
        parts.append(f"The queue gives no answer ({answer.trouble}); what it alone could tell is unknown.")
    return "\n".join(parts)


def _short(study: StudyDir, log: str | None) -> str:
    return os.path.relpath(log) if log and Path(log).is_relative_to(Path.cwd()) else log or ""
