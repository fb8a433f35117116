"""The ledger of a run, `metrics.jsonl`: one JSON object a line, a line for each optimizer step and each evaluation."""

import hashlib
import itertools
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roadmap.errors import DataError
from roadmap.files import atomic_write, finite_or_null, fsync, open_regular, read_regular, refuse_pipe
from roadmap.parsing import object_or_none
from roadmap.runs.schema import METRICS, RECORD

KINDS = ("train", "val")
STEP = re.compile(rb'"global_step": ([0-9]{1,12})[,}]')
TRAIN_LINE = b'{"kind": "train"'
NO_LOSS = (b'"train/loss": null', b'"train/loss": NaN')
MAX_BYTES, MAX_LINE = RECORD[METRICS], 2**16  # of a ledger (300 epochs of ImageNet take 0.1 GB), of a line
TAIL_BYTES = 2**16, 2**22  # read at first and at most from the end of a ledger: an epoch of ImageNet is 0.3 MB


def append_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a ledger, one JSON object a line, and make them durable. Raises OSError."""
    refuse_pipe(path)
    with open(path, "a", encoding="utf-8") as out:
        out.writelines(json.dumps(finite_or_null(row), allow_nan=False) + "\n" for row in rows)
        out.flush()
        fsync(out.fileno())


@dataclass
class Metrics:
    """What a `metrics.jsonl` holds: its rows in order, and what is wrong with it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    bad_lines: list[int] = field(default_factory=list)  # counted from 1
    torn: bool = False  # the last line has no end: a writer died in it
    lost_loss: bool = False  # a training loss was not a number
    steps: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # kind -> steps, in their order

    @property
    def problem(self) -> str:
        """Return what is wrong with the ledger of a run that has ended, or nothing."""
        if self.bad_lines or self.torn:
            listed = ", ".join(map(str, self.bad_lines[:5])) or "last"
            return f"{METRICS}: {len(self.bad_lines) + self.torn} corrupt line(s) ({listed})"
        if self.lost_loss:
            return f"{METRICS}: contains a training loss that is not a number"
        for kind, steps in self.steps.items():
            if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
                return f"{METRICS}: {kind} rows are out of order or repeated"
        return ""


def read_metrics(path: Path) -> Metrics:
    """Read a ledger as `parse_metrics` does. Raises OSError."""
    return parse_metrics(read_regular(path, MAX_BYTES))


def parse_metrics(data: bytes, *, train: bool = True) -> Metrics:
    """Return what the bytes of a ledger hold; lines that are not JSON objects are counted, not guessed.

    Without `train` the many lines of training are checked for form and order, and not decoded: a fifth of the time.
    """
    if len(data) > MAX_LINE and b"\n" not in data[:MAX_LINE]:  # zeros of a file that was never written, or a bomb
        return Metrics(bad_lines=[1])
    lines = data.split(b"\n")
    ledger = Metrics(torn=lines.pop() != b"", lost_loss=any(loss in data for loss in NO_LOSS))
    for number, line in enumerate(lines, 1):
        if not train and (step := _train_step(line)) is not None:
            ledger.steps["train"].append(step)
        elif row := parse_row(line):
            ledger.steps[row["kind"]].append(row["global_step"])
            ledger.rows += [row] if train or row["kind"] == "val" else []
        else:
            ledger.bad_lines.append(number)
    return ledger


def _train_step(line: bytes) -> int | None:
    """Return the step of a training line that has the form of `append_metrics`, else None."""
    if not (line.startswith(TRAIN_LINE) and line.endswith(b"}") and line.count(b"{") == 1):
        return None
    found = STEP.search(line)
    return int(found[1]) if found else None


def without_steps(data: bytes) -> bytes:
    """Return the bytes of a ledger without its lines of training."""
    return b"".join(line for line in data.splitlines(keepends=True) if not line.startswith(TRAIN_LINE))


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Return the row that a line of a ledger holds, None where it holds none."""
    row = (object_or_none(line) or {}) if len(line) <= MAX_LINE else {}
    is_row = row.get("kind") in KINDS and isinstance(row.get("global_step"), int)
    return row if is_row and isinstance(row.get("epoch"), int) else None


def last_rows(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last training row and the last evaluation, {} for none, reading no more of a ledger than is needed."""
    size, most = TAIL_BYTES
    while True:
        try:
            with open_regular(path, MAX_BYTES) as ledger:
                end = ledger.seek(0, os.SEEK_END)
                ledger.seek(max(0, end - size))
                train, val = rows_at_end(ledger.read())
        except OSError:
            return {}, {}
        if (train and val) or size >= min(end, most):
            return train, val
        size *= 8


def seconds_past(path: Path, time_s: float) -> float:
    """Return how many seconds a ledger goes past `time_s`, a checkpoint's: what a restart from it does again.

    At least: what a killed run had not written yet is not known.
    """
    last = (row.get("time_s") for row in last_rows(path))
    return max((value - time_s for value in last if isinstance(value, int | float)), default=0.0)


def rows_at_end(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last training row and the last evaluation in the end of a ledger, {} for none."""
    last: dict[str, dict[str, Any]] = {}
    lines = data.splitlines()
    for kind in KINDS:
        rows = (parse_row(line) for line in reversed(lines) if f'"kind": "{kind}"'.encode() in line)
        last[kind] = next(filter(None, rows), {})
    return last["train"], last["val"]


def truncate_metrics(path: Path, global_step: int, epochs_evaluated: int, digest: str | None) -> list[dict[str, Any]]:
    """Drop what came after a checkpoint (it will be written again) and any torn or bad line; return the other rows.

    Raises OSError, and DataError where what is left is not a line for each step and evaluation up to the checkpoint,
    or not what `digest` says was written.
    """
    rows = [
        row
        for row in (read_metrics(path).rows if path.exists() else ())
        if (row["global_step"] <= global_step if row["kind"] == "train" else row["epoch"] <= epochs_evaluated)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    holes = find_hole("step", [row["global_step"] for row in rows if row["kind"] == "train"], global_step)
    holes = holes or find_hole("evaluation", [row["epoch"] for row in rows if row["kind"] == "val"], epochs_evaluated)
    if holes or (digest is not None and hashlib.sha256(text).hexdigest() != digest):
        raise DataError(
            f"{path}: its lines up to the checkpoint of step {global_step} are not those that were written"
            f" ({holes or 'a value has changed'}); fresh=true starts over and sets this aside"
        )
    atomic_write(path, text)
    return rows


def find_hole(what: str, numbers: list[int], last: int) -> str:
    """Return where the numbers of lines are not 1 to `last`, each once and in order, in words; else nothing."""
    count = len(numbers)
    number, found = next(((n, found) for n, found in enumerate(numbers, 1) if n != found), (count + 1, last + 1))
    if found > number:
        return f"{what} {number} is missing" if found == number + 1 else f"{what}s {number} to {found - 1} are missing"
    if number <= count:
        return f"{what} {found} is repeated or out of order"
    return f"{what}s continue to {count}, past {last}" if count > last else ""
