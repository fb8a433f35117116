"""Time several candidates in one process, in turn: A B C, A B C, and so on, so that a busy machine is busy for all of them.

A candidate is built and warmed up before the first measurement, and all stay built until the last. One that fails (no memory, no
compiler, no such net) is kept with its reason, and the others go on. Used by every benchmark of speed.
"""

import ctypes
import gc
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from roadmap.distributed.device import peak_memory_gb, reset_peak_memory
from roadmap.errors import RoadmapError

# What is timed. It may return its own seconds, where a part of it (the start of worker processes) is not to count.
Call = Callable[[], float | None]


BOUND = "bound"  # in place of a library: not a rival, but what none can pass


@dataclass(frozen=True)
class Candidate:
    """One side of a comparison."""

    name: str
    start: Callable[[], Call]  # builds what is measured
    images: int  # of one call
    peer: str | None = None  # the library, where it is not ours; or BOUND


@dataclass
class Result:
    """What came of a candidate."""

    name: str
    images: int
    peer: str | None = None
    times_s: list[float] = field(default_factory=list)  # one a call, in the order of the rounds
    memory_gb: float | None = None  # peak of a call in GiB, what the other candidates hold taken off
    failed: str | None = None  # the reason, in one line
    trace: str | None = None

    @property
    def median_s(self) -> float:
        """Return the median seconds of a call."""
        return float(np.median(self.times_s))

    @property
    def images_per_s(self) -> float:
        """Return the images of a second, by the median."""
        return self.images / self.median_s

    def spread_s(self) -> tuple[float, float]:
        """Return the 10th and the 90th percentile of a call's seconds."""
        low, high = np.percentile(self.times_s, (10, 90))
        return float(low), float(high)


def speed_ratio(one: Result, other: Result) -> tuple[float, float, float]:
    """Return how many times as fast as `other` `one` is: median, 10th and 90th percentile of the ratios of each round."""
    rounds = [(b / other.images) / (a / one.images) for a, b in zip(one.times_s, other.times_s, strict=True)]
    median, low, high = np.percentile(rounds, (50, 10, 90))
    return float(median), float(low), float(high)


def measure(candidates: Sequence[Candidate], device: torch.device, *, repeats: int, warm_up: int) -> list[Result]:
    """Build and warm up all candidates, then time each of them `repeats` times, in turn."""
    sides = [Side(candidate, device) for candidate in candidates]
    for side in sides:
        side.attempt(partial(side.begin, warm_up))
    for _ in range(repeats):
        for side in sides:
            side.attempt(side.time)
    results = [side.result for side in sides]
    for side in sides:
        side.call = None
    free(device)
    return results


class Side:
    """A candidate at work."""

    def __init__(self, candidate: Candidate, device: torch.device) -> None:
        self.candidate, self.device = candidate, device
        self.call: Call | None = None
        self.result = Result(candidate.name, candidate.images, candidate.peer)

    def attempt(self, act: Callable[[], None]) -> None:
        """Do something unless the candidate has failed; note the reason if it fails now."""
        if self.result.failed is not None:
            return
        try:
            act()
        except Exception as error:  # whatever a library raises: the others shall go on, and the reason is shown
            told = " ".join(str(error).split()) or "no reason given"
            self.result.failed = told if isinstance(error, RoadmapError) else f"{type(error).__name__}: {told}"
            self.result.trace = traceback.format_exc()
            self.result.times_s.clear()
            self.call = None
        if self.result.failed is not None:
            free(self.device)  # outside the handler: there the error still holds what was built

    def begin(self, warm_up: int) -> None:
        """Build it, call it until it is warm, and once more for its memory: what warming up needs for itself does not count."""
        free(self.device)
        before = memory_gb(self.device)
        reset_peak_memory(self.device)
        self.call = self.candidate.start()
        built_gb = peak_memory_gb(self.device)  # a captured graph has its memory from here on
        for _ in range(warm_up):
            self.call()
        wait_for(self.device)
        free(self.device)
        reset_peak_memory(self.device)
        self.call()
        wait_for(self.device)
        if before is not None:
            self.result.memory_gb = max(built_gb, peak_memory_gb(self.device)) - before

    def time(self) -> None:
        """Call it once and keep the seconds."""
        assert self.call is not None
        self.result.times_s.append(seconds(self.device, self.call))


def seconds(device: torch.device, call: Call) -> float:
    """Return the seconds of a call, by the device's own events on a GPU; or what the call itself says."""
    if device.type != "cuda":
        began = time.perf_counter()
        own = call()
        return time.perf_counter() - began if own is None else own
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    own = call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3 if own is None else own


def wait_for(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_gb(device: torch.device) -> float | None:
    """Return the memory held now in GiB: of the GPU, or of this process on the CPU; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**30
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    except OSError:
        return None


def free(device: torch.device) -> None:
    """Give back what nobody holds any more, so that the next peak is of its owner's making."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps what is freed
        trim(0)
