"""Time several candidates in one process, in turn (A B C, A B C, ...), so that other load affects all of them.

All candidates are built and warmed up before the first measurement, and stay built until the last. One that fails (no
memory, no compiler, no such net) keeps its reason, and the others go on. (`torch.utils.benchmark` times one statement
after the other.)
"""

import ctypes
import gc
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from roadmap.distributed.device import peak_memory_gb, reset_peak_memory
from roadmap.errors import RoadmapError
from roadmap.text import one_line

Call = Callable[[], object]  # what is timed
BOUND = "bound"  # in place of a library: not a rival, but a limit for all


@dataclass
class Candidate:
    """One side of a comparison, and what was measured of it."""

    name: str
    images: int  # of one call
    build: Callable[[], Call]
    peer: str | None = None  # the library, where it is not ours; or BOUND
    times_s: list[float] = field(default_factory=list)  # one a call, in the order of the rounds
    memory_gb: float | None = None  # peak of a call in GiB, less what the other candidates have
    failed: str | None = None  # the reason, in one line
    trace: str | None = None
    call: Call | None = None

    @property
    def images_per_s(self) -> float:
        """Return the images of a second, by the median."""
        return self.images / float(np.median(self.times_s))

    def attempt(self, action: Callable[[], None], device: torch.device) -> None:
        """Run an action unless the candidate has failed; keep the reason if it fails now."""
        if self.failed is not None:
            return
        try:
            action()
        except Exception as error:  # whatever a library raises: the others go on, and the reason is shown
            known = isinstance(error, RoadmapError)
            self.failed = str(error) if known else f"{type(error).__name__}: {one_line(error)}"
            self.trace, self.call = traceback.format_exc(), None
            self.times_s.clear()
        if self.failed is not None:
            free_memory(device)  # outside the handler: there the error still has what was built

    def prepare(self, device: torch.device, warm_up: int) -> None:
        """Build and warm it up, and call it once more to measure its memory, without that of the warm-up."""
        free_memory(device)
        reset_peak_memory(device)
        before_gb = peak_memory_gb(device)
        self.call = self.build()
        built_gb = peak_memory_gb(device)  # a captured graph has its memory from here on
        for _ in range(warm_up):
            self.call()
        synchronize(device)
        free_memory(device)
        reset_peak_memory(device)
        self.call()
        synchronize(device)
        self.memory_gb = max(built_gb, peak_memory_gb(device)) - before_gb

    def time(self, device: torch.device) -> None:
        """Call it once and keep the seconds."""
        assert self.call is not None
        self.times_s.append(seconds(device, self.call))


def measure(
    candidates: Sequence[Candidate], device: torch.device, *, repeats: int, warm_up: int,
    gate: Callable[[], object] | None = None,
) -> None:  # fmt: skip
    """Build and warm up all candidates, pass a gate, then time each of them `repeats` times, in turn."""
    for candidate in candidates:
        candidate.attempt(partial(candidate.prepare, device, warm_up), device)
    if gate is not None:
        gate()
    for _ in range(repeats):
        for candidate in candidates:
            candidate.attempt(partial(candidate.time, device), device)
    for candidate in candidates:
        candidate.call = None
    free_memory(device)


def speed_ratio(one: Candidate, other: Candidate) -> tuple[float, float, float]:
    """Return how many times as fast as `other` `one` is: median, 10th and 90th percentile of the rounds' ratios."""
    # A pipeline whose time was up has fewer rounds.
    rounds = [(b / other.images) / (a / one.images) for a, b in zip(one.times_s, other.times_s, strict=False)]
    median, low, high = np.percentile(rounds, (50, 10, 90)).tolist()
    return median, low, high


def best_against_peers(candidates: Sequence[Candidate]) -> tuple[Candidate, Candidate] | None:
    """Return ours at its best and the best peer; None where one side is missing."""
    measured = [c for c in candidates if c.failed is None]
    ours = max((c for c in measured if c.peer is None), key=lambda c: c.images_per_s, default=None)
    peer = max((c for c in measured if c.peer not in (None, BOUND)), key=lambda c: c.images_per_s, default=None)
    return None if ours is None or peer is None else (ours, peer)


def seconds(device: torch.device, call: Call) -> float:
    """Return the seconds of a call, by the device's own events on a GPU."""
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Free unreferenced memory, so that the next peak belongs to the candidate measured next."""
    gc.collect()
    if device.type == "cuda":
        with suppress(torch.AcceleratorError):  # after a device's first error, which is the one to tell, all calls fail
            torch.cuda.empty_cache()
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps what is freed
        trim(0)
