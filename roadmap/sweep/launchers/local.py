"""A study on this machine: as many cells beside each other as its GPUs, or its CPU cores, hold.

Stays in the foreground; asked to stop, or its terminal closed, it passes that on, what has begun is saved, and the same
command goes on later. Where it is killed the kernel asks its runs to stop: none trains on unseen.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from roadmap.distributed.signals import KEYBOARD, not_ignored
from roadmap.errors import ConfigError, StoppedEarly
from roadmap.runs.process import process_start
from roadmap.runs.schema import STATUS, Status, read_or_empty
from roadmap.sweep.cluster import ClusterConfig
from roadmap.sweep.snapshot import git_state_of, take_snapshot
from roadmap.sweep.study import Cell
from roadmap.sweep.study_dir import Row, StudyDir
from roadmap.sweep.submit import Selection, choose_cells, on_gpu

POLL_S = 0.2
PR_SET_PDEATHSIG = 1  # of Linux's prctl
LOGS = "logs"


class Config(ClusterConfig):
    """How one machine runs cells beside each other."""


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

    @property
    def log(self) -> Path:
        """Return the file that the run's output goes to."""
        return self.directory.notes / LOGS / f"{self.key.replace('/', '__')}.log"


def require() -> None:
    """Every machine can run a study."""


def ranks(cells: Sequence[Cell], config: Config) -> int:
    """Return the processes of one cell: one on CPU cores."""
    return config.per_cell if on_gpu(cells) and visible_gpus() else 1


def launch(selections: Sequence[Selection], config: Config, echo: Callable[[str], None]) -> int:
    """Run studies on this machine, cell beside cell; return the worst exit code. Raises ConfigError, StoppedEarly."""
    use_gpus = on_gpu(cell for selection in selections for cell in selection.cells)
    slots = cut_slots(config, visible_gpus(), sorted(os.sched_getaffinity(0)), use_gpus=use_gpus)
    tasks: list[LocalTask] = []
    for selection in selections:
        submission, chosen = claim_cells(selection)
        echo(f"{selection.study.name}: {submission}; {len(slots)} at once")
        tasks += chosen
    return Scheduler(slots, echo).run(tasks)


