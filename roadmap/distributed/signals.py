"""Signals: a run that is asked to stop ends after the step it is in, saves, and may be resumed.

Asked to stop are INT (Ctrl-C), QUIT (Ctrl-backslash), TERM, HUP (the terminal is gone), USR1, USR2 and XCPU
(schedulers' notices). One that was ignored when the process started, as by `nohup`, stays ignored.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Self, TypeVar

from roadmap.errors import StoppedEarly

if TYPE_CHECKING:
    from roadmap.distributed.ranks import Ranks

T = TypeVar("T")
KEYBOARD = {signal.SIGINT, signal.SIGQUIT}
STOP_SIGNALS = (*KEYBOARD, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
CUT_OFF = "cut off after its last checkpoint"
TWICE_S = 0.2  # `timeout` and terminals send a signal twice at once, to a process and to its group
STALL_S = 5.0  # how long a stop waits for images that do not come


def leave_at_once(code: int = StoppedEarly.code, *, silent: bool = False) -> None:
    """From here on, let a stop end this process at once with `code`: nothing has begun, or everything is done."""

    def leave(number: int, _: FrameType | None) -> None:
        if not silent:
            os.write(2, f"stopped by {signal.Signals(number).name}; run the same command again to continue\n".encode())
        for child in multiprocessing.active_children():
            child.kill()
        if scratch := os.environ.get("ROADMAP_SCRATCH"):
            shutil.rmtree(scratch, ignore_errors=True)
        with suppress(Exception):  # the signal may have come while something was printed
            sys.stdout.flush()
        os._exit(code)

    for number in not_ignored():
        signal.signal(number, leave)


def ignore_stops() -> None:
    """Ignore stops as the last act of a process: on its way out, Python restores the signals' defaults."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def not_ignored() -> list[signal.Signals]:
    """Return the signals that stop a run, except those that were ignored when the process started."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def blocked() -> Iterator[None]:
    """Block signals that stop a run while child processes start: these begin with them blocked.

    A child has its parent's handlers until it has set its own.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def in_thread(call: Callable[[], T]) -> T:
    """Call in another thread: this one answers signals meanwhile, which Python does not while torch waits in C++."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


class StopSignal:
    """While entered, listens for signals that stop a run; once any rank has received one, `raise_if_set` raises.

    Asked once more from the keyboard it raises KeyboardInterrupt at once, unless `interrupts` is False: then `again` is
    set. Outside the main thread, where Python takes no handlers, it listens to nothing.
    """

    def __init__(self, ranks: Ranks | None = None, *, interrupts: bool = True) -> None:
        self.ranks, self.interrupts, self.again = ranks, interrupts, False
        self.signal: signal.Signals | None = None
        self._came = 0.0
        self._waiting = False
        self._earlier: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in not_ignored()}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a rank starts with them blocked
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._came = signal.Signals(number), time.monotonic()
        elif number in KEYBOARD and not self.again and time.monotonic() - self._came > TWICE_S:
            self.again = True
            if self.interrupts:
                raise KeyboardInterrupt(CUT_OFF)
        if self._waiting:
            self._wait_no_longer()

    def _wait_no_longer(self) -> None:
        if signal.SIGALRM not in self._earlier:
            self._earlier[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._stalled)
        signal.setitimer(signal.ITIMER_REAL, STALL_S, STALL_S)  # again: Python drops what a destructor raises

    def _stalled(self, *_: object) -> None:
        if self._waiting:
            self.raise_here("while it waited for images")

    def raise_here(self, when: str) -> None:
        """Raise StoppedEarly if this rank has received a signal; the others are told."""
        if self.signal is not None:
            error = StoppedEarly(f"stopped by {self.signal.name}, {when}")
            error.on_all_ranks = False
            raise error

    def raise_if_set(self, save_due: bool = False) -> bool:
        """Raise StoppedEarly if any rank has received a signal; return whether a checkpoint is due on any of them."""
        flags = [self.signal or 0, int(save_due)]
        number, due = self.ranks.all_reduce_max(*flags) if self.ranks is not None else flags
        if number:
            raise StoppedEarly(f"stopped by {signal.Signals(number).name}")
        return bool(due)

    def interruptible(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches; once a signal has come, raise StoppedEarly where one does not come within `STALL_S`."""
        source = iter(batches)
        while True:
            self._waiting = True
            try:
                if self.signal is not None:
                    self._wait_no_longer()
                batch = next(source, None)
            finally:
                self._waiting = False
                if self.signal is not None:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            if batch is None:
                return
            yield batch

    def stoppable(self, batches: Iterable[T], rounds: int) -> Iterator[T]:
        """Yield batches, and raise StoppedEarly between two of them if a signal has come.

        `rounds` is the number of batches of the rank that has the most: all check as often.
        """
        source = self.interruptible(batches)
        for _ in range(rounds):
            self.raise_if_set()
            batch = next(source, None)
            if batch is not None:
                yield batch
