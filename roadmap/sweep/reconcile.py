"""Restart what died without being asked to. It may run from cron."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from roadmap.errors import ConfigError, NoProgress, StoppedEarly
from roadmap.runs.permissions import refuse_unsafe
from roadmap.sweep import slurm_queue
from roadmap.sweep.cell_states import CellState, cell_states, slurm_jobs
from roadmap.sweep.launchers.slurm import Config, recover_pending, submit_tasks
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

    Cells that a person cancelled, or that failed by their own word, wait for `make roadmap`, and so do the dead of this
    machine, which are named.

    Raises ConfigError, DataError.
    """
    result = Reconciliation()
    study.cells()  # raises where nothing was submitted
    with study.lock():
        recover_pending(study)
        jobs = study.jobs()
        states, answer = cell_states(study)
        if not answer.answered:
            result.error = f"Slurm does not answer ({answer.error}): nothing is restarted"
            return result
        groups: dict[str, list[CellState]] = {}  # by the submission that they were part of
        for state in states:
            rows = [row for row in jobs.get(state.key, []) if row.get("job")]
            if not rows:
                continue
            if rows[-1]["kind"] == "local":
                if state.killed:
                    hint = f"to continue: make roadmap STUDY={study.name} CLUSTER=local"
                    result.left[state.key] = f"{state.reason}; {hint}"
            elif state.state in ("failed", "stopped"):
                slurm = slurm_jobs(rows)
                if reason := reason_to_leave(state, slurm, answer.state(str(slurm[-1]["job"]))):
                    result.left[state.key] = reason
                else:
                    groups.setdefault(str(slurm[-1]["name"]), []).append(state)
        for group in groups.values():
            resubmit(study, [(state, slurm_jobs(jobs[state.key])[-1]) for state in group])
            result.restarted += [state.key for state in group]
    return result


def reason_to_leave(state: CellState, rows: Sequence[Row], job: str | None) -> str:
    """Return why a cell is not restarted; nothing where it is."""
    if state.cancelled or (job or "").startswith("CANCELLED"):
        return "cancelled; make roadmap continues it"
    if state.exit_code == NoProgress.code:
        return state.reason or "it made no progress"
    if state.state == "failed" and not state.killed:
        return f"{state.reason}; fix it, then make roadmap"
    if state.state == "stopped" and state.exit_code != StoppedEarly.code:
        return state.reason
    if state.state == "stopped" and re.search("SIGTERM|SIGINT", state.reason) and job == slurm_queue.GONE:
        return f"{state.reason}, for an unknown reason; make roadmap continues it"
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
        raise ConfigError(f"{code}: the code of these cells is gone; make roadmap starts them with today's")
    refuse_unsafe(code, study.path.parent, "RUNS")
    tasks = [Task(state.key, row["line"], state.global_step) for state, row in group]
    submit_tasks(study, tasks, code, Config(**first["cluster"]), first["on_gpu"], by="reconcile")
