"""The state of each cell of a study: its own `status.json` first, then the queue; what neither says is unknown.

Reads what was written at submission and what the runs write; composes nothing and imports no torch.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from roadmap.errors import ConfigError
from roadmap.runs.metrics import last_rows
from roadmap.runs.schema import METRICS, STATUS, SUMMARY, Status, Summary, read_or_empty
from roadmap.sweep import queue
from roadmap.sweep.study_dir import Row, StudyDir

STATES = ("queued", "running", "stopped", "done", "failed", "unknown", "planned")
LOCAL = "LOCAL"  # the job's state where this machine's own scheduler has it


class State(NamedTuple):
    """What a cell does, why, and whether it ended without a word of its own: a kill, memory, a lost node."""

    name: str
    reason: str = ""
    killed: bool = False


@dataclass
class CellState:
    """One cell as it stands. Times in seconds, accuracies in percent."""

    key: str
    step: str
    variant: str | None
    seed: int
    state: str
    killed: bool = False
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


def cell_states(study: StudyDir) -> tuple[list[CellState], queue.Queue]:
    """Return every cell of a study, and what the queue answered. Raises DataError where nothing was submitted."""
    cells, jobs = study.cells(), study.jobs()
    submitted = [rows for rows in map(slurm_jobs, jobs.values()) if rows]
    answer = queue.query(
        (str(row["name"]) for rows in submitted for row in rows), (str(rows[-1]["job"]) for rows in submitted)
    )
    return [cell_state(study, cell, jobs.get(cell["key"], []), answer) for cell in cells], answer


def known_states(study: StudyDir) -> list[CellState]:
    """Return every cell's state. Raises ConfigError where Slurm does not answer: what looks stopped may be queued."""
    states, answer = cell_states(study)
    if not answer.answered:
        raise ConfigError(
            f"{study.name}: Slurm gives no answer ({answer.error}), so nobody knows what is queued; try again"
        )
    return states


def slurm_jobs(rows: Sequence[Row]) -> list[Row]:
    """Return the Slurm jobs among what was recorded of a cell."""
    return [row for row in rows if row.get("kind") == "slurm"]


def cell_state(study: StudyDir, cell: dict[str, Any], rows: Sequence[Row], answer: queue.Queue) -> CellState:
    """Return the state of one cell from its record in the study, its jobs, and its run directory."""
    run = study.path / cell["key"]
    status = read_or_empty(Status, run / STATUS)
    last = next((row for row in reversed(rows) if row.get("job")), None)
    newest = rows[-1] if rows else {}
    ended = newest.get("kind") == "ended"  # so this machine's scheduler wrote
    state = classify(status, last, queue.GONE if ended else job_state(last, answer))
    if ended and newest.get("exit_code") and status.state is None:
        state = State("failed", f"exit code {newest['exit_code']} before the run began; see its log")
    found = CellState(cell["key"], cell["step"], cell["variant"], cell["seed"], state.name, state.killed)
    found.reason, found.cancelled = state.reason, newest.get("kind") == "cancelled"
    found.epochs = cell["config"]["recipe"]["epochs"]
    if last is not None:
        found.job, found.log = str(last["job"]), str(study.notes / last["log"])
        found.git_commit, found.git_dirty = last.get("git_commit"), last.get("git_dirty")
    if status.state is not None:
        add_progress(found, run, status)
    return found


def job_state(last: Row | None, answer: queue.Queue) -> str | None:
    """Return the state of a cell's last job: Slurm's word, GONE, LOCAL (our own scheduler), None for no answer."""
    if last is None:
        return None
    if last["kind"] != "local":
        return answer.state(str(last["job"]))
    if last["host"] != socket.gethostname():
        return None
    began = process_start(last["pid"])
    return LOCAL if began is not None and last.get("born") in (None, began) else queue.GONE


def classify(status: Status, last: Row | None, job: str | None) -> State:
    """Return a cell's state from its own status, its last job and that job's state."""
    own, reason = status.state, status.reason or ""
    if own == "done":
        return State("done")
    if job in queue.PENDING:
        return State("queued", reason)
    if job in queue.RUNNING:
        return State("running", "" if own == "running" else reason)
    lives = process_alive(status) if own in ("running", "begun") else False
    if job == LOCAL:
        return State("running" if lives else "queued", reason)
    if own in ("stopped", "failed"):
        return State(own, reason)
    if lives:
        return State("running")
    if last is None:
        return _never_submitted(status, lives)
    if job is None:
        return State(
            "unknown", f"it is on {last['host']}, ask there" if last["kind"] == "local" else "Slurm does not answer"
        )
    return _job_ended(own, last, job)


def _never_submitted(status: Status, lives: bool | None) -> State:
    """Return the state of a cell that this study never submitted: somebody may run it by hand."""
    if status.state is None:
        return State("planned")
    if lives is None:
        return State("unknown", f"was begun on {status.host}, not by this study; ask there")
    return State("failed", "killed: its process is gone", killed=True)


def _job_ended(own: str | None, last: Row, job: str) -> State:
    """Return the state of a cell whose job has ended without the run having said how."""
    if own is None and last["kind"] == "local":
        return State("planned")
    if own is None and job.startswith("CANCELLED"):
        return State("stopped", "cancelled before it began")
    how = "" if job == queue.GONE else f" ({job})"
    if own is None:
        return State("failed", f"its job ended before the run began{how}; see its log", killed=True)
    return State("failed", f"ended without a word{how}: killed, out of memory, or its node was lost", killed=True)


def process_alive(status: Status) -> bool | None:
    """Tell whether the process that writes a run still lives; None on another host."""
    return process_start(status.pid) is not None if status.host == socket.gethostname() else None


def process_start(pid: Any) -> int | None:
    """Return when a process of this host began, in the kernel's ticks; None where there is none."""
    try:
        text = Path("/proc", str(int(pid)), "stat").read_text()
    except (OSError, ValueError, TypeError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def add_progress(cell: CellState, run: Path, status: Status) -> None:
    """Fill in how far a cell's run is, and how long it will still take."""
    cell.epoch, cell.global_step = status.epoch, status.step
    cell.restarts = max((status.starts or 1) - 1, 0)
    cell.exit_code, cell.hardware = status.exit_code, status.hardware
    if cell.state == "done":
        summary = read_or_empty(Summary, run / SUMMARY)
        cell.top1, cell.images_per_s = summary.top1, summary.train_images_per_s
        cell.total_s, cell.left_s = summary.time_s, 0.0
        return
    train, val = last_rows(run / METRICS)
    cell.top1, cell.images_per_s = _number(val, "val/top1"), _number(train, "train/images_per_s")
    step, time_s = _number(train, "global_step"), _number(train, "time_s")
    total = (cell.epochs or 0) * (status.steps_per_epoch or 0)
    if step and time_s and total:
        cell.global_step = max(int(step), cell.global_step or 0)
        cell.epoch = max(val.get("epoch") or 0, cell.epoch or 0)
        cell.total_s = time_s * total / step
        cell.left_s = cell.total_s - time_s


def _number(row: dict[str, Any], key: str) -> float | None:
    """Return a number of a ledger's row; None where it holds another thing."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
