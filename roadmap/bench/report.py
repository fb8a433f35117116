"""`python -m roadmap.bench report`: how long a report takes, and how much memory, over run directories that it makes up.

The default is both regimes of the roadmap with three seeds: 102 runs of 300 epochs, 50,000 bits each.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from roadmap import paper
from roadmap.runs import schema

REGIMES = ("tiny", "base")


@dataclass(frozen=True)
class Measured:
    """One report: seconds of wall time and of processor time (less on a busy machine), GiB of the largest resident set."""

    time_s: float
    cpu_s: float
    memory_gb: float


def main(words: Sequence[str]) -> int:
    """Make the runs, time the tables alone and the whole report, print a line each."""
    parser = argparse.ArgumentParser(prog="python -m roadmap.bench report", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each of the 17 rows in two regimes (default: 3)")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--images", type=int, default=50_000, help="validation images, a bit each")
    parser.add_argument(
        "--steps", type=int, default=1, help="training lines an epoch (ImageNet at a batch of 4096: 312)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", help="where to make the runs (default: the system's temporary folder)")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        runs, out = Path(folder, "runs"), Path(folder, "report")
        count = make_runs(runs, args.seeds, args.epochs, args.images, args.steps)
        size = sum(path.stat().st_size for path in runs.rglob("*") if path.is_file()) / 2**20
        print(
            f"{count} runs, {args.epochs} epochs, {args.images} bits, {args.steps} training lines an epoch, {size:.0f} MiB; {machine()}"
        )
        for name, options in (("tables alone", ["--tables-only"]), ("whole report", [])):
            found = [measure(runs, out, options) for _ in range(args.repeats)]
            times, cpu = spread([item.time_s for item in found]), spread([item.cpu_s for item in found])
            print(
                f"{name}: {times} s, {cpu} s of processor time, at most {max(item.memory_gb for item in found):.2f} GiB"
            )
    return 0


def make_runs(runs: Path, seeds: int, epochs: int, images: int, steps: int) -> int:
    """Write run directories as training leaves them, near the paper's accuracies; return how many."""
    rng = np.random.default_rng(0)
    hard = rng.random(images)
    count = 0
    for regime in REGIMES:
        for row in paper.rows(regime).values():
            for seed in range(seeds if row.adopted != "reference" else 0):
                correct = hard + 0.1 * rng.normal(size=images) < row.top1 / 100
                write_run(
                    runs / "roadmap" / f"{regime}-imagenet" / row.step / f"seed{seed}",
                    row,
                    regime,
                    seed,
                    epochs,
                    steps,
                    correct,
                )
                count += 1
    return count


def write_run(
    folder: Path, row: paper.PaperRow, regime: str, seed: int, epochs: int, steps: int, correct: np.ndarray
) -> None:
    """Write one run directory."""
    folder.mkdir(parents=True)
    top1 = 100.0 * int(correct.sum()) / len(correct)
    recipe = "original" if row.step == "resnet" else "enhanced"
    names: dict[str, object] = {
        "study": "roadmap",
        "cell": row.step,
        "step": row.step,
        "variant": None,
        "parent": row.parent,
        "label": row.label,
    }
    values = {
        **names,
        "adopted": row.adopted,
        "regime": regime,
        "data": "imagenet",
        "recipe": recipe,
        "seed": seed,
        "epochs": epochs,
    }
    costs = {
        "gmacs": row.gmacs,
        "params_m": 5 * row.gmacs,
        "train_images_per_s": 9e3 / row.gmacs,
        "gpu_hours": 30 * row.gmacs,
    }
    about = {
        "image_size": 224,
        "batch_size": 4096,
        "peak_memory_gb": 2 * row.gmacs,
        "hardware": "made up",
        "code_hash": "0" * 16,
    }
    result = {"top1": top1, "top5": min(100.0, top1 + 15), "val_images": len(correct), "epoch": epochs, "state": "done"}
    config: dict[str, object] = {
        **names,
        "seed": seed,
        "regime": {"name": regime, "scale": "imagenet"},
        "model": {"depths": [3, 3, 9, 3]},
    }
    config |= {
        "recipe": {"name": recipe, "epochs": epochs, "batch_size": 4096},
        "data": {"name": "imagenet", "image_size": 224},
    }
    (folder / schema.CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / schema.SUMMARY).write_text(json.dumps(values | costs | about | result))
    (folder / schema.STATUS).write_text(
        json.dumps({"state": "done", "git_commit": "0" * 40, "git_dirty": False, "starts": 1})
    )
    np.save(folder / schema.CORRECT, np.packbits(correct))
    with open(folder / schema.METRICS, "w", encoding="utf-8") as out:
        for epoch in range(1, epochs + 1):
            for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
                out.write(
                    f'{{"kind": "train", "epoch": {epoch}, "global_step": {step}, "train/lr": 0.004, "train/loss": 3.14159265358979, '
                    '"train/grad_norm": 1.23456789012345, "time_s": 12345.678, "train/images_per_s": 2345.6, "train/data_wait": 0.0123, '
                    '"train/memory_gb": 12.345}\n'
                )
            reached = top1 * (1 - 0.7 ** (1 + 20 * epoch / epochs)) if epoch < epochs else top1
            row_of_epoch = {"val/loss": 1.0, "val/top1": reached, "val/top5": min(100.0, reached + 15)}
            out.write(
                json.dumps({"kind": "val", "epoch": epoch, "global_step": epoch * steps, "time_s": 1.0, **row_of_epoch})
                + "\n"
            )


def measure(runs: Path, out: Path, options: Sequence[str]) -> Measured:
    """Run the command once, in a process of its own."""
    command = [sys.executable, "-m", "roadmap.report", str(runs), "--out", str(out), *options]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"the report ended with {process.returncode}")
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)


def spread(values: Sequence[float]) -> str:
    """Return `1.92 ± 0.03 (n = 3)`."""
    std = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{std} (n = {len(values)})"


def machine() -> str:
    """Return what it was measured on."""
    return f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}"
