"""Signals: a run that is asked to stop ends after the step it is in, saves, and may be resumed."""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Self, TypeVar

from roadmap.errors import StoppedEarly

T = TypeVar("T")
POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Stop:
    """Listens for INT, TERM and USR2 while it is entered; `check` raises StoppedEarly once one has come.

    A second INT interrupts at once. Outside the main thread, where Python takes no handlers, it listens to nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._earlier: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in POLITE}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def check(self) -> None:
        """Raise StoppedEarly if a signal has come."""
        if self.signal is not None:
            raise StoppedEarly(f"stopped by {self.signal.name}")

    def between(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches, and raise StoppedEarly between two of them if a signal has come."""
        for batch in batches:
            self.check()
            yield batch
