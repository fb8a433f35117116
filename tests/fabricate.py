"""Run directories made up for the tests of the report, written with the ledger's own functions."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from roadmap import files, paper
from roadmap.report import aggregate, collect
from roadmap.report.analyse.cells import Group
from roadmap.runs import metrics, schema

CONFIG = """\
step: {step}
cell: {cell}
study: {study}
seed: {seed}
regime:
  name: {regime}
recipe:
  epochs: {epochs}
data:
  image_size: {image_size}
"""


def write_run(
    runs: Path,
    step: str = "resnet",
    seed: int = 0,
    *,
    top1: float | None = 50.0,
    study: str = "roadmap",
    regime: str = "nano",
    data: str = "digits",
    cell: str | None = None,
    epochs: int = 3,
    state: str = "done",
    status: dict[str, Any] | None = None,
    config: str = "",
    correct: np.ndarray | None = None,
    by_image: tuple[np.ndarray, np.ndarray] | None = None,
    **summary: Any,
) -> Path:
    """Write one run directory and return it; `summary` and `status` replace or add keys, `config` adds lines.

    `correct (N,)` of bool says which images are right; the accuracy then is theirs. `by_image` says it instead: of
    each image the class that came first, and its own.
    """
    if by_image is not None:
        correct = by_image[0] == by_image[1]
        summary = {"num_classes": 1 + int(max(array.max() for array in by_image))} | summary
    if correct is not None:
        top1 = 100.0 * int(correct.sum()) / len(correct)
        summary = {"val_images": len(correct)} | summary
    row = paper.rows(regime if regime in paper.TABLES else "tiny").get(step)
    values: dict[str, Any] = {
        "study": study, "cell": cell or step, "step": step, "variant": None, "parent": row.parent if row else None,
        "label": paper.label(step, regime) or step, "adopted": row.adopted if row else "yes", "regime": regime,
        "data": data, "recipe": "original" if step == "resnet" else "enhanced", "seed": seed, "top1": top1,
        "top5": None if top1 is None else min(100.0, top1 + 15), "epoch": epochs, "epochs": epochs,
        "image_size": 224 if data == "imagenet" else 32, "gmacs": row.gmacs if row else 4.2, "params_m": 28.6,
        "train_images_per_s": 1000.0, "gpu_hours": 0.5, "peak_memory_gb": 2.0, "state": state,
        "hardware": "a CPU with two cores", "versions": {"torch": "2.14.0"},
    }  # fmt: skip
    folder = runs / study / f"{regime}-{data}" / values["cell"] / f"seed{seed}"
    folder.mkdir(parents=True)
    resolved = yaml.safe_load(CONFIG.format(**(values | {"epochs": epochs})) + config)
    for change in re.split(r",(?=[A-Za-z_.]+=)", values["cell"])[1:]:  # what the name says was overridden
        key, _, value = change.partition("=")
        part, _, name = key.rpartition(".")
        (resolved.setdefault(part, {}) if part else resolved)[name] = yaml.safe_load(value)
    (folder / schema.CONFIG).write_text(yaml.safe_dump(resolved, sort_keys=False))
    if correct is not None:
        np.save(folder / schema.CORRECT, np.packbits(correct))
    if by_image is not None:
        dtype = np.min_scalar_type(summary["num_classes"] - 1)
        for name, array in zip((schema.PREDICTIONS, schema.LABELS), by_image, strict=True):
            np.save(folder / name, array.astype(dtype))
    rows = []
    for epoch in range(1, epochs + 1):
        at = {"epoch": epoch, "global_step": epoch * 10}
        rows.append({"kind": "train", **at, "time_s": 1.0 * epoch, "train/loss": 1.0})
        reached = None if top1 is None else top1 * epoch / epochs
        top5 = None if reached is None else min(100.0, reached + 15)
        rows.append({"kind": "val", **at, "val/loss": 1.0, "val/top1": reached, "val/top5": top5})
    metrics.append_metrics(folder / schema.METRICS, rows)
    files.write_json(folder / schema.SUMMARY, values | summary)
    about = {"state": state, "epoch": epochs, "step": epochs * 10, "git_commit": "c0ffee"} | (status or {})
    files.write_json(folder / schema.STATUS, about)
    return folder


def groups_of(*folders: Path | str) -> list[Group]:
    """Return what the report makes of the runs below some folders."""
    return aggregate(collect(folders).runs)


def unfinished(
    runs: Path, step: str, seed: int = 0, *, epoch: int = 7, epochs: int = 20, state: str = "stopped", **more: Any
) -> Path:
    """Write a run that was stopped: no summary."""
    folder = write_run(runs, step, seed, epochs=epochs, state=state, status={"epoch": epoch}, **more)
    (folder / schema.SUMMARY).unlink()
    return folder


def write_roadmap(runs: Path, regime: str = "tiny", data: str = "imagenet", seeds: int = 3, **more: Any) -> None:
    """Write the whole roadmap of a regime: the paper's numbers, moved a little for every row and seed."""
    for row in paper.rows(regime if regime in paper.TABLES else "tiny").values():
        for seed in range(seeds):
            moved = row.top1 + 0.09 * ((row.order * 7 + seed * 3) % 5 - 2) - 0.1
            write_run(runs, row.step, seed, top1=moved, regime=regime, data=data, **more)
