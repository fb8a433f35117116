"""What a benchmark of speed shows: a Markdown table on the terminal, row by row, and a JSON file with every time."""

import os
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roadmap.bench.measure import Candidate, best_against_peers, speed_ratio
from roadmap.errors import ConfigError
from roadmap.files import disk_errors, write_json
from roadmap.runs import provenance

Bounds = Mapping[str, float]  # images/s that nothing can exceed, by what sets them
HEAD = ("row", "candidate", "images/s", "ms", "10th to 90th", "x baseline", "GiB")


class Results:
    """A benchmark's table and record. The file is rewritten after each row: an interrupted one keeps them."""

    def __init__(
        self, name: str, argv: Sequence[str], device: torch.device, args: Namespace, how: str = "", **settings: Any
    ) -> None:
        """Print what is measured, where and how. Raises DiskError if `--json` cannot be written."""
        self.file: Path | None = args.json
        self.rows: list[dict[str, Any]] = []
        self.head: tuple[str, ...] = ()  # of the table that is being printed
        given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        self.record: dict[str, Any] = {
            "benchmark": name,
            "command": shlex.join(["python", "-m", "roadmap.bench", name, *argv]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **provenance.git_state(),
            "hardware": (found := hardware(device)),
            "versions": provenance.versions(),
            "settings": given | settings,
            "rows": self.rows,
        }
        self.write()
        packages = ", ".join(f"{package} {number}" for package, number in self.record["versions"].items())
        print(f"{found['hardware']}, {found['cpu']}, {found['cores']} cores, {found['threads']} threads; {packages}")
        if how or "repeats" in given:
            in_turn = f"n = {args.repeats}, in turn, after {args.warm_up} to warm up; median, 10th and 90th percentile;"
            print(how or in_turn)
            print("x baseline: how many times as fast as the row's first, round by round", flush=True)

    def note(self, key: str, value: Any, line: str) -> None:
        """Add a value to the record, next to the rows, and print a line about it."""
        self.record[key] = value
        self.write()
        print(line, flush=True)

    def add(self, row: str, candidates: Sequence[Candidate], bounds: Bounds | None = None) -> None:
        """Add a row: print a line for each candidate, and how ours at its best compares with the best peer."""
        bounds = dict(bounds or {})
        head = (*HEAD, *(f"{name} bound" for name in bounds), *(["share"] if bounds else []))
        if self.head != head:
            self.head = head
            print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        baseline = next((c for c in candidates if c.failed is None), None)
        entries = [entry(candidate, baseline, bounds) for candidate in candidates]
        for found in entries:
            print("| " + " | ".join([row, *cells(found, bounds)]) + " |", flush=True)
        against = None
        if best := best_against_peers(candidates):
            against = {"ours": best[0].name, "peer": best[1].name, "ratio": speed_ratio(*best)}
            median, low, high = against["ratio"]
            ratio = f"{median:.2f} ({low:.2f} to {high:.2f}) x as fast as {against['peer']}"
            print(f"{row}: {against['ours']} is {ratio}, the best peer", flush=True)
        about = {"row": row, "bounds_images_per_s": bounds, "candidates": entries, "against_best_peer": against}
        self.rows.append(about)
        self.write()

    def write(self) -> None:
        """Write the record. Raises DiskError."""
        if self.file is not None:
            with disk_errors(self.file):
                write_json(self.file, self.record)

    def require_any(self) -> None:
        """Raise ConfigError, with the last reason, if no candidate at all could be measured."""
        entries = [found for row in self.rows for found in row["candidates"]]
        if all(found["failed"] for found in entries):
            why = f"{entries[-1]['candidate']}: {entries[-1]['failed']}" if entries else "no library has such a net"
            raise ConfigError(f"nothing could be measured; {why}")


def entry(candidate: Candidate, baseline: Candidate | None, bounds: Bounds) -> dict[str, Any]:
    """Return a candidate's part of the record."""
    about: dict[str, Any] = {"candidate": candidate.name, "peer": candidate.peer, "images_a_call": candidate.images}
    about["failed"] = candidate.failed
    if candidate.failed is not None or baseline is None:
        return about | {"trace": candidate.trace}
    p10, median, p90 = np.percentile(candidate.times_s, (10, 50, 90)).tolist()
    return about | {
        "images_per_s": candidate.images_per_s,
        "median_s": median,
        "p10_s": p10,
        "p90_s": p90,
        "ratio_to_baseline": speed_ratio(candidate, baseline),
        "peak_memory_gb": candidate.memory_gb,
        "share_of_bound": candidate.images_per_s / min(bounds.values()) if bounds else None,
        "times_s": candidate.times_s,
    }


def cells(found: Mapping[str, Any], bounds: Bounds) -> list[str]:
    """Return the cells of a candidate's line."""
    if found["failed"]:
        return [found["candidate"], f"failed: {found['failed'].replace('|', '/')[:160]}"]
    spread = f"{1e3 * found['p10_s']:.1f} to {1e3 * found['p90_s']:.1f}"
    speed, memory = found["images_per_s"], found["peak_memory_gb"]
    line = [found["candidate"], rate(speed), f"{1e3 * found['median_s']:.1f}", spread]
    line += [f"{found['ratio_to_baseline'][0]:.2f}", "-" if memory is None else f"{memory:.2f}"]
    line += [rate(value) for value in bounds.values()]
    return [*line, f"{100 * found['share_of_bound']:.0f} %"] if bounds else line


def rate(value: float) -> str:
    """Return images/s with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the hardware of the measurement."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    libraries = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if device.type == "cuda" else {}
    cpu = {"cpu": names[0] if names else "unknown processor", "cores": os.cpu_count()}
    return provenance.hardware(device) | {"device": device.type} | cpu | libraries
