"""The record of a run on disk: `metrics.jsonl` (one JSON object a line), `summary.json` and `status.json`.

Training writes with `append` and `write_json`; the report and W&B read with the rest. Imports no torch.
"""

import json
import math
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METRICS, SUMMARY, STATUS, CONFIG, CORRECT, LOG = (
    "metrics.jsonl",
    "summary.json",
    "status.json",
    "config.yaml",
    "correct.npy",
    "run.log",
)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that under its final name it is whole, whatever happens meanwhile. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file as a whole; a number that is not finite becomes null. Raises OSError."""
    replace_file(path, (json.dumps(_finite(values), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError (with the file's name) where it is none, OSError where it cannot be read."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # the latter for brackets nested without end
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a JSON object")
    return values


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a ledger, one JSON object a line, and make them durable. Raises OSError."""
    with open(path, "a", encoding="utf-8") as out:
        out.writelines(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
        out.flush()
        os.fsync(out.fileno())


@dataclass
class Ledger:
    """What a `metrics.jsonl` holds: its rows in order, and what is wrong with it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    bad_lines: list[int] = field(default_factory=list)  # counted from 1
    torn: bool = False  # the last line has no end: a writer died in it


def read_metrics(path: Path) -> Ledger:
    """Read a ledger; lines that are not JSON objects are counted, not guessed. Raises OSError."""
    ledger = Ledger()
    text = path.read_bytes()
    lines = text.split(b"\n")
    ledger.torn = lines.pop() != b""
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("global_step"), int) and row.get("kind") in {"train", "val"}:
            ledger.rows.append(row)
        else:
            ledger.bad_lines.append(number)
    return ledger


def cut_metrics(path: Path, global_step: int, epochs_evaluated: int) -> None:
    """Drop what came after a checkpoint (it will be written again) and any torn or bad line. Raises OSError."""
    if not path.exists():
        return
    kept = [
        row
        for row in read_metrics(path).rows
        if (row["global_step"] <= global_step if row["kind"] == "train" else row["epoch"] <= epochs_evaluated)
    ]
    replace_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
