"""A study on this machine: as many cells beside each other as its GPUs, or its CPU cores, hold.

Stays in the foreground; asked to stop it passes that on, every cell is saved, and the same command goes on later.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

from roadmap.errors import ConfigError, StoppedEarly
from roadmap.sweep import snapshot
from roadmap.sweep.cluster import LocalConfig
from roadmap.sweep.folder import StudyDir
from roadmap.sweep.status import birth
from roadmap.sweep.study import Cell, Study
from roadmap.sweep.submit import Begun, certain_states, choose, command_line, on_gpu

T = TypeVar("T")
POLL_S = 0.2
LOGS = "logs"


@dataclass(frozen=True)
class Slot:
    """A share of the machine: GPUs by index, or CPU cores."""

    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()


@dataclass(frozen=True)
class Task:
    """A cell that waits for a slot."""

    directory: StudyDir
    key: str
    line: list[str]
    code: Path

    @property
    def log(self) -> Path:
        """Return the file that the run's output goes to."""
        return self.directory.notes / LOGS / f"{self.key.replace('/', '__')}.log"


def visible_gpus() -> dict[str, str]:
    """Return the names of this machine's GPUs by index; {} without any. CUDA_VISIBLE_DEVICES narrows them."""
    try:
        words = ["nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    found = dict(line.split(", ", 1) for line in done.stdout.strip().splitlines() if ", " in line)
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if wanted is None else {index: found.get(index, "?") for index in wanted.split(",") if index}


def slots(config: LocalConfig, gpus: dict[str, str], cores: Sequence[int], *, use_gpus: bool) -> list[Slot]:
    """Return the shares of the machine that run cells at once. Raises ConfigError where not even one cell fits."""
    if use_gpus and gpus:
        if len(set(gpus.values())) > 1 and not config.mixed_gpus:
            kinds = ", ".join(sorted(set(gpus.values())))
            raise ConfigError(
                f"this machine has {kinds}: choose with CUDA_VISIBLE_DEVICES, or cluster.mixed_gpus=true to mix them"
            )
        what, parts = "GPUs", [Slot(gpus=tuple(part)) for part in _parts(list(gpus), config.per_cell)]
    else:
        what, parts = "CPU cores", [Slot(cores=tuple(part)) for part in _parts(list(cores), config.per_cell)]
    if not parts:
        raise ConfigError(
            f"cluster.per_cell={config.per_cell}: there are {len(gpus) if what == 'GPUs' else len(cores)} {what} here"
        )
    return parts[: config.max_running]


def _parts(items: list[T], size: int) -> list[list[T]]:
    return [items[i : i + size] for i in range(0, len(items) - size + 1, size)]


def claim(study: Study, directory: StudyDir, chosen: Sequence[Cell]) -> tuple[Begun, list[Task]]:
    """Take the cells that are neither done nor at work for this process, and note that; return them with their command lines."""
    directory.make()
    code = snapshot.take(directory.notes / "snapshots", study.file)
    with directory.lock():
        directory.write_cells(study)
        begun, todo = choose(chosen, certain_states(directory))
        tasks = [Task(directory, cell.key, command_line(study, cell.words, cell.config, code), code) for cell in todo]
        about = {"kind": "local", "job": "local", "pid": os.getpid(), "born": birth(os.getpid()), "snapshot": code.name}
        directory.note([
            {"cell": task.key, **about, **snapshot.facts(code), "log": str(task.log.relative_to(directory.notes))} for task in tasks
        ])  # fmt: skip
    return begun, tasks


class Machine:
    """Runs tasks on slots until none is left, or a signal comes."""

    def __init__(self, places: Sequence[Slot], say: Callable[[str], None]) -> None:
        self.free, self.say = list(places), say
        self.running: dict[subprocess.Popen[bytes], tuple[Task, Slot]] = {}
        self.stopped = False
        self.codes: list[int] = []

    def run(self, tasks: Sequence[Task]) -> int:
        """Run the tasks in their order; return the worst exit code of a cell. Raises StoppedEarly after a signal, with all saved."""
        earlier = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        waiting, done = list(tasks), 0
        try:
            while self.running or (waiting and not self.stopped):
                while waiting and self.free and not self.stopped:
                    self._begin(waiting.pop(0))
                for process in [process for process in self.running if process.poll() is not None]:
                    done += 1
                    self._ended(process, f"[{done}/{len(tasks)}] ")
                time.sleep(POLL_S)
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
            _note_end(waiting, None)
        if self.stopped:
            raise StoppedEarly("stopped, every cell is saved; the same command goes on")
        return max(self.codes, default=0)

    def _begin(self, task: Task) -> None:
        slot = self.free.pop(0)
        env = dict(os.environ)
        if slot.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        else:
            env.setdefault("OMP_NUM_THREADS", str(len(slot.cores)))
        task.log.parent.mkdir(exist_ok=True)
        with open(task.log, "ab") as log:  # a session of its own: a Ctrl-C reaches it through us, once
            words = [sys.executable, str(task.code / "run.py"), *task.line]
            process = subprocess.Popen(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, start_new_session=True
            )
        if slot.cores:
            with suppress(OSError):  # it has ended already
                os.sched_setaffinity(process.pid, slot.cores)
        self.running[process] = (task, slot)
        self.say(f"{task.directory.name}: {task.key} begins")

    def _ended(self, process: subprocess.Popen[bytes], prefix: str) -> None:
        task, slot = self.running.pop(process)
        self.free.append(slot)
        self.codes.append(code := process.returncode if process.returncode >= 0 else 128 - process.returncode)
        _note_end([task], code)
        lines = task.log.read_bytes().decode(errors="replace").strip().splitlines()
        self.say(f"{prefix}{lines[-1] if lines else task.key}" + (f" (exit code {code}; {task.log})" if code else ""))

    def _stop(self, number: int, _: FrameType | None) -> None:
        if not self.stopped:
            self.say("stopping: the cells at work are saved; once more interrupts them at once")
        self.stopped = True
        for process in self.running:
            with suppress(ProcessLookupError):
                process.send_signal(number)


def _note_end(tasks: Sequence[Task], code: int | None) -> None:
    for task in tasks:
        with task.directory.lock():
            task.directory.note([{"cell": task.key, "kind": "ended", "exit_code": code}])


def run_here(
    claims: Sequence[tuple[Study, StudyDir, Sequence[Cell]]], config: LocalConfig, say: Callable[[str], None]
) -> int:
    """Run studies on this machine, cell beside cell; return the worst exit code. Raises ConfigError, StoppedEarly."""
    use_gpus = on_gpu(cell for _, _, cells in claims for cell in cells)
    places = slots(config, visible_gpus(), sorted(os.sched_getaffinity(0)), use_gpus=use_gpus)
    tasks: list[Task] = []
    for study, directory, cells in claims:
        begun, mine = claim(study, directory, cells)
        say(f"{study.name}: {begun}; {len(places)} at once")
        tasks += mine
    return Machine(places, say).run(tasks)
