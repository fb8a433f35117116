"""Progress for the user: a bar on a terminal, plain lines in a file. Knows nothing of training."""

import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

from roadmap.text import printable_lines

tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore between processes, which is not needed


@dataclass
class SweepProgress:
    """The position of this run among those of one command, and how long all of them will take."""

    position: int = 1
    total: int = 1
    runs_done: float = 0.0  # runs that this process has trained, in whole and in part
    prepares_ahead: bool = False  # the run is prepared while others have its device
    stopped: bool = False  # a signal came when a run was as good as done: no other begins
    started: float = field(default_factory=time.monotonic)
    out: TextIO | None = field(default=None, repr=False)  # where lines go to; None: stderr
    # What one run leaves to the next: images, captured steps.
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def prefix(self) -> str:
        """Return `[3/17] `, or nothing for a run on its own."""
        return f"[{self.position}/{self.total}] " if self.total > 1 else ""

    def write(self, line: str) -> None:
        """Write a line that stays, above a bar where there is one, with the run's position in the sweep."""
        tqdm.write(printable_lines(self.prefix() + line), file=self.out or sys.stderr)
        (self.out or sys.stderr).flush()

    def print(self, line: str) -> None:
        """Write a line of the result to stdout, above a bar on the same terminal. Raises DiskError."""
        with suppress(BrokenPipeError):  # the reader has closed the pipe, as `| head` does
            tqdm.write(printable_lines(self.prefix() + line), file=sys.stdout)
            sys.stdout.flush()

    def left(self, share_done: float, share_before: float) -> str:
        """Return how long all runs still take, by what this process did; `share_before` of this run was done before."""
        done = self.runs_done + share_done - share_before
        if self.total == 1 or done <= 0:
            return ""
        runs_left = self.total - self.position + 1 - share_done
        return f", all {clock(runs_left * (time.monotonic() - self.started) / done)} left"


def wide_terminal() -> bool:
    """Tell whether stderr is a terminal in which a bar has room."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns >= 40
    except OSError:
        return False


def clock(seconds: float) -> str:
    """Return `2:05` or `3:02:05`."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def hours_text(hours: float) -> str:
    """Return hours with as many digits as mean something."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def size_text(size_gb: float) -> str:
    """Return a size in GB or MB."""
    return f"{size_gb:,.1f} GB" if size_gb >= 1 else f"{1000 * size_gb:.1f} MB"


class Progress:
    """Shows a run's steps: `advance` after each, `write` for a line that stays."""

    every_s = 30.0  # between two lines in a file

    def __init__(self, name: str, total: int, done: int, sweep: SweepProgress) -> None:
        self.name, self.sweep = name, sweep
        self.total, self.done, self._start = total, done, done
        self._began = self._written = time.monotonic()
        self._counted_from = done, self._began  # steps and time, from which the time left is extrapolated
        self.bar = tqdm(
            total=total,
            initial=done,
            disable=not wide_terminal(),
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc}{postfix} |{bar}|",  # the bar gives way first where the terminal is narrow
            desc=sweep.prefix() + name,
        )

    def advance(self, note: str) -> None:
        """Count one step; `note` is what is known now (epoch, images/s, loss)."""
        self.done += 1
        if self.done == self._start + 1:  # it may have compiled the net for a minute
            self._counted_from = self.done, time.monotonic()
        self._show(1, f"{note}, {self._left()}", f"step {self.done}/{self.total}, ")

    def _show(self, count: int, note: str, position: str = "") -> None:
        """Move the bar on with a note, which a line has with the position, which the bar shows."""
        if not self.bar.disable:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self._written > self.every_s:
            self.write(f"{self.name}: {position}{note}")

    def write(self, line: str) -> None:
        """Write a line that stays; the next one about progress comes `every_s` later."""
        self._written = time.monotonic()
        self.sweep.write(line)

    def _left(self) -> str:
        done, since = self._counted_from
        if self.done == done:
            return "time left unknown"
        seconds = (time.monotonic() - since) * (self.total - self.done) / (self.done - done)
        return f"{clock(seconds)} left{self.sweep.left(self.done / self.total, self._start / self.total)}"

    def close(self) -> None:
        """Take the bar away, and count what was done."""
        self.sweep.runs_done += (self.done - self._start) / max(self.total, 1)
        self.bar.close()


class ImageProgress(Progress):
    """Progress counted in images, which are `opened`, or `done`."""

    every_s = 10.0

    def __init__(self, name: str, total: int, done: int, sweep: SweepProgress, verb: str) -> None:
        super().__init__(name, total, done, sweep)
        self.verb = verb

    def count(self, num_images: int, num_broken: int = 0) -> None:
        """Count images; shows how many a second, the time left, and how many are broken."""
        self.done += num_images
        rate = (self.done - self._start) / max(time.monotonic() - self._began, 1e-9)
        note = f"{self.done}/{self.total} images {self.verb}, {rate:,.0f} images/s, {self._left()}"
        self._show(num_images, note + (f", {num_broken} broken" if num_broken else ""))
