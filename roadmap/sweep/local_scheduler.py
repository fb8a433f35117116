"""Processes of this machine that train cells of a study: a cell each, or the cells that share a GPU.

A slot is a share of the machine with a line of processes: the first one trains, those behind it prepare themselves
(imports, images, compiling, capturing) and wait until it is their turn. Each end of a cell is recorded when it is
known. Asked to stop, all is passed on; where this process is killed, the kernel asks its processes to stop.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from roadmap.distributed.cores import num_cores
from roadmap.distributed.signals import CUT_OFF, KEYBOARD, not_ignored
from roadmap.errors import DiskError, StoppedEarly
from roadmap.files import disk_errors, last_lines, write_json
from roadmap.runs.children import compiler_cache, end_with_parent
from roadmap.runs.schema import STATUS, Status, read_or_empty
from roadmap.sweep.study_dir import LOCK_WAIT_S, Journal, StudyDir
from roadmap.text import reason

POLL_S = 0.2
ALIKE = 3  # cells that end with the same error, before any has trained: what is wrong is wrong with all of them
LOGS, GROUPS = "logs", "groups"
MAX_SEEDS = 8  # of one process: torch has 32 streams, of which a run takes up to three
SHARE = 0.5  # of a GPU's memory, for all that prepare themselves together: the rest is for what trains


@dataclass(frozen=True)
class Slot:
    """A share of the machine: GPUs by index, or CPU cores."""

    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()


@dataclass(frozen=True)
class LocalTask:
    """A cell that waits for a slot, and the command that runs it."""

    directory: StudyDir
    key: str
    command: list[str]
    row: str | None = None  # what is equal for cells that are trained side by side; None: this one is alone
    run: dict[str, Any] = field(default_factory=dict)  # what `python -m roadmap.training` is told of it there
    code: Path | None = None  # the snapshot that it is run from

    @property
    def row_name(self) -> str:
        """Return the key without the seed."""
        return self.key.rpartition("/")[0]

    @property
    def log(self) -> Path:
        """Return the file that the run's output goes to."""
        return self.directory.notes / LOGS / f"{self.key.replace('/', '__')}.log"