def visible_gpus() -> dict[str, str]:
    """Return the names of this machine's GPUs by index; {} without any. CUDA_VISIBLE_DEVICES narrows them."""
    try:
        command = ["nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    found = dict(line.split(", ", 1) for line in done.stdout.strip().splitlines() if ", " in line)
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if wanted is None else {index: found.get(index, "?") for index in wanted.split(",") if index}


def cut_slots(config: Config, gpus: dict[str, str], cores: Sequence[int], *, use_gpus: bool) -> list[Slot]:
    """Return the shares of the machine that run cells at once. Raises ConfigError where not even one cell fits."""
    size, use_gpus = config.per_cell, use_gpus and bool(gpus)
    kinds = sorted(set(gpus.values()))
    if use_gpus and len(kinds) > 1 and not config.mixed_gpus:
        raise ConfigError(
            f"this machine has {', '.join(kinds)}: choose with CUDA_VISIBLE_DEVICES, "
            "or cluster.mixed_gpus=true to mix them"
        )
    number = len(gpus if use_gpus else cores)
    starts = range(0, number - size + 1, size)
    if not starts:
        raise ConfigError(f"cluster.per_cell={size}: there are {number} {'GPUs' if use_gpus else 'CPU cores'} here")
    if use_gpus:
        slots = [Slot(gpus=tuple(gpus)[i : i + size]) for i in starts]
    else:
        slots = [Slot(cores=tuple(cores)[i : i + size]) for i in starts]
    return slots[: config.max_running]


def claim_cells(selection: Selection) -> tuple[str, list[LocalTask]]:
    """Take the cells that are neither done nor at work, and record that; return what was done, and the tasks."""
    directory = selection.directory
    directory.make()
    code = take_snapshot(directory, selection.study.file)
    with directory.lock():
        submission, chosen = choose_cells(selection, code)
        command = [sys.executable, str(code / "run.py")]
        tasks = [LocalTask(directory, task.key, [*command, *task.args]) for task in chosen]
        directory.append_jobs(job_row(task, code) for task in tasks)
    return str(submission), tasks


def job_row(task: LocalTask, code: Path) -> Row:
    """Return what is recorded of a cell that this process takes."""
    row: Row = {
        "cell": task.key,
        "kind": "local",
        "job": "local",
        "log": str(task.log.relative_to(task.directory.notes)),
    }
    row |= {"pid": os.getpid(), "born": process_start(os.getpid())}
    return row | {"snapshot": code.name, **git_state_of(code)}


class Scheduler:
    """Runs tasks on slots until none is left, or a signal comes."""

    def __init__(self, slots: Sequence[Slot], echo: Callable[[str], None]) -> None:
        self.free, self.echo = list(slots), echo
        self.running: dict[subprocess.Popen[bytes], tuple[LocalTask, Slot]] = {}
        self.stopped = self.again = False
        self.passed_on = 0  # signals that the cells at work have got
        self.codes: list[int] = []
        self.ends: Counter[str] = Counter()  # of the cells that were at work when it was stopped

    def run(self, tasks: Sequence[LocalTask]) -> int:
        """Run the tasks in their order; return the worst exit code. Raises StoppedEarly after a signal."""
        handlers = {number: signal.signal(number, self._stop) for number in not_ignored()}
        waiting = list(tasks)
        try:
            while self.running or (waiting and not self.stopped):
                while waiting and self.free and not self.stopped:
                    self._start(waiting.pop(0))
                self._pass_on()
                for process in [process for process in self.running if process.poll() is not None]:
                    self._finish(process, len(tasks))
                time.sleep(POLL_S)
        finally:
            for process in self.running:  # an error of ours, such as a full disk, ends no run unsaved
                process.terminate()
            for process in self.running:
                process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for task in waiting:
                record_end(task, None)
        if self.stopped:
            ends = ", ".join(f"{number} {end}" for end, number in sorted(self.ends.items(), reverse=True))
            raise StoppedEarly(f"stopped{f' ({ends})' if ends else ''}; the same command goes on")
        return max(self.codes, default=0)

    def _start(self, task: LocalTask) -> None:
        slot = self.free.pop(0)
        env = dict(os.environ)
        if slot.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        else:
            env.setdefault("OMP_NUM_THREADS", str(len(slot.cores)))
        task.log.parent.mkdir(exist_ok=True)
        with open(task.log, "ab") as log:  # a session of its own: a Ctrl-C reaches it through us, once
            process = subprocess.Popen(
                task.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=env,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
        self.running[process] = (task, slot)
        if slot.cores:
            with suppress(OSError):  # it has ended already
                os.sched_setaffinity(process.pid, slot.cores)
        record_start(task, process.pid)
        self._show(f"{task.directory.name}: {task.key} begins")

    def _finish(self, process: subprocess.Popen[bytes], total: int) -> None:
        task, slot = self.running.pop(process)
        self.free.append(slot)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        self.codes.append(code)
        record_end(task, code)
        if self.stopped:
            self.ends[how_it_ended(task)] += 1
        lines = task.log.read_bytes().decode(errors="replace").strip().splitlines()
        line = f"[{len(self.codes)}/{total}] {lines[-1] if lines else task.key}"
        self._show(line + (f" (exit code {code}; {task.log})" if code else ""))

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.again |= self.stopped and number in KEYBOARD
        self.stopped = True

    def _pass_on(self) -> None:
        """Pass on what came, also to a cell that was just being started then."""
        wanted = [signal.SIGTERM] * self.stopped + [signal.SIGINT] * self.again
        if wanted and not self.passed_on:
            self._show("stopping: the cells at work save first; Ctrl-C once more interrupts them at once")
        for number in wanted[self.passed_on :]:
            for process in self.running:
                with suppress(ProcessLookupError):
                    process.send_signal(number)
        self.passed_on = len(wanted)

    def _show(self, line: str) -> None:
        with suppress(OSError):  # the terminal is closed
            self.echo(line)


def how_it_ended(task: LocalTask) -> str:
    """Return what a cell that was asked to stop has left, by its own status."""
    state = read_or_empty(Status, task.directory.path / task.key / STATUS).state
    return {"stopped": "saved", "done": "done", None: "not begun"}.get(state, "cut off, its last checkpoint counts")


def end_with_parent() -> Callable[[], None] | None:
    """Return what a child does before its program: let the kernel ask it to stop once this process is gone.

    None where the system knows no such thing.
    """
    parent, prctl = os.getpid(), getattr(ctypes.CDLL(None), "prctl", None)

    def call() -> None:
        assert prctl is not None
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # gone already
            os.kill(os.getpid(), signal.SIGTERM)

    return call if prctl is not None else None


def record_start(task: LocalTask, pid: int) -> None:
    """Record the process that runs a cell."""
    with task.directory.lock():
        if rows := task.directory.jobs().get(task.key):
            task.directory.append_jobs([rows[-1] | {"run_pid": pid, "run_born": process_start(pid)}])


def record_end(task: LocalTask, code: int | None) -> None:
    """Record that a cell has ended, or that it is given back (None)."""
    with task.directory.lock():
        task.directory.append_jobs([{"cell": task.key, "kind": "ended", "exit_code": code}])
