"""The state of each cell of a study: its own `status.json` first, then the queue; what neither says is unknown.

Reads what was written at submission and what the runs write; composes nothing and imports no torch.
"""

import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any, NamedTuple

from roadmap.errors import ConfigError, StoppedEarly
from roadmap.files import open_regular
from roadmap.runs.checkpoint_files import checkpoint_sizes, older_files
from roadmap.runs.metrics import last_rows
from roadmap.runs.process import is_alive, lives
from roadmap.runs.schema import METRICS, STATUS, SUMMARY, Status, Summary, read_or_empty
from roadmap.sweep import slurm_queue
from roadmap.sweep.study_dir import JOBS, Row, StudyDir
from roadmap.text import utc

STATES = ("queued", "running", "stopped", "done", "failed", "unknown", "planned")
LOCAL = "LOCAL"  # the job's state where this machine's own scheduler has it


class State(NamedTuple):
    """What a cell does, why, and whether it ended without a word of its own: a kill, memory, a lost node."""

    name: str
    reason: str = ""
    killed: bool = False


@dataclass
class CellState:
    """One cell as it stands. Lengths of time in seconds, dates in UTC, accuracies in percent."""

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
    used_s: float | None = None  # of training so far, what restarts did again left out
    lost_s: float = 0.0  # of training that restarts did again, at least
    devices: float | None = None  # that the run has, a share of one where several runs have it together
    checkpoints_gb: float | None = None  # as measured
    surplus_gb: float | None = None  # of them those that `prune` removes
    restarts: int = 0
    exit_code: int | None = None
    reason: str = ""
    path: str = ""  # of the run
    job: str | None = None
    slurm_state: str | None = None
    slurm_reason: str | None = None
    never_starts: bool = False  # as Slurm has it, the job waits for what cannot be
    node: str | None = None
    submitted: str | None = None
    starts: str | None = None  # what Slurm expects of a job that waits
    started: str | None = None
    updated: str | None = None
    log: str | None = None
    wandb_id: str | None = None
    hardware: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None


def cell_states(study: StudyDir) -> tuple[list[CellState], slurm_queue.Queue]:
    """Return every cell of a study, and what the queue answered. Raises DataError where nothing was submitted."""
    cells, jobs = study.cells(), study.jobs()
    runs = {cell["key"]: study.path / cell["key"] / STATUS for cell in cells}
    done = {key for key, file in runs.items() if read_or_empty(Status, file).state == "done"}  # whatever Slurm says
    submitted = [rows for key in jobs.keys() - done if (rows := slurm_jobs(jobs[key]))]
    names = [str(row["name"]) for rows in submitted for row in rows]
    answer = slurm_queue.query(names, [str(rows[-1]["job"]) for rows in submitted])
    states = {cell["key"]: cell_state(study, cell, jobs.get(cell["key"], []), answer) for cell in cells}
    if pending := study.pending():
        add_pending(states, pending, slurm_queue.query([pending["name"]]))
    return list(states.values()), answer


def add_pending(states: dict[str, CellState], pending: Row, answer: slurm_queue.Queue) -> None:
    """Note of each cell whose submission got no answer what Slurm has of it."""
    found = {row["cell"]: job for row, job in pending_jobs(pending, answer)}
    for row in pending["rows"]:
        cell, job = states.get(row["cell"]), found.get(row["cell"])
        if cell is None or cell.state in ("done", "queued", "running"):
            continue
        if job in answer.in_state(*slurm_queue.ACTIVE):
            cell.state, cell.job, cell.reason = "queued", job, "its submission got no answer; make roadmap completes it"
            add_job(cell, answer.jobs[str(job)])
        elif answer.answered:
            cell.reason = "its submission got no answer, and Slurm has no such job now; make roadmap tries again"
        else:
            cell.state, cell.reason = "unknown", "its submission got no answer"


