"""What a command costs: seconds, processor time and memory of a process of its own, over several runs."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from roadmap.steps.tree import CONF


@dataclass
class Usage:
    """Of each run of a command: seconds, those of the processor (less on a busy machine), GiB of resident memory."""

    time_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    memory_gb: list[float] = field(default_factory=list)

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Run the command once, from the checkout. Raises RuntimeError where it fails."""
        began = time.monotonic()
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, cwd=CONF.parent)
        _, status, resources = os.wait4(process.pid, 0)
        self.time_s.append(time.monotonic() - began)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        self.cpu_s.append(resources.ru_utime + resources.ru_stime)
        self.memory_gb.append(resources.ru_maxrss / 2**20)

    def __str__(self) -> str:
        """Return `1.92 ± 0.03 (n = 3) s, 1.80 ± 0.02 (n = 3) s of processor time, at most 0.31 GiB`."""
        times, cpu = mean_and_std(self.time_s), mean_and_std(self.cpu_s)
        return f"{times} s, {cpu} s of processor time, at most {max(self.memory_gb):.2f} GiB"


def mean_and_std(values: Sequence[float]) -> str:
    """Return `1.92 ± 0.03 (n = 3)`."""
    std = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{std} (n = {len(values)})"


def machine() -> str:
    """Return what it is measured on."""
    return f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}"