@dataclass(eq=False)
class Job:
    """A process, and the cells of which it has not said how they ended."""

    process: subprocess.Popen[bytes]
    left: dict[int, LocalTask]
    log: Path  # of what the process itself writes
    said: bytes = b""

    @property
    def cells(self) -> list[tuple[StudyDir, str]]:
        """Return the cells that have not ended."""
        return [(task.directory, task.key) for task in self.left.values()]

    def open_gate(self) -> None:
        """Let it train, if it waits for that."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):  # it has ended
                self.process.stdin.write(b"\n")
                self.process.stdin.close()

    def ended_cells(self) -> list[tuple[LocalTask, int]]:
        """Return the cells that it has said the end of since it was asked last, with their exit codes."""
        if self.process.stdout is None:
            return []
        with suppress(BlockingIOError):
            while more := os.read(self.process.stdout.fileno(), 65536):
                self.said += more
        *lines, self.said = self.said.split(b"\n")
        return [(self.left.pop(end["run"]), end["code"]) for end in map(json.loads, lines)]


class Scheduler:
    """Runs tasks on slots until none is left, or a signal comes."""

    def __init__(self, slots: Sequence[Slot], echo: Callable[[str], None], ahead: int = 0) -> None:
        """`ahead`: how many groups of cells prepare themselves behind the one that trains, on each slot."""
        self.slots, self.echo, self.ahead = list(slots), echo, ahead
        self.running: list[Job] = []
        self.stopped = self.again = False
        self.passed_on = 0  # signals that the cells at work have got
        self.codes: list[int] = []
        self.errors: list[str] = []  # in which cells ended
        self.total = 0
        self.ends: Counter[str] = Counter()  # of the cells that were at work when it was stopped
        self.journal = Journal()

    def run(self, tasks: Sequence[LocalTask]) -> int:
        """Run the tasks in their order; return the worst exit code. Raises StoppedEarly after a signal."""
        handlers = {number: signal.signal(number, self._stop) for number in not_ignored()}
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
            handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._pause)
        waiting, self.total = group_by_row(tasks), len(tasks)
        skipped: list[list[LocalTask]] = []
        lines: list[tuple[Slot, list[Job]]] = [(slot, []) for slot in self.slots]
        try:
            while any(line for _, line in lines) or (waiting and not self.stopped):
                if waiting and self._all_fail_alike():
                    skipped, waiting = waiting, []
                    self._show(f"all cells so far failed with this error: {sum(map(len, skipped))} are not started")
                while waiting and not self.stopped:
                    slot, line = min(lines, key=lambda found: len(found[1]))
                    if line and (waiting[0][0].row is None or len(line) > self.ahead):
                        break
                    self._start(waiting.pop(0), slot, line)
                self._pass_on()
                for _, line in lines:
                    self._follow(line)
                self.journal.write()
                time.sleep(POLL_S)
        finally:
            for job in self.running:  # an error of ours, such as a full disk, ends no run unsaved
                job.process.terminate()
            for job in self.running:
                job.process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for task in (task for group in (*waiting, *skipped) for task in group):
                self.journal.ended(task.directory, task.key, None)
            self.journal.write(LOCK_WAIT_S)
            for study in {study.name for study, _ in self.journal.rows}:
                self._show(f"{study}: another process has locked it, so how its last cells ended is not recorded")
        if self.stopped:
            ends = ", ".join(f"{number} {end}" for end, number in sorted(self.ends.items(), reverse=True))
            raise StoppedEarly(f"stopped{f' ({ends})' if ends else ''}; run the same command again to continue")
        return max(self.codes, default=0)

    def _start(self, tasks: list[LocalTask], slot: Slot, line: list[Job]) -> None:
        """Start a process at the end of a slot's line, at whose beginning it trains."""
        grouped = tasks[0].row is not None
        log = tasks[0].log
        log.parent.mkdir(exist_ok=True)
        if grouped:
            log = log.with_name(f"{tasks[0].row_name.replace('/', '__')}.log")
        try:
            out = open(log, "ab")  # noqa: SIM115 - closed below
        except OSError as error:  # another user's: the other cells go on
            for task in tasks:
                self._finish(task, DiskError.code, f"error: {log}: cannot be written ({reason(error)})", log)
            return
        with out:  # a session of its own: a Ctrl-C reaches it through us, once
            process = subprocess.Popen(
                group_command(tasks, SHARE / max(1, self.ahead)) if grouped else tasks[0].command,
                stdout=subprocess.PIPE if grouped else out,
                stderr=out,
                stdin=subprocess.PIPE if grouped else subprocess.DEVNULL,
                bufsize=0,
                env=environment(slot, tasks[0].code if grouped else None, 1 + self.ahead),
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
        job = Job(process, dict(enumerate(tasks)), log)
        self.running.append(job)
        line.append(job)
        if process.stdout is not None:
            os.set_blocking(process.stdout.fileno(), False)
        if slot.cores:
            with suppress(OSError):  # it has ended already
                os.sched_setaffinity(process.pid, slot.cores)
        waits = training(line) is not job
        if waits:
            self.journal.started(job.cells, process.pid, waits=True)
        else:
            self._begin(job)

    def _begin(self, job: Job) -> None:
        self.journal.started(job.cells, job.process.pid, waits=False)
        job.open_gate()
        for study, cell in job.cells:
            self._show(f"{study.name}: {cell} started")

    def _follow(self, line: list[Job]) -> None:
        """Record what has ended of a slot's line; let the next one train where all cells of the first have ended."""
        first = training(line)
        for job in list(line):
            over = job.process.poll() is not None
            for task, code in job.ended_cells():
                self._finish(task, code, end_of(task.log), task.log)
            if over:
                line.remove(job)
                self.running.remove(job)
                code = job.process.returncode
                for task in job.left.values():
                    self._finish(task, code if code >= 0 else 128 - code, end_of(job.log), job.log)
        job_now = training(line)
        if job_now is not None and job_now is not first and not self.stopped:
            self._begin(job_now)

    def _finish(self, task: LocalTask, code: int, last: str, log: Path) -> None:
        removed = not task.directory.notes.exists()
        code = DiskError.code if removed else code
        self.codes.append(code)
        self.journal.ended(task.directory, task.key, code)
        if self.stopped:
            self.ends[end := how_it_ended(task)] += 1
            if code == StoppedEarly.code:
                self._show(f"[{len(self.codes)}/{self.total}] {task.key}: {end}")
                return
        last = "its folder was removed" if removed else last
        self.errors += [last] if code else []
        killed = "; killed, out of memory?" if code == 128 + signal.SIGKILL else ""
        failed = f" (exit code {code}{killed}; {log})" if code else ""
        self._show(f"[{len(self.codes)}/{self.total}] {last or task.key}{failed}")

    def _all_fail_alike(self) -> bool:
        return ALIKE <= len(self.codes) == len(self.errors) and len(set(self.errors)) == 1 and self.errors[0] != ""

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.again |= self.stopped and number in KEYBOARD
        self.stopped = True

    def _pause(self, *_: object) -> None:
        """Ctrl-Z: let the cells pause as well, which a terminal does not know, and go on with this process."""
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for job in self.running:
                with suppress(ProcessLookupError):
                    os.killpg(job.process.pid, number)
            if number == signal.SIGSTOP:
                os.kill(os.getpid(), number)

    def _pass_on(self) -> None:
        """Pass on what came, also to a cell that was just being started then."""
        wanted = [signal.SIGTERM] * self.stopped + [signal.SIGINT] * self.again
        if wanted and not self.passed_on:
            self._show("stopping: running cells save a checkpoint first; press Ctrl-C again to interrupt them at once")
        for number in wanted[self.passed_on :]:
            for job in self.running:
                with suppress(ProcessLookupError):
                    job.process.send_signal(number)
        self.passed_on = len(wanted)

    def _show(self, line: str) -> None:
        with suppress(OSError):  # the terminal is closed
            self.echo(line)


def training(line: Sequence[Job]) -> Job | None:
    """Return which of a slot's processes trains: the first with cells left. One that has none takes seconds to exit."""
    return next((job for job in line if job.left), None)


def group_by_row(tasks: Iterable[LocalTask]) -> list[list[LocalTask]]:
    """Return tasks in groups of one row, at most `MAX_SEEDS` each, in the order of their first; None is alone."""
    groups: list[list[LocalTask]] = []
    by_row: dict[str | None, list[LocalTask]] = {}
    for task in tasks:
        group = by_row.get(task.row, [])
        if not group or task.row is None or len(group) == MAX_SEEDS:
            groups.append(group := [])
            by_row[task.row] = group
        group.append(task)
    return groups


def group_command(tasks: Sequence[LocalTask], share: float) -> list[str]:
    """Write what a process is told that trains cells side by side; return its command. Raises DiskError."""
    # By its first cell: several groups of a row are at work at once, here or on another machine.
    file = tasks[0].directory.notes / GROUPS / f"{tasks[0].key.replace('/', '__')}.json"
    runs = [{**task.run, "log": str(task.log)} for task in tasks]
    with disk_errors(file):
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"share": share, "runs": runs})
    return [sys.executable, "-P", "-m", "roadmap.training", str(file)]


def environment(slot: Slot, code: Path | None, processes: int) -> dict[str, str]:
    """Return the environment of a process on a slot; with `code`, of one that compiles while others do so, too."""
    env = dict(os.environ)
    if slot.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
    else:
        env.setdefault("OMP_NUM_THREADS", str(len(slot.cores)))
    if code is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), env.get("PYTHONPATH")]))
        env.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, num_cores() // processes)))
        env = compiler_cache() | env
    return env


def how_it_ended(task: LocalTask) -> str:
    """Return what a cell that was asked to stop has left, by its own status."""
    status = read_or_empty(Status, task.directory.path / task.key / STATUS)
    if CUT_OFF in (status.reason or ""):  # interrupted once more
        return CUT_OFF
    return {"stopped": "saved", "done": "done", None: "not started"}.get(status.state, CUT_OFF)


def end_of(log: Path) -> str:
    """Return the last line of a log, if there is one."""
    return last_lines(log)[-1] if log.exists() else ""