def pending_jobs(pending: Row, answer: slurm_queue.Queue) -> Iterator[tuple[Row, str]]:
    """Yield the cells of a submission that was not recorded, each with the job that Slurm has of it."""
    by_index = {int(job.partition("_")[2] or 0): job for job in answer.jobs}
    yield from ((row, by_index[index]) for index, row in enumerate(pending["rows"]) if index in by_index)


def known_states(study: StudyDir) -> list[CellState]:
    """Return every cell's state. Raises ConfigError where Slurm does not answer: what looks stopped may be queued."""
    states, answer = cell_states(study)
    if not answer.answered:
        hint = "try again"
        if shutil.which("squeue") is None:
            hint = f"in a copy, in which none of its jobs trains, move {study.notes / JOBS} away"
        unknown = "so it is not known what is queued"
        raise ConfigError(f"{study.name}: Slurm does not answer ({answer.error}), {unknown}; {hint}")
    return states


def slurm_jobs(rows: Sequence[Row]) -> list[Row]:
    """Return the Slurm jobs among what was recorded of a cell."""
    return [row for row in rows if row.get("kind") == "slurm"]


def is_closed(path: Path) -> bool:
    """Tell whether a file, or a folder on its path, is closed to this user."""
    try:
        open_regular(path).close()
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def cell_state(study: StudyDir, cell: dict[str, Any], rows: Sequence[Row], answer: slurm_queue.Queue) -> CellState:
    """Return the state of one cell from its record in the study, its jobs, and its run directory."""
    run = study.path / cell["key"]
    status = read_or_empty(Status, run / STATUS)
    last = next((row for row in reversed(rows) if row.get("job")), None)
    newest = rows[-1] if rows else {}
    ended = newest.get("kind") == "ended"  # so this machine's scheduler wrote
    cancelled = newest.get("kind") == "cancelled"
    job = slurm_queue.GONE if ended else job_state(last, answer)
    state = classify(status, last, "CANCELLED" if cancelled and job == slurm_queue.GONE else job)
    if ended and newest.get("exit_code") in (StoppedEarly.code, 128 + SIGTERM) and status.state is None:
        state = State("stopped", "before its run started")
    elif ended and newest.get("exit_code") and status.state is None:
        state = State("failed", f"exit code {newest['exit_code']} before the run started")
    began = last is None or status.state is not None or (study.notes / last["log"]).exists()
    if state.killed and job == slurm_queue.GONE and not began:
        state = State("stopped", "its job left the queue before it began: cancelled, as a rule; make roadmap starts it")
    if state.name in ("planned", "stopped", "failed") and is_closed(run / STATUS):
        state = State("unknown", f"its {STATUS} belongs to another user and cannot be read")
    if job == slurm_queue.GONE and newest.get("kind") == "local" and state.name in ("planned", "stopped", "failed"):
        state = State(state.name, "; ".join(filter(None, ["its scheduler was killed", state.reason])), killed=True)
    found = CellState(cell["key"], cell["step"], cell["variant"], cell["seed"], state.name, state.killed)
    found.reason, found.cancelled = state.reason, cancelled
    found.epochs, found.path = cell["config"]["recipe"]["epochs"], str(run)
    if status.state is not None:
        add_progress(found, run, status)
    if last is not None:
        log = study.notes / last["log"]
        found.job, found.log, found.submitted = str(last["job"]), str(log) if log.exists() else None, last.get("time")
        found.git_commit, found.git_dirty = last.get("git_commit"), last.get("git_dirty")
        if known := answer.job(found.job):
            add_job(found, known)
    return found


def add_job(cell: CellState, job: slurm_queue.Job) -> None:
    """Note what Slurm says of a cell's job, and why one that waits does."""
    cell.slurm_state, cell.slurm_reason, cell.node = job.state, job.reason or None, job.node or cell.node
    began = utc(job.started) if job.started is not None else None
    if job.state in slurm_queue.PENDING:
        cell.starts, cell.never_starts = began, bool(job.never_starts)
        cell.reason = "; ".join(filter(None, [job.waits_for and f"Slurm: {job.waits_for}", cell.reason]))
    else:
        cell.started = cell.started or began


