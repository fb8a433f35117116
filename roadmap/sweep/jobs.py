"""What is done with the jobs of a study once they are there: cancel what is queued or at work, restart what died.

Restarting may run from cron. Slurm's jobs are told through Slurm, the processes of this machine by a signal.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from roadmap.errors import ConfigError, NoProgress, StoppedEarly
from roadmap.files import same_path
from roadmap.runs.permissions import refuse_unsafe
from roadmap.runs.process import is_alive, lives, terminate
from roadmap.runs.schema import STATUS, Status, read_or_empty
from roadmap.sweep import slurm_queue
from roadmap.sweep.cell_states import CellState, cell_states, processes, slurm_jobs
from roadmap.sweep.launchers.slurm import Config, recover_pending, submit_report, submit_tasks, waiting_reports
from roadmap.sweep.snapshot import FOLDER
from roadmap.sweep.study_dir import Row, StudyDir
from roadmap.sweep.submit import Task

SAVE_S = 60.0  # in which a run that was asked to stop is waited for
POLL_S = 0.1
MAX_RESTARTS = 3  # of a cell that makes no step of progress
RESUBMITTED = ("snapshot", "line", "cluster", "on_gpu")  # of a job that is submitted again as it was
Process = tuple[int, int | None]  # pid, and when it began


@contextmanager
def locked(study: StudyDir) -> Iterator[tuple[list[CellState], slurm_queue.Queue, list[Row]]]:
    """Lock a submitted study, complete what an interrupted submission left; yield the states of its cells, and the
    jobs of that submission.

    Raises ConfigError where Slurm does not answer to that, DataError where nothing was submitted, Busy.
    """
    study.cells()  # raises where nothing was submitted
    with study.lock():
        recovered = recover_pending(study)
        yield *cell_states(study), recovered


def cancel(study: StudyDir, gone: str | None = None) -> str:
    """Cancel the cells that are queued or at work, wait until the processes of this machine have saved them; tell what
    was done. Those that a machine ran which is `gone`, by its name, have ended: nobody else can know.

    Raises ConfigError where Slurm does not answer, DataError where nothing was submitted.
    """
    cells, jobs, asked, lines, ended = list[str](), dict[str, str](), list[Process](), list[str](), list[str]()
    with locked(study) as (states, answer, _):
        if not answer.answered:
            raise ConfigError(f"{study.name}: Slurm does not answer ({answer.error}): nothing is cancelled")
        rows = study.jobs()
        for state in (state for state in states if state.state in ("queued", "running", "unknown")):
            if state.slurm_state in slurm_queue.ACTIVE:
                jobs[str(state.job)] = state.key
                continue
            of_cell = rows.get(state.key, [])
            if state.state == "unknown" and is_of_host(of_cell, gone):
                ended.append(state.key)
                continue
            process, why = process_of(study, state, of_cell)
            if process is not None and process not in asked and not (why := terminate(*process)):
                asked.append(process)
                lines.append(f"process {process[0]} asked to stop")
            if process in asked:
                cells.append(state.key)
            else:
                lines.append(f"{state.key}: " + (f"process {process[0]} {why}" if process else why))
        left = slurm_queue.scancel([*jobs, *waiting_reports(study)])
        cells += [key for job, key in jobs.items() if job not in left]
        lines += [f"{jobs.get(job, 'the chart')}: Slurm's job {job}: {why}" for job, why in left.items()]
        study.append_jobs({"cell": key, "kind": "cancelled"} for key in cells)
        study.append_jobs({"cell": key, "kind": "ended", "exit_code": None} for key in ended)
    deadline = time.monotonic() + SAVE_S  # without the lock: they record their end
    while any(is_alive(*process) for process in asked) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if asked:
        for state in cell_states(study)[0]:
            if state.key in cells and state.slurm_state is None:
                at = f" at step {state.global_step}" if state.global_step else ""
                lines.append(f"{state.key}: {state.state}{at}")
        lines += [f"process {pid} is still saving" for pid, born in asked if is_alive(pid, born)]
    lines += [f"{key}: has ended with {gone}" for key in ended]
    done = [job for job in jobs if job not in left]
    head = f"{len(cells + ended)} cancelled" + ("; make roadmap continues them" if cells + ended else "")
    return "\n  ".join([head, *([f"Slurm's jobs {' '.join(done)}"] if done else []), *lines])


def is_of_host(rows: Sequence[Row], host: str | None) -> bool:
    """Tell whether what was recorded last of a cell is a process of a host."""
    return bool(rows) and rows[-1]["kind"] == "local" and rows[-1]["host"] == host


def process_of(study: StudyDir, state: CellState, rows: Sequence[Row]) -> tuple[Process | None, str]:
    """Return the process of this machine that runs a cell, the scheduler where it lives, which asks its runs; or None,
    and where it is instead."""
    last = next((row for row in reversed(rows) if row.get("job")), None)
    status = read_or_empty(Status, study.path / state.key / STATUS)
    found: list[tuple[Any, Any, int | None]] = []
    if last and last["kind"] == "local":
        found = [(last["host"], *process) for process in processes(last).values()]
    if status.state in ("begun", "running"):
        found.append((status.host, status.pid, status.pid_start))
    here = next(((pid, born) for host, pid, born in found if lives(host, pid, born)), None)
    elsewhere = [f"process {pid} is on {host}, cancel it there" for host, pid, _ in found]
    return here, (elsewhere or ["no process of it is known"])[0]


def reconcile(study: StudyDir) -> str:
    """Submit the cells again that were killed or stopped by Slurm, each with the code and the words that it had; tell
    which, and why others are left.

    Cells that a person cancelled, or that failed by their own word, wait for `make roadmap`, and so do the dead of this
    machine, which are named.

    Raises ConfigError, DataError.
    """
    restarted, left = list[str](), list[str]()
    groups: dict[str, list[tuple[CellState, Row]]] = {}  # by the submission that they were part of
    with locked(study) as (states, answer, recovered):
        if not answer.answered:
            return f"0 restarted\nSlurm does not answer ({answer.error}): nothing is restarted"
        jobs = study.jobs()
        for state in states:
            rows = [row for row in jobs.get(state.key, []) if row.get("job")]
            if rows and rows[-1]["kind"] == "local":
                if state.killed:
                    hint = f"to continue: make roadmap STUDY={study.name} CLUSTER=local"
                    left.append(f"{state.key}: left, {state.reason}; {hint}")
            elif rows and state.state in ("failed", "stopped"):
                slurm = slurm_jobs(rows)
                reason = reason_to_leave(state, slurm, answer.state(str(slurm[-1]["job"])))
                if reason := reason or where_else(study, slurm[-1]):
                    left.append(f"{state.key}: left, {reason}")
                else:
                    groups.setdefault(str(slurm[-1]["name"]), []).append((state, slurm[-1]))
        note = ""  # of the last, which is of all
        for group in groups.values():
            note = resubmit(study, group)
            restarted += [state.key for state, _ in group]
        if recovered and not groups and not where_else(study, recovered[0]):  # there was no time for their report
            code, config = study.notes / FOLDER / recovered[0]["snapshot"], Config(**recovered[0]["cluster"])
            note = submit_report(study, code, config) if config.report else ""
    head = f"{len(restarted)} restarted" + (f": {', '.join(restarted)}" if restarted else "")
    return "\n  ".join([head, *filter(None, [*left, note])])


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
    if job == slurm_queue.GONE and rows[-1].get("uid", os.getuid()) != os.getuid():
        return "its job is another user's, which Slurm may not show; make roadmap continues it"
    in_vain = 0
    for row in reversed(rows):
        if row.get("by") != "reconcile" or row.get("step") != state.global_step:
            break
        in_vain += 1
    if in_vain >= MAX_RESTARTS:
        return f"{in_vain} restarts without progress ({state.reason}); make roadmap tries again"
    return ""


def where_else(study: StudyDir, row: Row) -> str:
    """Return why a job cannot be submitted again: its record lacks how, or is of a study that was copied or moved, and
    would train in the old place."""
    runs = str(study.path.parent)
    if any(row.get(key) is None for key in RESUBMITTED):
        return "its record does not say how it was submitted; make roadmap continues it"
    if same_path(str(row.get("runs") or runs), runs):
        return ""
    return f"submitted in {row['runs']}, where it would train again; make roadmap RUNS={runs} continues it here"


def resubmit(study: StudyDir, group: Sequence[tuple[CellState, Row]]) -> str:
    """Submit cells of one earlier submission again, as it was; return why there is no report. Raises ConfigError where
    its code is gone."""
    first = group[0][1]
    code = study.notes / FOLDER / first["snapshot"]
    if not code.is_dir():
        raise ConfigError(f"{code}: the code of these cells is gone; make roadmap starts them with the current one")
    refuse_unsafe(code, study.path.parent, "RUNS")
    tasks = [Task(state.key, row["line"], state.global_step) for state, row in group]
    return submit_tasks(study, tasks, code, Config(**first["cluster"]), first["on_gpu"], by="reconcile")[1]
