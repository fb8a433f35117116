"""The files of a run directory, on disk or in an archive, checked for size and form: they may be hostile."""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipInfo

import numpy as np

from roadmap.files import read_regular
from roadmap.parsing import AS_WRITTEN, parse_json, parse_yaml
from roadmap.runs.archive import Archive
from roadmap.runs.metrics import TAIL_BYTES, Metrics, last_rows, parse_metrics, rows_at_end
from roadmap.runs.result import changed_files
from roadmap.runs.schema import CONFIG, CORRECT, METRICS, RECORD, STATUS, SUMMARY
from roadmap.text import clean, reason

# What numpy writes before a row of unsigned numbers.
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(\|u1|<u2|<u4)', 'fortran_order': False, 'shape': \(([0-9]{1,8}),\), \} {0,99}\n",
    re.DOTALL,
)


class Suspect(ValueError):
    """This run gives no number: its record is broken or contradicts itself."""


@dataclass(frozen=True)
class RecordedRun:
    """One run directory and the name under which the user sees it. Every method raises Suspect and OSError."""

    folder: Path
    shown: str  # a member's path follows that of its archive

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

    def has(self, name: str) -> bool:
        """Tell whether there is anything of this name."""
        return os.path.lexists(self.folder / name)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file of the record."""
        return read_regular(self.folder / name, RECORD[name])

    def last_rows(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the last training row and the last evaluation of the ledger, {} for none."""
        return last_rows(self.folder / METRICS)

    def status(self) -> dict[str, Any]:
        """Return `status.json`."""
        return json_object(self._read(STATUS), STATUS)

    def summary(self) -> dict[str, Any] | None:
        """Return `summary.json`; None where there is none."""
        return json_object(self._read(SUMMARY), SUMMARY) if self.has(SUMMARY) else None

    def changed(self, summary: dict[str, Any]) -> list[str]:
        """Return the files that are not as they were when the run ended, as far as its summary has their hashes."""
        return changed_files(summary, self._read)

    def config(self) -> dict[str, Any]:
        """Return the resolved config as dictionaries, lists and strings; nothing in it is ever made into an object."""
        data = self._read(CONFIG)
        try:
            values = parse_yaml(data.decode(), AS_WRITTEN)
        except ValueError as error:
            raise Suspect(f"{CONFIG}: not YAML ({clean(error, 120)})") from None
        if not isinstance(values, dict):
            raise Suspect(f"{CONFIG}: holds no keys")
        return values

    def metrics(self) -> Metrics:
        """Return the evaluations of the ledger, and what is wrong with all of it."""
        return parse_metrics(self._read(METRICS), train=False)

    def bits(self) -> bytes | None:
        """Return the packed bytes in `correct.npy`; None where there is none."""
        return read_bits(self._read(CORRECT)) if self.has(CORRECT) else None

    def classes(self, name: str) -> np.ndarray | None:
        """Return the class numbers in `predictions.npy` or `labels.npy`; None where there is none."""
        return read_numbers(self._read(name), name) if self.has(name) else None

    def _read(self, name: str) -> bytes:
        """Read a file; an error of the system names it."""
        try:
            return self.read(name)
        except FileNotFoundError:
            raise Suspect(f"{name} is missing") from None
        except OSError as error:
            raise Suspect(f"{name}: cannot be read ({reason(error)})") from None


@dataclass(frozen=True)
class ArchivedRun(RecordedRun):
    """A run directory in an archive; `folder` is the archive's path with the run's own behind it."""

    archive: Archive
    members: dict[str, ZipInfo]

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return name in self.members

    def metrics_size(self) -> int:
        """Return how long the ledger is, as the archive lists it; 0 where there is none."""
        return self.members[METRICS].file_size if METRICS in self.members else 0

    def read(self, name: str) -> bytes:
        """Return the bytes of a file of the record."""
        if name not in self.members:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.archive.read(self.members[name], RECORD[name])

    def last_rows(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the last training row and the last evaluation of the ledger, {} for none."""
        try:
            return rows_at_end(self.read(METRICS)[-TAIL_BYTES[1] :])
        except OSError:
            return {}, {}


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """Read a JSON object. Raises Suspect."""
    try:
        return parse_json(data)
    except ValueError as error:
        raise Suspect(f"{name}: not JSON ({clean(error, 120)})") from None


def read_bits(data: bytes) -> bytes:
    """Return the packed bits of a `.npy` file as a run writes it. Raises Suspect.

    Its header is compared with ours, not evaluated: numpy reads a zip, a pickle or endless brackets in its place.
    """
    found = NPY_HEADER.match(data)
    if found is None or found[1] != b"|u1":
        raise Suspect(f"{CORRECT}: does not contain packed bits as a run writes them")
    return read_numbers(data, CORRECT).tobytes()


def read_numbers(data: bytes, name: str) -> np.ndarray:
    """Return the unsigned numbers `(N,)` of a `.npy` file as a run writes it. Raises Suspect. As `read_bits`."""
    found = NPY_HEADER.match(data)
    if found is None:
        raise Suspect(f"{name}: does not contain class numbers as a run writes them")
    dtype = np.dtype(found[1].decode())
    length, numbers = int(found[2]) * dtype.itemsize, memoryview(data)[found.end() :]
    if len(numbers) != length:
        raise Suspect(f"{name}: cannot be read ({len(numbers)} bytes instead of {length})")
    return np.frombuffer(numbers, dtype)
