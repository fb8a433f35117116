"""A run directory as a source of a run's record: its files, each checked for size and form before it is believed.

`roadmap.report.record` asks it the same questions as a run of W&B.
"""

import io
import itertools
import json
import re
import stat
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from roadmap.files import read_json
from roadmap.report.find import Place
from roadmap.runs.schema import CONFIG, CORRECT, METRICS, STATUS, SUMMARY

MAX_CONFIG, MAX_RECORD, MAX_LEDGER, MAX_BITS = (
    2**18,
    2**22,
    2**30,
    2**22,
)  # bytes; a larger file was not written by a run
STEP = re.compile(rb'"global_step": ([0-9]{1,12})[,}]')


class Suspect(Exception):
    """This run gives no number: its record is broken or contradicts itself."""


@dataclass(frozen=True)
class History:
    """What a ledger holds: its evaluations in order, and what is wrong with it (nothing: empty)."""

    evaluations: tuple[dict[str, Any], ...]
    problem: str = ""


@dataclass(frozen=True)
class RunFolder:
    """The record in one run directory. Every method raises Suspect or OSError."""

    place: Place

    @property
    def shown(self) -> str:
        """Return the name under which the user sees the run."""
        return self.place.shown

    @property
    def named(self) -> tuple[str, str, str]:
        """Return what the folders' names say: seed, cell, regime and data."""
        return tuple(path.name for path in (self.place.folder, *self.place.folder.parents[:2]))  # type: ignore[return-value]

    def size(self) -> int:
        """Return how long the ledger is, in bytes; 0 where there is none."""
        try:
            return (self.place.folder / METRICS).stat().st_size
        except OSError:
            return 0

    def status(self) -> dict[str, Any]:
        """Return `status.json`."""
        return record(self.place.folder / STATUS)

    def summary(self) -> dict[str, Any] | None:
        """Return `summary.json`; None where there is none."""
        return record(self.place.folder / SUMMARY) if (self.place.folder / SUMMARY).exists() else None

    def config(self) -> dict[str, Any]:
        """Return the resolved config as dictionaries, lists and strings; nothing in it is ever made into an object."""
        path = self.place.folder / CONFIG
        readable(path, MAX_CONFIG)
        try:
            values = yaml.load(
                path.read_bytes(), Loader=LOADER
            )  # strings only, and no merge keys that grow without end
        except (yaml.YAMLError, ValueError, RecursionError):
            raise Suspect(f"{path.name}: not YAML") from None
        if not isinstance(values, dict):
            raise Suspect(f"{path.name}: holds no keys")
        return values

    def history(self) -> History:
        """Return the evaluations in `metrics.jsonl`."""
        readable(self.place.folder / METRICS, MAX_LEDGER)
        return read_history((self.place.folder / METRICS).read_bytes())

    def bits(self) -> bytes | None:
        """Return the packed bytes in `correct.npy`; None where there is none."""
        path = self.place.folder / CORRECT
        if not path.exists():
            return None
        readable(path, MAX_BITS)
        return read_bits(path.read_bytes())


LOADER = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader


def read_history(data: bytes) -> History:
    """Read a ledger. Evaluations are parsed; the many lines of training are checked for form and order, and for a loss."""
    lines = data.split(b"\n")
    torn = lines.pop() != b""
    bad: list[int] = []
    rows: list[dict[str, Any]] = []
    steps: dict[str, list[int]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        if (
            line.startswith(b'{"kind": "train"')
            and line.endswith(b"}")
            and line.count(b"{") == 1
            and (step := STEP.search(line))
        ):
            steps["train"].append(int(step[1]))
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("global_step"), int) and row.get("kind") in ("train", "val"):
            steps[row["kind"]].append(row["global_step"])
            rows += [row] if row["kind"] == "val" else []
        else:
            bad.append(number)
    if bad or torn:
        shown = ", ".join(map(str, bad[:5])) or "last"
        return History(tuple(rows), f"{METRICS}: {len(bad) + torn} corrupt line(s) ({shown})")
    if b'"train/loss": null' in data or b'"train/loss": NaN' in data:
        return History(tuple(rows), f"{METRICS}: holds a training loss that is not a number")
    return History(tuple(rows), order_problem(steps))


def order_problem(steps: dict[str, list[int]]) -> str:
    """Return what is wrong with the order of a ledger's steps, by kind; nothing where all ascend."""
    for kind, found in steps.items():
        if any(later <= earlier for earlier, later in itertools.pairwise(found)):
            return f"{METRICS}: {kind} rows are not in the order of their steps, or are there twice"
    return ""


def read_bits(data: bytes) -> bytes:
    """Read the packed bits of a `.npy` file; nothing in it is ever made into an object. Raises Suspect."""
    try:
        bits = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError) as error:
        raise Suspect(f"{CORRECT}: cannot be read ({type(error).__name__})") from None
    if not isinstance(bits, np.ndarray) or bits.dtype != np.uint8 or bits.ndim != 1:
        raise Suspect(f"{CORRECT}: holds no packed bits")
    return bits.tobytes()


def flat(values: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, str]]:
    """Yield every value of a config by its dotted key, as text that is the same from YAML and from JSON."""
    for key, value in values.items():
        if isinstance(value, dict) and depth < 20:
            yield from flat(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", plain(value)


def plain(value: Any) -> str:
    """Return a config's value as text: `0.002`, `true`, `null`, `[1, 1, 3, 1]`."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def readable(path: Path, limit: int) -> None:
    """Raise Suspect unless the path is a regular file of at most `limit` bytes (a pipe would block for ever)."""
    try:
        about = path.stat()
    except FileNotFoundError:
        raise Suspect(f"{path.name} is missing") from None
    if not stat.S_ISREG(about.st_mode):
        raise Suspect(f"{path.name} is not a file")
    if about.st_size > limit:
        raise Suspect(f"{path.name} is too large to be a run's ({about.st_size} bytes)")


def record(path: Path) -> dict[str, Any]:
    """Return a JSON object that a run wrote. Raises Suspect."""
    readable(path, MAX_RECORD)
    try:
        return read_json(path)
    except ValueError as error:
        raise Suspect(str(error).replace(str(path), path.name)) from None
