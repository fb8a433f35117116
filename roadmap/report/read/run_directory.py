"""The files of a run directory, each checked for size and form: whoever wrote them may mean harm."""

import io
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from roadmap.runs.metrics import Metrics, read_metrics
from roadmap.runs.result import changed_files
from roadmap.runs.schema import CONFIG, CORRECT, METRICS, STATUS, SUMMARY

# Bytes; a larger file was not written by a run.
MAX_CONFIG, MAX_JSON, MAX_METRICS, MAX_BITS = 2**18, 2**22, 2**30, 2**22
MAX_ALIASES = 16  # in a config: each may double what it stands for
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
        return json_object(self._read(SUMMARY, MAX_JSON), SUMMARY) if (self.folder / SUMMARY).exists() else None

    def changed(self, summary: dict[str, Any]) -> list[str]:
        """Return the files that are not as they were when the run ended, as far as its summary has their hashes."""
        limits = {CONFIG: MAX_CONFIG, METRICS: MAX_METRICS, CORRECT: MAX_BITS}
        return changed_files(summary, lambda name: self._read(name, limits[name]))

    def config(self) -> dict[str, Any]:
        """Return the resolved config as dictionaries, lists and strings; nothing in it is ever made into an object."""
        text = self._read(CONFIG, MAX_CONFIG)
        try:
            if sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, LOADER)) > MAX_ALIASES:
                raise Suspect(f"{CONFIG}: names the same part more than {MAX_ALIASES} times")
            values = yaml.load(text, LOADER)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise Suspect(f"{CONFIG}: not YAML") from None
        if not isinstance(values, dict):
            raise Suspect(f"{CONFIG}: holds no keys")
        return values

    def metrics(self) -> Metrics:
        """Return the evaluations of the ledger, and what is wrong with all of it."""
        self._check(METRICS, MAX_METRICS)
        return read_metrics(self.folder / METRICS, train=False)

    def bits(self) -> bytes | None:
        """Return the packed bytes in `correct.npy`; None where there is none."""
        return read_bits(self._read(CORRECT, MAX_BITS)) if (self.folder / CORRECT).exists() else None

    def _read(self, name: str, limit: int) -> bytes:
        self._check(name, limit)
        return (self.folder / name).read_bytes()

    def _check(self, name: str, limit: int) -> None:
        """Raise Suspect unless a file is a regular one of at most `limit` bytes (a pipe would block for ever)."""
        try:
            about = (self.folder / name).stat()
        except FileNotFoundError:
            raise Suspect(f"{name} is missing") from None
        if not stat.S_ISREG(about.st_mode):
            raise Suspect(f"{name} is not a file")
        if about.st_size > limit:
            raise Suspect(f"{name} is too large to be a run's ({about.st_size} bytes)")


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """Read a JSON object. Raises Suspect."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:  # the latter for brackets nested without end
        raise Suspect(f"{name}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise Suspect(f"{name}: not a JSON object")
    return values


def read_bits(data: bytes) -> bytes:
    """Read the packed bits of a `.npy` file; nothing in it is ever made into an object. Raises Suspect."""
    try:
        bits = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError) as error:
        raise Suspect(f"{CORRECT}: cannot be read ({type(error).__name__})") from None
    if not isinstance(bits, np.ndarray) or bits.dtype != np.uint8 or bits.ndim != 1:
        raise Suspect(f"{CORRECT}: holds no packed bits")
    return bits.tobytes()
