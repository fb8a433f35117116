"""The cores that this process may use: by its affinity, and by its control group's quota, which no library counts."""

import math
import os
import random
from contextlib import suppress
from pathlib import Path


def affinity() -> list[int]:
    """Return the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def num_cores() -> int:
    """Return how many cores this process may use."""
    return max(1, math.ceil(min(len(affinity()), cgroup_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def usable_cores() -> list[int]:
    """Return as many cores as this process may use; under a quota any of them, since another group has others."""
    cores, number = affinity(), num_cores()
    return cores if number >= len(cores) else sorted(random.sample(cores, number))


def limit_threads() -> None:
    """Let libraries that are imported from now on take no more threads than a quota grants."""
    if num_cores() < len(affinity()):
        os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))


def cgroup_quota(membership: Path, root: Path) -> float:
    """Return the cores that control groups (version 2, or 1) grant this process; infinity where none has a limit."""
    quotas = [math.inf]
    with suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in ("", "cpu", "cpu,cpuacct"):
                continue
            here = root / controllers / group.lstrip("/")
            for folder in (here, *here.parents):  # a group has no more than those above it
                with suppress(OSError, ValueError):
                    quotas.append(_quota(folder))
                if folder == root:
                    break
    return min(quotas)


def _quota(folder: Path) -> float:
    """Return the cores of one control group. Raises OSError, ValueError where it names none (`max`, -1)."""
    if (folder / "cpu.max").exists():
        quota, period = (folder / "cpu.max").read_text().split()
    else:
        quota, period = ((folder / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
    return int(quota) / int(period) if int(quota) > 0 else math.inf
