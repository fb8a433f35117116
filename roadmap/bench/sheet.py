"""What a benchmark of speed tells: a table in Markdown on the terminal, row by row, and a JSON file with everything that was measured."""

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from roadmap.bench.measure import BOUND, Result, speed_ratio
from roadmap.errors import ConfigError, DiskError
from roadmap.files import write_json
from roadmap.runs.provenance import git_state

LIBRARIES = ("torch", "torchvision", "timm", "triton", "numpy", "pillow")
Bounds = Mapping[str, float]  # images/s that nothing can exceed, by what sets them


class Sheet:
    """A benchmark's table and logger. The file is written anew after each row, so that an interrupted benchmark leaves what it has."""

    def __init__(
        self, benchmark: str, words: Sequence[str], device: torch.device, settings: Mapping[str, Any], file: Path | None
    ) -> None:
        """Print what and where. Raises DiskError where the file cannot be written, before anything is measured."""
        self.file = file
        self.rows: list[dict[str, Any]] = []
        self.headed: tuple[str, ...] | None = None  # the bounds of the table that is being printed
        self.record: dict[str, Any] = {
            "benchmark": benchmark,
            "command": shlex.join(["python", "-m", "roadmap.bench", benchmark, *words]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **git_state(),
            "hardware": machine(device),
            "versions": versions(),
            "settings": dict(settings),
            "rows": self.rows,
        }
        self.write()
        told = self.record["versions"]
        print(
            f"{hardware_line(self.record['hardware'])}; {', '.join(f'{name} {told[name]}' for name in told if told[name])}"
        )
        print(
            f"n = {settings['repeats']}, in turn, after {settings['warm_up']} to warm up; median, 10th and 90th percentile;"
        )
        print("x first: how many times as fast as the row's first, round by round", flush=True)

    def note(self, key: str, value: Any, line: str) -> None:
        """Put something beside the rows into the logger, and print a line about it."""
        self.record[key] = value
        self.write()
        print(line, flush=True)

    def add(self, row: str, results: Sequence[Result], bounds: Bounds | None = None) -> None:
        """Add a row: print a line for each candidate, and how ours at its best stands to the best peer."""
        bounds = dict(bounds or {})
        if self.headed != tuple(bounds):
            self.headed = tuple(bounds)
            head = [
                "row",
                "candidate",
                "images/s",
                "ms",
                "10th to 90th",
                "x first",
                "GiB",
                *(f"{name} bound" for name in bounds),
            ]
            head += ["share"] if bounds else []
            print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        first = next((result for result in results if result.failed is None), None)
        for result in results:
            print("| " + " | ".join([row, *cells(result, first, bounds)]) + " |", flush=True)
        against = best_against_peers(results)
        if against:
            print(
                f"{row}: {against['ours']} is {told_ratio(against['ratio'])} x as fast as {against['peer']}, the best peer",
                flush=True,
            )
        entries = [entry(result, first, bounds) for result in results]
        self.rows.append(
            {"row": row, "bounds_images_per_s": bounds, "candidates": entries, "against_best_peer": against}
        )
        self.write()

    def write(self) -> None:
        """Write the logger. Raises DiskError."""
        if self.file is None:
            return
        try:
            write_json(self.file, self.record)
        except OSError as error:
            raise DiskError(f"--json={self.file}: cannot be written ({error.strerror})") from None

    def check(self) -> None:
        """Raise ConfigError where not a single candidate could be measured, with the last one's reason."""
        entries = [entry for row in self.rows for entry in row["candidates"]]
        if all(entry["failed"] for entry in entries):
            raise ConfigError(f"nothing could be measured; {entries[-1]['candidate']}: {entries[-1]['failed']}")


def cells(result: Result, first: Result | None, bounds: Bounds) -> list[str]:
    """Return the cells of a candidate's line."""
    if result.failed is not None or first is None:
        reason = (result.failed or "").replace("|", "/")
        return [result.name, f"failed: {reason[:160]}"]
    low, high = result.spread_s()
    memory = "-" if result.memory_gb is None else f"{result.memory_gb:.2f}"
    found = [
        result.name,
        number(result.images_per_s),
        f"{1e3 * result.median_s:.1f}",
        f"{1e3 * low:.1f} to {1e3 * high:.1f}",
    ]
    found += [f"{speed_ratio(result, first)[0]:.2f}", memory, *(number(value) for value in bounds.values())]
    return found + ([f"{100 * result.images_per_s / min(bounds.values()):.0f} %"] if bounds else [])


def entry(result: Result, first: Result | None, bounds: Bounds) -> dict[str, Any]:
    """Return a candidate's part of the logger."""
    about: dict[str, Any] = {"candidate": result.name, "peer": result.peer, "images_a_call": result.images}
    if result.failed is not None or first is None:
        return about | {"failed": result.failed, "trace": result.trace}
    low, high = result.spread_s()
    return about | {
        "failed": None,
        "images_per_s": result.images_per_s,
        "median_s": result.median_s,
        "p10_s": low,
        "p90_s": high,
        "ratio_to_first": speed_ratio(result, first),
        "peak_memory_gb": result.memory_gb,
        "share_of_bound": result.images_per_s / min(bounds.values()) if bounds else None,
        "times_s": result.times_s,
    }


def best_against_peers(results: Sequence[Result]) -> dict[str, Any] | None:
    """Compare ours at its best with the best peer, round by round; None where one side is missing."""
    measured = [result for result in results if result.failed is None]
    ours = max((r for r in measured if r.peer is None), key=lambda r: r.images_per_s, default=None)
    peer = max((r for r in measured if r.peer not in (None, BOUND)), key=lambda r: r.images_per_s, default=None)
    if ours is None or peer is None:
        return None
    return {"ours": ours.name, "peer": peer.name, "ratio": speed_ratio(ours, peer)}


def told_ratio(ratio: tuple[float, float, float]) -> str:
    """Return `1.05 (1.02 to 1.09)`."""
    return f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"


def number(value: float) -> str:
    """Return a rate with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine(device: torch.device) -> dict[str, Any]:
    """Return what it is measured on."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "gpu": gpu.name if gpu else None,
        "gpu_memory_gb": gpu.total_memory / 2**30 if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def hardware_line(found: Mapping[str, Any]) -> str:
    """Return the machine in words."""
    cpu = f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads"
    return f"{found['gpu']} (CUDA {found['cuda']}), {cpu}" if found["gpu"] else cpu


def versions() -> dict[str, str | None]:
    """Return the versions of what the speed depends on; None for what is not there (triton, on a CPU build)."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
