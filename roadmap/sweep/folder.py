"""What a study keeps about itself, in `<runs>/<study>/.study/`: its cells as they were resolved, and every job ever submitted.

Written under a lock, so that two people who type the same command at once make no job twice. Reading needs no lock, no Hydra and
no torch: `make status` answers in a moment.
"""

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roadmap.errors import Busy, ConfigError, DataError, DiskError
from roadmap.files import disk_errors, read_json, write_json
from roadmap.runs.metrics import append_metrics

if TYPE_CHECKING:
    from roadmap.sweep.study import Study

NOTES, CELLS, JOBS, PENDING = ".study", "cells.json", "jobs.jsonl", "pending.json"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")  # as `roadmap.steps` allows them, without Hydra
LOCK_WAIT_S = 120.0  # a submission takes seconds; one that waits longer says who holds the study
SCHEMA = 1
Record = dict[str, Any]


class StudyDir:
    """The folder of one study below the runs directory."""

    def __init__(self, runs: str | Path, name: str) -> None:
        self.name = check_name(name)
        self.path = Path(runs).expanduser().absolute() / name
        self.notes = self.path / NOTES

    def make(self) -> None:
        """Make the folder. Raises DiskError where it cannot be written."""
        try:
            self.notes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"RUNS={self.path.parent}: {self.notes} cannot be made ({error.strerror})") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study while jobs are submitted or noted; waits for whoever has it. Raises Busy, DiskError."""
        self.make()
        try:
            lock = open(self.notes / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 - closed below, after the lock is gone
        except OSError as error:
            raise DiskError(f"{self.notes}: cannot be written ({error.strerror})") from None
        with lock:
            deadline = time.monotonic() + LOCK_WAIT_S
            while not try_lock(lock.fileno()):
                if time.monotonic() > deadline:
                    lock.seek(0)
                    raise Busy(f"{self.path}: is being submitted by another process ({lock.read().strip()})")
                time.sleep(0.1)
            note_holder(lock.fileno())
            yield

    def cells(self) -> list[Record]:
        """Return the cells as they were written at submission. Raises DataError where there are none."""
        return list(self._cells()["cells"])

    def _cells(self) -> Record:
        try:
            found = read_json(self.notes / CELLS)
        except FileNotFoundError:
            raise DataError(
                f"{self.path}: no study was submitted there; make plan STUDY={self.name}, then make roadmap"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{self.notes / CELLS}: cannot be read ({error})") from None
        if found.get("schema") != SCHEMA:
            raise DataError(f"{self.notes / CELLS}: written in schema {found.get('schema')}, this is {SCHEMA}")
        return found

    def write_cells(self, study: "Study") -> None:
        """Write the study's cells, resolved; cells of earlier submissions with other overrides stay. Call it with the study held."""
        now = {cell.key: cell_record(cell.key, cell.words, cell.config) for cell in study.cells}
        jobs = self.jobs()
        earlier = self.cells() if (self.notes / CELLS).exists() else []
        kept = [cell for cell in earlier if cell["key"] not in now and cell["key"] in jobs]
        left_out = [{"words": list(left.words), "reason": left.reason} for left in study.left_out]
        values = {
            "schema": SCHEMA,
            "study": study.name,
            "file": str(study.file),
            "left_out": left_out,
            "cells": [*now.values(), *kept],
        }
        with disk_errors(self.notes / CELLS):
            write_json(self.notes / CELLS, values)

    def jobs(self) -> dict[str, list[Record]]:
        """Return what was noted of each cell, oldest first; a line that a killed writer tore is passed over."""
        try:
            lines = (self.notes / JOBS).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DiskError(f"{self.notes / JOBS}: cannot be read ({error.strerror})") from None
        found: dict[str, list[Record]] = {}
        for line in lines:
            try:
                row = json.loads(line)
                found.setdefault(row["cell"], []).append(row)
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def note(self, rows: list[Record]) -> None:
        """Add to what is known of some cells. Call it with the study held."""
        about = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": socket.gethostname(),
            "uid": os.getuid(),
        }
        path = self.notes / JOBS
        with disk_errors(path):
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                path.open("ab").write(b"\n")  # a killed writer left half a line, or none at all
            append_metrics(path, [{**row, **about} for row in rows])

    def pending(self) -> Record | None:
        """Return the submission that was begun and whose end was not noted, if there is one."""
        try:
            return read_json(self.notes / PENDING)
        except (OSError, ValueError):
            return None

    def set_pending(self, values: Record | None) -> None:
        """Note that a submission begins, or that it has ended. Call it with the study held."""
        with disk_errors(self.notes / PENDING):
            if values is None:
                (self.notes / PENDING).unlink(missing_ok=True)
            else:
                write_json(self.notes / PENDING, values)


def check_name(name: str) -> str:
    """Return the name of a study. Raises ConfigError for one that is no plain folder name."""
    if not SAFE_NAME.fullmatch(name) or ".." in name:
        raise ConfigError(f"STUDY={name}: a name has letters, digits, '_', '-' and '.', and at most 80 of them")
    return name


def cell_record(key: str, words: Iterable[str], config: Any) -> Record:
    """Return what is kept of a cell."""
    names = ("cell", "step", "variant", "label", "seed")
    about = {name: getattr(config, name) for name in names}
    return {
        "key": key,
        **about,
        "regime": config.regime.name,
        "data": str(config.data.name),
        "words": list(words),
        "config": config.values(),
    }


def try_lock(handle: int) -> bool:
    """Take an advisory lock if it is free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def note_holder(handle: int) -> None:
    """Write into a lock file who holds it."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def study_names(words: Iterable[str]) -> list[str]:
    """Return the names of studies that are given by name or by file. Raises ConfigError."""
    names = [check_name(Path(word).stem if word.endswith(".yaml") else word) for word in words]
    if not names:
        raise ConfigError("STUDY=: names no study")
    return list(dict.fromkeys(names))
