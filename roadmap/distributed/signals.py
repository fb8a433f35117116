"""Signals: a run that is asked to stop ends after the step it is in, saves, and may be resumed."""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Self, TypeVar

from roadmap.distributed.ranks import Ranks
from roadmap.errors import StoppedEarly

T = TypeVar("T")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class StopSignal:
    """Listens for INT, TERM and USR2 while it is entered; once one has come to any rank `raise_if_set` raises.

    A second INT interrupts at once, unless there are other ranks to agree with. Outside the main thread, where Python
    takes no handlers, it listens to nothing.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.signal: signal.Signals | None = None
        self._earlier: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a rank starts with them blocked
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number and self.ranks.world_size == 1:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def raise_if_set(self, save_due: bool = False) -> bool:
        """Raise StoppedEarly if a signal has come to any rank; return whether any of them finds a checkpoint due."""
        number, due = self.ranks.all_reduce_max(self.signal or 0, int(save_due))
        if number:
            raise StoppedEarly(f"stopped by {signal.Signals(number).name}")
        return bool(due)

    def stoppable(self, batches: Iterable[T], rounds: int) -> Iterator[T]:
        """Yield batches, and raise StoppedEarly between two of them if a signal has come.

        `rounds` is the number of batches of the rank that has the most: all check as often.
        """
        source = iter(batches)
        for _ in range(rounds):
            self.raise_if_set()
            batch = next(source, None)
            if batch is not None:
                yield batch
