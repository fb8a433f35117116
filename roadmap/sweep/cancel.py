"""Cancel what is queued or at work of a study: Slurm's jobs, and the processes of this machine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from roadmap.errors import ConfigError
from roadmap.runs.process import is_alive, lives, terminate
from roadmap.runs.schema import STATUS, Status, read_or_empty
from roadmap.sweep import slurm_queue
from roadmap.sweep.cell_states import CellState, cell_states, processes
from roadmap.sweep.launchers.slurm import recover_pending, waiting_reports
from roadmap.sweep.study_dir import Row, StudyDir

SAVE_S = 60.0  # in which a run that was asked to stop is waited for
POLL_S = 0.1
Process = tuple[int, int | None]  # pid, and when it began


@dataclass
class Cancellation:
    """What was done: cells by key, jobs of Slurm, processes, and what each cell is now, or why it was not cancelled."""

    cells: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{len(self.cells)} cancelled" + ("; make roadmap continues them" if self.cells else "")
        jobs = [f"  Slurm's jobs {' '.join(self.jobs)}"] if self.jobs else []
        return "\n".join([head, *jobs, *(f"  {line}" for line in self.lines)])


def cancel(study: StudyDir) -> Cancellation:
    """Cancel the cells that are queued or at work, and wait until the processes of this machine have saved them.

    Raises ConfigError where Slurm does not answer, DataError where nothing was submitted.
    """
    done = Cancellation()
    study.cells()  # raises where nothing was submitted
    with study.lock():
        recover_pending(study)
        jobs = study.jobs()
        states, answer = cell_states(study)
        if not answer.answered:
            raise ConfigError(f"{study.name}: Slurm does not answer ({answer.error}): nothing is cancelled")
        for state in states:
            if state.state in ("queued", "running", "unknown"):
                cancel_cell(study, state, jobs.get(state.key, []), done)
        slurm_queue.scancel(done.jobs)
        slurm_queue.scancel(waiting_reports(study))
        study.append_jobs({"cell": key, "kind": "cancelled"} for key in done.cells)
    wait_for(done.processes)  # without the lock: they record their end
    if done.processes:
        stopped = [state for state in cell_states(study)[0] if state.key in done.cells and state.slurm_state is None]
        done.lines += [describe(state) for state in stopped]
        done.lines += [f"process {pid} is still saving" for pid, born in done.processes if is_alive(pid, born)]
    return done


def cancel_cell(study: StudyDir, state: CellState, rows: Sequence[Row], done: Cancellation) -> None:
    """Note the job of a cell, or ask its process to stop, or note why that cannot be."""
    last = next((row for row in reversed(rows) if row.get("job")), None)
    if state.slurm_state in slurm_queue.ACTIVE:
        done.jobs.append(str(state.job))
        done.cells.append(state.key)
        return
    status = read_or_empty(Status, study.path / state.key / STATUS)
    found: list[tuple[Any, Any, int | None]] = []
    if last and last["kind"] == "local":
        found = [(last["host"], *process) for process in processes(last).values()]
    if status.state in ("begun", "running"):
        found.append((status.host, status.pid, status.pid_start))
    here = [(pid, born) for host, pid, born in found if lives(host, pid, born)]
    if not here:
        elsewhere = [f"process {pid} is on {host}, cancel it there" for host, pid, _ in found]
        done.lines.append(f"{state.key}: {elsewhere[0] if elsewhere else 'no process of it is known'}")
        return
    process = here[0]  # the scheduler where it lives, which asks its runs
    if process not in done.processes:
        if why := terminate(*process):
            done.lines.append(f"{state.key}: process {process[0]} {why}")
            return
        done.processes.append(process)
        done.lines.append(f"process {process[0]} asked to stop")
    done.cells.append(state.key)


def wait_for(asked: Sequence[Process]) -> None:
    """Wait until processes have ended, for so long as saving may take."""
    deadline = time.monotonic() + SAVE_S
    while any(is_alive(*process) for process in asked) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def describe(state: CellState) -> str:
    """Return what a cell is now."""
    return f"{state.key}: {state.state}" + (f" at step {state.global_step}" if state.global_step else "")
