"""`metrics.jsonl`, the ledger of a run: one JSON object a line, of kind `train` (a step) or `val` (an evaluation)."""

import itertools
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roadmap.files import atomic_write, finite_or_null
from roadmap.runs.schema import METRICS

KINDS = ("train", "val")
STEP = re.compile(rb'"global_step": ([0-9]{1,12})[,}]')
NO_LOSS = (b'"train/loss": null', b'"train/loss": NaN')


@dataclass
class Metrics:
    """What a ledger holds: its rows in order, and what is wrong with it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    bad_lines: list[int] = field(default_factory=list)  # counted from 1
    torn: bool = False  # the last line has no end: a writer died in it
    lost_loss: bool = False  # a training loss was not a number
    steps: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # kind -> steps, in their order

    @property
    def problem(self) -> str:
        """Return what is wrong with the ledger of a run that has ended, or nothing."""
        if self.bad_lines or self.torn:
            shown = ", ".join(map(str, self.bad_lines[:5])) or "last"
            return f"{METRICS}: {len(self.bad_lines) + self.torn} corrupt line(s) ({shown})"
        if self.lost_loss:
            return f"{METRICS}: holds a training loss that is not a number"
        for kind, steps in self.steps.items():
            if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
                return f"{METRICS}: {kind} rows are not in the order of their steps, or are there twice"
        return ""


def append_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a ledger, one JSON object a line, and make them durable. Raises OSError."""
    with open(path, "a", encoding="utf-8") as out:
        out.writelines(json.dumps(finite_or_null(row), allow_nan=False) + "\n" for row in rows)
        out.flush()
        os.fsync(out.fileno())


def read_metrics(path: Path, *, train: bool = True) -> Metrics:
    """Read a ledger; lines that are not JSON objects are counted, not guessed. Raises OSError.

    Without `train` the many lines of training are checked for their form and step, and not decoded: six times as fast.
    """
    data = path.read_bytes()
    lines = data.split(b"\n")
    metrics = Metrics(torn=lines.pop() != b"", lost_loss=any(loss in data for loss in NO_LOSS))
    for number, line in enumerate(lines, 1):
        if not train and (step := _train_step(line)) is not None:
            metrics.steps["train"].append(step)
        elif (row := _row(line)) is None:
            metrics.bad_lines.append(number)
        else:
            metrics.steps[row["kind"]].append(row["global_step"])
            if train or row["kind"] == "val":
                metrics.rows.append(row)
    return metrics


def _train_step(line: bytes) -> int | None:
    """Return the step of a training line that has the form of `append_metrics`, else None."""
    if not (line.startswith(b'{"kind": "train"') and line.endswith(b"}") and line.count(b"{") == 1):
        return None
    found = STEP.search(line)
    return int(found[1]) if found else None


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(row, dict) and isinstance(row.get("global_step"), int) and row.get("kind") in KINDS
    return row if valid else None


def truncate_metrics(path: Path, global_step: int, epochs_evaluated: int) -> None:
    """Drop what came after a checkpoint (it will be written again) and any torn or bad line. Raises OSError."""
    if not path.exists():
        return
    kept = [
        row
        for row in read_metrics(path).rows
        if (row["global_step"] <= global_step if row["kind"] == "train" else row["epoch"] <= epochs_evaluated)
    ]
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
