"""Restart what died without being asked to, and cancel what is queued or at work. Both may run from cron."""

import os
import re
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from roadmap.errors import ConfigError, NoProgress, StoppedEarly
from roadmap.runs.permissions import refuse_unsafe
from roadmap.sweep import queue
from roadmap.sweep.cell_states import LOCAL, CellState, cell_states, job_state, slurm_jobs
from roadmap.sweep.launchers.slurm import Config, recover_pending, report_name, submit_tasks
from roadmap.sweep.snapshot import FOLDER
from roadmap.sweep.study_dir import Row, StudyDir
from roadmap.sweep.submit import Task

MAX_RESTARTS = 3  # of a cell that makes no step of progress


@dataclass
class Reconciliation:
    """What was restarted, by key, and why other cells were left."""

    restarted: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    error: str = ""

    def __str__(self) -> str:
        lines = [f"{len(self.restarted)} restarted" + (f": {', '.join(self.restarted)}" if self.restarted else "")]
        lines += [self.error] if self.error else []
        return "\n".join([*lines, *(f"  {key}: left, {reason}" for key, reason in self.left.items())])


def reconcile(study: StudyDir) -> Reconciliation:
    """Submit the cells again that were killed or stopped by Slurm, each with the code and the words that it had.

    Cells that a person cancelled, or that failed by their own word, wait for `make roadmap`.

    Raises ConfigError, DataError.
    """
    result = Reconciliation()
    study.cells()  # raises where nothing was submitted
    with study.lock():
        recover_pending(study)
        jobs = {key: slurm_jobs(rows) for key, rows in study.jobs().items()}
        states, answer = cell_states(study)
        if not answer.answered:
            result.error = f"Slurm gives no answer ({answer.error}): nothing is restarted"
            return result
        groups: dict[str, list[CellState]] = {}  # by the submission that they were part of
        for state in states:
            rows = jobs.get(state.key)
            if state.state not in ("failed", "stopped") or not rows:
                continue
            if reason := reason_to_leave(state, rows, answer.state(str(rows[-1]["job"]))):
                result.left[state.key] = reason
            else:
                groups.setdefault(str(rows[-1]["name"]), []).append(state)
        for group in groups.values():
            resubmit(study, [(state, jobs[state.key][-1]) for state in group])
            result.restarted += [state.key for state in group]
    return result


def reason_to_leave(state: CellState, rows: Sequence[Row], job: str | None) -> str:
    """Return why a cell is not restarted; nothing where it is."""
    if state.cancelled or (job or "").startswith("CANCELLED"):
        return "cancelled; make roadmap goes on"
    if state.exit_code == NoProgress.code:
        return state.reason or "it made no progress"
    if state.state == "failed" and not state.killed:
        return f"{state.reason}; mend it, then make roadmap"
    if state.state == "stopped" and state.exit_code != StoppedEarly.code:
        return state.reason
    if state.state == "stopped" and re.search("SIGTERM|SIGINT", state.reason) and job == queue.GONE:
        return f"{state.reason}, nobody knows by whom; make roadmap goes on"
    in_vain = 0
    for row in reversed(rows):
        if row.get("by") != "reconcile" or row.get("step") != state.global_step:
            break
        in_vain += 1
    if in_vain >= MAX_RESTARTS:
        return f"{in_vain} restarts without progress ({state.reason}); make roadmap tries again"
    return ""


def resubmit(study: StudyDir, group: Sequence[tuple[CellState, Row]]) -> None:
    """Submit cells of one earlier submission again, as it was. Raises ConfigError where its code is gone."""
    first = group[0][1]
    code = study.notes / FOLDER / first["snapshot"]
    if not code.is_dir():
        raise ConfigError(
            f"{code}: is gone, so the code of these cells is; make roadmap starts them with the code of now"
        )
    refuse_unsafe(code, study.path.parent, "RUNS")
    tasks = [Task(state.key, row["line"], state.global_step) for state, row in group]
    submit_tasks(study, tasks, code, Config(**first["cluster"]), first["on_gpu"], by="reconcile")


def cancel(study: StudyDir) -> int:
    """Cancel the cells that are queued or at work, which save themselves; return how many. Raises ConfigError."""
    study.cells()  # raises where nothing was submitted
    with study.lock():
        recover_pending(study)
        jobs = study.jobs()
        states, answer = cell_states(study)
        if not answer.answered:
            raise ConfigError(f"{study.name}: Slurm gives no answer ({answer.error}): nothing is cancelled")
        active = [state.key for state in states if state.state in ("queued", "running")]
        submitted = [[row for row in jobs.get(key, []) if row.get("job")] for key in active]
        last = [rows[-1] for rows in submitted if rows]
        queue.scancel([str(row["job"]) for row in last if row["kind"] == "slurm"])
        reports = {report_name(str(row["name"])) for rows in jobs.values() for row in slurm_jobs(rows)}
        queue.scancel([job for job, state in queue.query(reports).states.items() if state in queue.PENDING])
        mine = [row for row in last if row["kind"] == "local" and row["host"] == socket.gethostname()]
        for pid in {int(row["pid"]) for row in mine if job_state(row, answer) == LOCAL}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        study.append_jobs({"cell": key, "kind": "cancelled"} for key in active)
    return len(active)
