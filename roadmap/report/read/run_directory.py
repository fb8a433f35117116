"""The files of a run directory, each checked for size and form: whoever wrote them may mean harm."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from roadmap.files import MAX_JSON, MAX_YAML, read_regular
from roadmap.parsing import parse_json, parse_yaml
from roadmap.runs.metrics import MAX_BYTES, Metrics, read_metrics
from roadmap.runs.result import changed_files
from roadmap.runs.schema import CONFIG, CORRECT, LABELS, METRICS, PREDICTIONS, STATUS, SUMMARY
from roadmap.text import clean, reason

# Bytes of `correct.npy`, and of an array of classes; a larger one was not written by a run.
MAX_BITS, MAX_CLASSES = 2**22, 2**25
# What numpy writes before a row of unsigned numbers.
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(\|u1|<u2|<u4)', 'fortran_order': False, 'shape': \(([0-9]{1,8}),\), \} {0,99}\n",
    re.DOTALL,
)
LOADER = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader  # strings only, and no merge keys


class Suspect(Exception):
    """This run gives no number: its record is broken or contradicts itself."""


@dataclass(frozen=True)
class RunDirectory:
    """One run directory and the name under which the user sees it. Every method raises Suspect and OSError."""

    folder: Path
    shown: str

    @property
    def named(self) -> tuple[str, str, str]:
        """Return what the folders' names say: seed, cell, regime and data."""
        return self.folder.name, self.folder.parent.name, self.folder.parents[1].name

    def metrics_size(self) -> int:
        """Return how long the ledger is, in bytes; 0 where there is none."""
        try:
            return (self.folder / METRICS).stat().st_size
        except OSError:
            return 0

    def status(self) -> dict[str, Any]:
        """Return `status.json`."""
        return json_object(self._read(STATUS, MAX_JSON), STATUS)

    def summary(self) -> dict[str, Any] | None:
        """Return `summary.json`; None where there is none."""
        return json_object(self._read(SUMMARY, MAX_JSON), SUMMARY) if os.path.lexists(self.folder / SUMMARY) else None

    def changed(self, summary: dict[str, Any]) -> list[str]:
        """Return the files that are not as they were when the run ended, as far as its summary has their hashes."""
        limits = {CONFIG: MAX_YAML, METRICS: MAX_BYTES, CORRECT: MAX_BITS}
        limits |= dict.fromkeys((PREDICTIONS, LABELS), MAX_CLASSES)
        return changed_files(summary, lambda name: self._read(name, limits[name]))

    def config(self) -> dict[str, Any]:
        """Return the resolved config as dictionaries, lists and strings; nothing in it is ever made into an object."""
        try:
            values = parse_yaml(self._read(CONFIG, MAX_YAML).decode(), LOADER)
        except ValueError as error:
            raise Suspect(f"{CONFIG}: not YAML ({clean(error, 120)})") from None
        if not isinstance(values, dict):
            raise Suspect(f"{CONFIG}: holds no keys")
        return values

    def metrics(self) -> Metrics:
        """Return the evaluations of the ledger, and what is wrong with all of it."""
        with self._suspect(METRICS):
            return read_metrics(self.folder / METRICS, train=False)

    def bits(self) -> bytes | None:
        """Return the packed bytes in `correct.npy`; None where there is none."""
        return read_bits(self._read(CORRECT, MAX_BITS)) if os.path.lexists(self.folder / CORRECT) else None

    def classes(self, name: str) -> np.ndarray | None:
        """Return the class numbers in `predictions.npy` or `labels.npy`; None where there is none."""
        there = os.path.lexists(self.folder / name)
        return read_numbers(self._read(name, MAX_CLASSES), name) if there else None

    def _read(self, name: str, limit: int) -> bytes:
        with self._suspect(name):
            return read_regular(self.folder / name, limit)

    @contextmanager
    def _suspect(self, name: str) -> Iterator[None]:
        """Let an error of the system name the file."""
        try:
            yield
        except FileNotFoundError:
            raise Suspect(f"{name} is missing") from None
        except OSError as error:
            raise Suspect(f"{name}: cannot be read ({reason(error)})") from None


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """Read a JSON object. Raises Suspect."""
    try:
        values = parse_json(data)
    except ValueError as error:
        raise Suspect(f"{name}: not JSON ({clean(error, 120)})") from None
    if not isinstance(values, dict):
        raise Suspect(f"{name}: not a JSON object")
    return values


def read_bits(data: bytes) -> bytes:
    """Return the packed bits of a `.npy` file as a run writes it. Raises Suspect.

    Its header is compared with ours, not evaluated: numpy reads a zip, a pickle or endless brackets in its place.
    """
    found = NPY_HEADER.match(data)
    if found is None or found[1] != b"|u1":
        raise Suspect(f"{CORRECT}: holds no packed bits as a run writes them")
    return read_numbers(data, CORRECT).tobytes()


def read_numbers(data: bytes, name: str) -> np.ndarray:
    """Return the unsigned numbers `(N,)` of a `.npy` file as a run writes it. Raises Suspect. As `read_bits`."""
    found = NPY_HEADER.match(data)
    if found is None:
        raise Suspect(f"{name}: holds no class numbers as a run writes them")
    dtype = np.dtype(found[1].decode())
    length, numbers = int(found[2]) * dtype.itemsize, memoryview(data)[found.end() :]
    if len(numbers) != length:
        raise Suspect(f"{name}: cannot be read ({len(numbers)} bytes instead of {length})")
    return np.frombuffer(numbers, dtype)
