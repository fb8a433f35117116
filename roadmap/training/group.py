"""Runs that differ in the seed alone, trained side by side in one process: each takes a burst of steps in turn.

A small net leaves most of a GPU idle. There every run has a stream and a captured step of its own, which the device
works on at once. Before the host waits for a run, to write its record, the others have their turn: so the device has
work meanwhile. The runs share their images and nothing else: one that is done, held by another process, refused,
stopped, not finite or failing leaves, and the others go on.
"""

import contextvars
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from roadmap.config.choices import Device
from roadmap.config.schema import Config
from roadmap.distributed.rank_env import RankEnv
from roadmap.distributed.signals import CUT_OFF, StopSignal
from roadmap.errors import CompilerError, OutOfMemory, StoppedEarly
from roadmap.runs.progress import SweepProgress
from roadmap.runs.result import load_result
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.training.train import Steps, run_steps

BURST = 16  # steps of a turn: the record of an epoch takes the host about as long as they take the device


class Gate(Protocol):
    """What a group that is prepared waits at until the device is its own."""

    def is_open(self) -> bool:
        """Tell whether it is open by now."""

    def wait(self, stop: StopSignal) -> bool:
        """Wait; return whether it has opened: not where a signal has come, or nobody is left to open it."""


@dataclass(eq=False)
class GroupRun:
    """A run of a group. In its turn the process has its number of threads, its log and its stream."""

    config: Config
    sweep: SweepProgress
    uncompiled: Config | None = None  # what it is trained as where the compiler fails; None: that is an error
    steps: Steps[dict[str, Any]] | None = None
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    threads: int = field(default_factory=torch.get_num_threads)
    stream: torch.cuda.Stream | None = None
    turns: int = 0

    def begin(self, stop: StopSignal, group_size: int) -> None:
        """Begin, or begin again, with the steps of the run."""
        self.steps = run_steps(self.config, self.sweep, RankEnv(), shared_stop=stop, group_size=group_size)
        self.turns = 0

    def advance(self, error: BaseException | None = None) -> bool:
        """Take the run to where it pauses next, or end it by an error; return whether it then waits for the device.

        Raises what ends it, StopIteration as well.
        """
        assert self.steps is not None
        others = torch.get_num_threads()
        set_threads(self.threads)
        try:
            with torch.cuda.stream(self.stream):
                call = (next, self.steps) if error is None else (self.steps.throw, error)
                waits: bool = self.context.run(*call)
                self.turns += 1
                if self.stream is not None and self.turns == 2:
                    self.stream.synchronize()  # the images that it has put on the device are every run's
                return waits
        finally:
            self.threads = torch.get_num_threads()
            set_threads(others)


Ended = Callable[[GroupRun, dict[str, Any] | BaseException], None]  # with a run's summary, or what ended it


class Group:
    """Trains runs side by side, as many at once as the device has memory for."""

    def __init__(self, runs: Sequence[GroupRun], ended: Ended, gate: Gate | None = None) -> None:
        """Without a gate the device is the group's own from the beginning."""
        self.waiting, self.active, self.limit = list(runs), list[GroupRun](), len(runs)
        self.ended, self.gate, self.opened = ended, gate, False
        self.stop = StopSignal()

    def train(self) -> None:
        """Train all runs to their ends, and pass each on to `ended`."""
        with self.stop:
            try:
                self._drop_finished()
                self.opened = self.gate is None or self.gate.is_open()
                self._begin_waiting()
                self.opened = self.gate.wait(self.stop) if self.gate is not None else self.stop.signal is None
                if not self.opened:
                    self._end_all(StoppedEarly(self._why_stopped()))
                while self.active or self.waiting:
                    self._begin_waiting()
                    for run in list(self.active):
                        self._take_turn(run)
            except BaseException as error:  # Ctrl-C between two steps, or an error of ours
                self._end_all(error)
                raise

    def _why_stopped(self) -> str:
        return f"stopped by {self.stop.signal.name}" if self.stop.signal else "the process that started it is gone"

    def _drop_finished(self) -> None:
        """Pass on what is done already, or cannot be read; count a start of what was begun."""
        for run in list(self.waiting):
            directory = RunDir(run_path(run.config))
            try:
                if directory.is_done(run.config.values()):
                    run.sweep.write("; ".join([f"{run.config.cell}: already finished", *directory.notes]))
                    self._leave(run, load_result(directory.path))
                    continue
            except Exception as error:
                self._leave(run, error)
                continue
            run.sweep.write(f"{run.config.cell}: starting")
            directory.count_start(run.config.values())

    def _begin_waiting(self) -> None:
        """Prepare runs that wait, as many as there is room for."""
        for run in list(self.waiting):
            if self.stop.signal is not None:
                self._leave(run, StoppedEarly(self._why_stopped()))
            elif len(self.active) < self.limit:
                size = min(self.limit, len(self.active) + len(self.waiting))
                self.waiting.remove(run)
                self.active.append(run)
                if run.stream is None and run.config.device != Device.cpu and torch.cuda.is_available():
                    run.stream = torch.cuda.Stream()
                run.sweep.prepares_ahead = not self.opened
                run.begin(self.stop, size)
                self._advance(run)

    def _take_turn(self, run: GroupRun) -> None:
        """Let a run take a burst of steps, or those up to where it waits for the device or ends."""
        for _ in range(BURST):
            if not self._advance(run, KeyboardInterrupt(CUT_OFF) if self.stop.again else None):
                break

    def _advance(self, run: GroupRun, error: BaseException | None = None) -> bool:
        """Let a run take a step, or end it by an error; return whether it goes on at once. Where it ends, it leaves."""
        try:
            return not run.advance(error)
        except StopIteration as end:
            self._leave(run, end.value)
        except OutOfMemory as found:
            if self.opened and len(self.active) == 1:
                self._leave(run, found)
            else:
                self._wait_for_memory(run)
        except CompilerError as found:
            if run.uncompiled is None:
                self._leave(run, found)
            else:
                run.sweep.write(f"{run.config.cell}: trains uncompiled ({found})")
                run.config, run.uncompiled = run.uncompiled, None
                self._wait(run)
        except (Exception, KeyboardInterrupt) as found:
            self._leave(run, found)
        self.stop.interrupts = True  # a run whose record is closed has taken it away
        return False

    def _wait_for_memory(self, run: GroupRun) -> None:
        """Let a run wait until another one leaves; before the device is the group's own, until it is."""
        self._wait(run)
        if self.opened:
            self.limit = max(1, len(self.active))
            here = f"memory is too small for {self.limit + 1} runs at once: {self.limit} at a time"
            run.sweep.write(f"{run.config.cell}: {here}")

    def _wait(self, run: GroupRun) -> None:
        self.active.remove(run)
        self.waiting.append(run)

    def _leave(self, run: GroupRun, outcome: dict[str, Any] | BaseException) -> None:
        (self.active if run in self.active else self.waiting).remove(run)
        self.ended(run, outcome)

    def _end_all(self, error: BaseException) -> None:
        for run in list(self.active):
            self._advance(run, error)
        for run in list(self.waiting):
            self._leave(run, error)


def set_threads(number: int) -> None:
    """Let operations on the CPU take so many threads."""
    if number != torch.get_num_threads():
        torch.set_num_threads(number)
