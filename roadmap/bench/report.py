"""`python -m roadmap.bench report`: how long a report takes, and how much memory, over synthetic run directories.

The default is both regimes of the roadmap with three seeds: 102 runs of 300 epochs, 50,000 bits each.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from roadmap import paper
from roadmap.bench.process import Usage, machine
from roadmap.files import write_json
from roadmap.runs.metrics import append_metrics
from roadmap.runs.schema import CONFIG, CORRECT, METRICS, STATUS, SUMMARY
from roadmap.text import ArgumentParser

REGIMES = ("tiny", "base")


def main(argv: Sequence[str]) -> int:
    """Write the runs, time the tables alone and the whole report, print a line each. Returns an exit code."""
    parser = ArgumentParser(prog="python -m roadmap.bench report", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of each of the 17 rows in two regimes; default: 3")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--images", type=int, default=50_000, help="validation images, a bit each")
    parser.add_argument("--steps", type=int, default=1, help="training lines an epoch (ImageNet, batch 4096: 312)")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        runs, out = Path(folder, "runs"), Path(folder, "report")
        count = write_runs(runs, args.seeds, args.epochs, args.images, args.steps)
        size = sum(path.stat().st_size for path in runs.rglob("*") if path.is_file()) / 2**20
        what = f"{args.epochs} epochs, {args.images} bits, {args.steps} training lines an epoch, {size:.0f} MiB"
        print(f"{count} runs, {what}; {machine()}", flush=True)
        for name, options in (("tables alone", ["--tables-only"]), ("whole report", [])):
            usage = Usage()
            for _ in range(args.repeats):
                usage.run([sys.executable, "-m", "roadmap.report", str(runs), "--out", str(out), *options])
            print(f"{name}: {usage}", flush=True)
    return 0


def write_runs(runs: Path, seeds: int, epochs: int, images: int, steps: int) -> int:
    """Write run directories as training leaves them, near the paper's accuracies; return how many."""
    rng = np.random.default_rng(0)
    difficulty = rng.random(images)
    count = 0
    for regime in REGIMES:
        for row in [row for row in paper.rows(regime).values() if row.adopted != "reference"]:
            for seed in range(seeds):
                correct = difficulty + 0.1 * rng.normal(size=images) < row.top1 / 100
                folder = runs / "roadmap" / f"{regime}-imagenet" / row.step / f"seed{seed}"
                write_run(folder, row, regime, seed, epochs, correct)
                append_metrics(folder / METRICS, list(metrics(epochs, steps, percent(correct))))
                count += 1
    return count


def write_run(folder: Path, row: paper.PaperRow, regime: str, seed: int, epochs: int, correct: np.ndarray) -> None:
    """Write a run directory's files but the metrics."""
    folder.mkdir(parents=True)
    recipe, top1 = "original" if row.step == "resnet" else "enhanced", percent(correct)
    names: dict[str, Any] = {
        "study": "roadmap",
        "cell": row.step,
        "step": row.step,
        "variant": None,
        "parent": row.parent,
    }
    names |= {"label": row.label, "seed": seed}
    config = names | {
        "regime": {"name": regime, "scale": "imagenet"},
        "model": {"depths": [3, 3, 9, 3]},
        "recipe": {"name": recipe, "epochs": epochs, "batch_size": 4096},
        "data": {"name": "imagenet", "image_size": 224},
    }
    summary = names | {"adopted": row.adopted, "regime": regime, "data": "imagenet", "recipe": recipe, "state": "done"}
    summary |= {"epoch": epochs, "epochs": epochs, "top1": top1, "top5": min(100.0, top1 + 15), "image_size": 224}
    summary |= {"val_images": len(correct), "batch_size": 4096, "gmacs": row.gmacs, "params_m": 5 * row.gmacs}
    summary |= {"train_images_per_s": 9e3 / row.gmacs, "gpu_hours": 30 * row.gmacs, "peak_memory_gb": 2 * row.gmacs}
    summary |= {"hardware": "none: synthetic", "code_hash": "0" * 16}
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    write_json(folder / SUMMARY, summary)
    write_json(folder / STATUS, {"state": "done", "git_commit": "0" * 40, "git_dirty": False, "starts": 1})
    np.save(folder / CORRECT, np.packbits(correct))


def metrics(epochs: int, steps: int, top1: float) -> Iterator[dict[str, Any]]:
    """Yield a run's rows: `steps` of training an epoch, and an evaluation."""
    train = {"train/lr": 0.004, "train/loss": 3.14159265358979, "train/grad_norm": 1.23456789012345}
    train |= {"time_s": 12345.678, "train/images_per_s": 2345.6, "train/data_wait": 0.0123, "train/memory_gb": 12.345}
    for epoch in range(1, epochs + 1):
        for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
            yield {"kind": "train", "epoch": epoch, "global_step": step, **train}
        reached = top1 * (1 - 0.7 ** (1 + 20 * epoch / epochs)) if epoch < epochs else top1
        values = {"val/loss": 1.0, "val/top1": reached, "val/top5": min(100.0, reached + 15)}
        yield {"kind": "val", "epoch": epoch, "global_step": epoch * steps, "time_s": 1.0, **values}


def percent(correct: np.ndarray) -> float:
    """Return the accuracy in percent, from a whole number of images."""
    return 100.0 * int(correct.sum()) / len(correct)