def job_state(last: Row | None, answer: slurm_queue.Queue) -> str | None:
    """Return the state of a cell's last job: Slurm's word, GONE, LOCAL (our own scheduler), None for no answer."""
    if last is None:
        return None
    if last["kind"] != "local":
        return answer.state(str(last["job"]))
    if last["host"] != socket.gethostname():
        return None
    return next((state for state, process in processes(last).items() if is_alive(*process)), slurm_queue.GONE)


def processes(row: Row) -> dict[str, tuple[int, int | None]]:
    """Return the processes of a job of this machine, by the state that each alone means: scheduler, then run."""
    found = {LOCAL: (row["pid"], row.get("born"))}
    return found | ({"RUNNING": (row["run_pid"], row.get("run_born"))} if "run_pid" in row else {})


def classify(status: Status, last: Row | None, job: str | None) -> State:
    """Return a cell's state from its own status, its last job and that job's state."""
    own, reason = status.state, status.reason or ""
    if own == "done":
        return State("done")
    if job in slurm_queue.PENDING:
        return State("queued", reason)
    if job in slurm_queue.RUNNING:
        return State("running", "" if own == "running" else reason)
    alive = lives(status.host, status.pid, status.pid_start) if own in ("running", "begun") else False
    if job == LOCAL:
        if last is not None and last.get("waits"):
            return State("queued", "prepares itself while others train")
        return State("running" if alive else "queued", reason)
    if own in ("stopped", "failed"):
        return State(own, reason)
    if alive:
        return State("running")
    if last is None:
        return _never_submitted(status, alive)
    if job is None:
        elsewhere = f"it is on {last['host']}; check there (make cancel GONE={last['host']} if that machine is gone)"
        return State("unknown", elsewhere if last["kind"] == "local" else "Slurm does not answer")
    return _job_ended(own, last, job)


def _never_submitted(status: Status, alive: bool | None) -> State:
    """Return the state of a cell that this study never submitted: somebody may run it by hand."""
    if status.state is None:
        return State("planned")
    if alive is None:
        return State("unknown", f"was started on {status.host}, not by this study; check there")
    return State("failed", "killed: its process is gone", killed=True)


def _job_ended(own: str | None, last: Row, job: str) -> State:
    """Return the state of a cell whose job has ended without the run having said how."""
    if own is None and last["kind"] == "local":
        return State("planned")
    if own is None and job.startswith("CANCELLED"):
        return State("stopped", "cancelled before it started")
    how = "" if job == slurm_queue.GONE else f" ({job})"
    if own is None:
        return State("failed", f"its job ended before the run started{how}", killed=True)
    return State("failed", f"ended without a record{how}: killed, out of memory, or its node was lost", killed=True)


def add_progress(cell: CellState, run: Path, status: Status) -> None:
    """Fill in how far a cell's run is, and how long it will still take."""
    cell.epoch, cell.global_step = status.epoch, status.step
    cell.restarts = (status.starts or 1) - 1
    cell.exit_code, cell.hardware, cell.node = status.exit_code, status.hardware, status.host
    cell.started, cell.updated, cell.wandb_id = status.started, status.updated, status.wandb_id
    cell.lost_s = status.lost_s or 0.0
    cell.devices = status.world_size and status.world_size / (status.group_size or 1)
    cell.checkpoints_gb = sum(checkpoint_sizes(run).values()) / 1e9
    if cell.state == "done":
        cell.surplus_gb = sum(older_files(run).values()) / 1e9
        summary = read_or_empty(Summary, run / SUMMARY)
        cell.top1, cell.images_per_s = summary.top1, summary.train_images_per_s
        cell.total_s, cell.used_s, cell.left_s = summary.time_s, summary.time_s, 0.0
        return
    train, val = last_rows(run / METRICS)
    cell.top1, cell.images_per_s = _number(val, "val/top1"), _number(train, "train/images_per_s")
    step, time_s = _number(train, "global_step"), _number(train, "time_s")
    cell.used_s = time_s
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
