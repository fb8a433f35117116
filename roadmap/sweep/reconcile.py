"""Restart what died without being asked to, and cancel what is queued or at work. Both may run from cron, on any node with Slurm."""

import os
import re
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from roadmap.errors import ConfigError, StoppedEarly
from roadmap.sweep import queue, slurm
from roadmap.sweep.cluster import SlurmConfig
from roadmap.sweep.folder import Record, StudyDir
from roadmap.sweep.status import CellState, job_rows, look
from roadmap.sweep.submit import send, settle

MAX_RESTARTS = 3  # of a cell that makes no step of progress
NO_PROGRESS = 93


@dataclass
class Restarted:
    """What a reconciliation did: cells by key, and why others were left."""

    restarted: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    trouble: str = ""

    def __str__(self) -> str:
        lines = [f"{len(self.restarted)} restarted" + (f": {', '.join(self.restarted)}" if self.restarted else "")]
        lines += [self.trouble] if self.trouble else []
        return "\n".join([*lines, *(f"  {key}: left, {why}" for key, why in self.left.items())])


def reconcile(directory: StudyDir) -> Restarted:
    """Submit the cells again that were killed or stopped by Slurm, each with the code and the words that it had.

    A person's cancelled cells, and those that failed by their own word, wait for `make roadmap`. Raises ConfigError, DataError.
    """
    result = Restarted()
    directory.cells()  # raises where nothing was submitted
    with directory.lock():
        settle(directory)
        jobs = directory.jobs()
        states, answer = look(directory)
        if not answer.answered:
            result.trouble = f"Slurm gives no answer ({answer.trouble}): nothing is restarted"
            return result
        again: dict[str, list[CellState]] = {}
        for state in states:
            rows = job_rows(jobs.get(state.key, []))
            if state.state not in ("failed", "stopped") or not rows:
                continue
            why = reason_to_leave(state, rows, answer.state(str(rows[-1]["job"])))
            if why:
                result.left[state.key] = why
            else:
                again.setdefault(str(rows[-1]["name"]), []).append(state)
        for group in again.values():
            rows = [job_rows(jobs[state.key])[-1] for state in group]
            _send_again(directory, group, rows)
            result.restarted += [state.key for state in group]
    return result


def reason_to_leave(state: CellState, rows: Sequence[Record], job: str | None) -> str:
    """Return why a cell is not restarted; nothing where it is."""
    if state.cancelled or (job or "").startswith("CANCELLED"):
        return "cancelled; make roadmap goes on"
    if state.exit_code == NO_PROGRESS:
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


def _send_again(directory: StudyDir, group: Sequence[CellState], rows: Sequence[Record]) -> None:
    """Submit cells of one earlier submission again, as it was."""
    first = rows[0]
    code = directory.notes / "snapshots" / first["snapshot"]
    if not code.is_dir():
        raise ConfigError(
            f"{code}: is gone, so the code of these cells is; make roadmap starts them with the code of now"
        )
    config = SlurmConfig(**first["cluster"])
    states = {state.key: state for state in group}
    send(
        directory,
        [state.key for state in group],
        [row["line"] for row in rows],
        code,
        config,
        first["on_gpu"],
        states,
        by="reconcile",
    )


def cancel(directory: StudyDir) -> int:
    """Cancel the cells that are queued or at work; return how many. Running ones are saved by their own handler. Raises ConfigError."""
    directory.cells()  # raises where nothing was submitted
    with directory.lock():
        settle(directory)
        jobs = directory.jobs()
        states, answer = look(directory)
        active = [state for state in states if state.state in ("queued", "running")]
        last = {state.key: [row for row in jobs.get(state.key, []) if row.get("job")] for state in active}
        queued = [str(rows[-1]["job"]) for rows in last.values() if rows and rows[-1]["kind"] == "slurm"]
        if not answer.answered:
            raise ConfigError(f"{directory.name}: Slurm gives no answer ({answer.trouble}): nothing is cancelled")
        queue.cancel(queued)
        reports = [job for job, state in queue.ask(_reports(jobs)).states.items() if queue.waits(state)]
        queue.cancel(reports)
        local = {
            rows[-1]["pid"]
            for rows in last.values()
            if rows and rows[-1]["kind"] == "local" and rows[-1]["host"] == socket.gethostname()
        }
        for pid in local:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        directory.note([{"cell": state.key, "kind": "cancelled"} for state in active])
    return len(active)


def _reports(jobs: dict[str, list[Record]]) -> set[str]:
    return {slurm.report_name(str(row["name"])) for rows in jobs.values() for row in job_rows(rows)}
