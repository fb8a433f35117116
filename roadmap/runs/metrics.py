"""The ledger of a run, `metrics.jsonl`: one JSON object a line, a line for each optimizer step and each evaluation."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roadmap.errors import DataError
from roadmap.files import atomic_write, finite_or_null, json_object

KINDS = ("train", "val")
TAIL_BYTES = 2**16, 2**22  # read at first and at most from the end of a ledger: an epoch of ImageNet is 0.3 MB


def append_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a ledger, one JSON object a line, and make them durable. Raises OSError."""
    with open(path, "a", encoding="utf-8") as out:
        out.writelines(json.dumps(finite_or_null(row), allow_nan=False) + "\n" for row in rows)
        out.flush()
        os.fsync(out.fileno())


@dataclass
class Metrics:
    """What a `metrics.jsonl` holds: its rows in order, and what is wrong with it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    bad_lines: list[int] = field(default_factory=list)  # counted from 1
    torn: bool = False  # the last line has no end: a writer died in it


def read_metrics(path: Path) -> Metrics:
    """Read a ledger; lines that are not JSON objects are counted, not guessed. Raises OSError."""
    ledger = Metrics()
    text = path.read_bytes()
    lines = text.split(b"\n")
    ledger.torn = lines.pop() != b""
    for number, line in enumerate(lines, 1):
        if row := parse_row(line):
            ledger.rows.append(row)
        else:
            ledger.bad_lines.append(number)
    return ledger


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Return the row that a line of a ledger holds, None where it holds none."""
    row = json_object(line) or {}
    return row if isinstance(row.get("global_step"), int) and row.get("kind") in KINDS else None


def last_rows(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last training row and the last evaluation, {} for none, reading no more of a ledger's end than is needed."""
    size, most = TAIL_BYTES
    while True:
        try:
            with open(path, "rb") as ledger:
                end = ledger.seek(0, os.SEEK_END)
                ledger.seek(max(0, end - size))
                lines = ledger.read().splitlines()
        except OSError:
            return {}, {}
        train, val = (_last_row(lines, kind) for kind in KINDS)
        if (train and val) or size >= min(end, most):
            return train, val
        size *= 8


def _last_row(lines: list[bytes], kind: str) -> dict[str, Any]:
    mark = f'"kind": "{kind}"'.encode()
    rows = (parse_row(line) for line in reversed(lines) if mark in line)
    return next((row for row in rows if row), {})


def truncate_metrics(path: Path, global_step: int, epochs_evaluated: int, digest: str | None = None) -> None:
    """Drop what came after a checkpoint (it will be written again) and any torn or bad line.

    Raises OSError, and DataError where what is left is not what `digest` says was written up to the checkpoint.
    """
    rows = [
        row
        for row in (read_metrics(path).rows if path.exists() else ())
        if (row["global_step"] <= global_step if row["kind"] == "train" else row["epoch"] <= epochs_evaluated)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if digest is not None and hashlib.sha256(text).hexdigest() != digest:
        raise DataError(
            f"{path}: its lines up to the checkpoint of step {global_step} are not those that were written"
            f"{_first_hole(rows)}; fresh=true starts over and keeps this aside"
        )
    atomic_write(path, text)


def _first_hole(rows: list[dict[str, Any]]) -> str:
    """Return where a training line is missing or there twice, in words; nothing where all are there."""
    steps = [row["global_step"] for row in rows if row["kind"] == "train"]
    hole = next((number for number, step in enumerate(steps, 1) if number != step), None)
    return "" if hole is None else f" (step {hole} is missing or there twice)"


def digest_of(path: Path) -> str:
    """Return a hash of a ledger as it is. Raises OSError."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else hashlib.sha256().hexdigest()
