"""What a study records of itself, in `<runs>/<study>/.study/`: its cells as they were resolved, and every job.

Written under a lock, so that two people who type the same command at once make no job twice. Reading needs no lock, no
Hydra and no torch: `make status` answers in a moment.
"""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from roadmap.errors import Busy, ConfigError, DataError, DiskError
from roadmap.files import disk_errors, expand, file_lock, nearby, read_json, read_regular, write_json
from roadmap.parsing import object_or_none
from roadmap.runs.metrics import append_metrics
from roadmap.runs.permissions import make_folder
from roadmap.runs.process import process_start
from roadmap.runs.schema import METRICS, Record, check_record
from roadmap.runs.search import RUN_NAME
from roadmap.text import check_name, reason, utc

if TYPE_CHECKING:  # it needs Hydra
    from roadmap.sweep.study import Cell, Study

NOTES, CELLS, JOBS, PENDING, TUNING = ".study", "cells.json", "jobs.jsonl", "pending.json", "tuning.json"
LOCK_WAIT_S = 120.0  # a submission takes seconds
MAX_CELLS, MAX_STUDY = 10_000, 2**26  # of a study, and bytes of a record of them all: 5 KB each
MAX_JOBS = 2**30  # bytes of what was recorded of all jobs
SCHEMA = 1
KEY = r"^([A-Za-z0-9][A-Za-z0-9_.,=+\[\]-]*/){2}seed\d+$"  # a run's directory in the study
Row = dict[str, Any]  # a line of jobs.jsonl: a job of a cell, or what became of it


class _Recipe(Record):
    epochs: int


class _Config(Record):
    recipe: _Recipe
    data: dict[str, Any] = Field(default_factory=dict)


class CellRecord(Record):
    """A cell in `cells.json`, as it was resolved when it was submitted."""

    key: Annotated[str, Field(pattern=KEY)]
    step: str
    variant: str | None
    seed: int
    config: _Config


class StudyRecord(Record):
    """`cells.json`."""

    cells: list[CellRecord]


Word = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,4096}$")]  # one line of text


class JobRecord(Record):
    """A line of `jobs.jsonl`."""

    cell: str
    kind: Literal["slurm", "local", "ended", "cancelled"]
    job: Word | None = None
    name: Word | None = None
    log: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.,=+\[\]-]{0,254}(/|$)){1,2}$")] | None = None
    host: Word | None = None
    pid: int | None = None
    born: int | None = None
    run_pid: int | None = None
    run_born: int | None = None
    # How a cell was submitted, to do so again; an older record may lack some.
    runs: Word | None = None
    snapshot: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    line: list[str] | None = None
    cluster: dict[str, Any] | None = None
    on_gpu: bool | None = None
    waits: bool | None = None  # its process prepares itself, while others train


class PendingRecord(Record):
    """`pending.json`: the array's name, and the lines that are added to `jobs.jsonl` when it is queued."""

    name: str
    rows: list[JobRecord]


NEEDED = {"slurm": {"job", "name", "log"}, "local": {"job", "log", "host", "pid"}}  # of a line, by its kind


def is_job(row: Row) -> bool:
    """Tell whether a line of `jobs.jsonl` is what a submission or a scheduler writes."""
    try:
        needed = NEEDED.get(JobRecord.model_validate(row).kind, set())
        return all(row.get(key) is not None for key in needed)
    except ValidationError:
        return False


class StudyDir:
    """The folder of one study below the runs directory."""

    def __init__(self, runs: str | Path, name: str) -> None:
        self.name = check_name("STUDY", name)
        self.path = expand(runs).absolute() / name
        self.notes = self.path / NOTES

    def make(self) -> None:
        """Make the folder. Raises DiskError where it cannot be written, Refused where everybody could."""
        make_folder(self.notes, self.path.parent, "RUNS")

    @contextmanager
    def lock(self, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
        """Lock the study while jobs are submitted or recorded; waits for the holder. Raises Busy, DiskError."""
        self.make()
        with file_lock(self.notes / ".lock", f"{self.path}: is being submitted by another process", wait_s):
            yield

    def run_directories(self) -> list[Path]:
        """Return the run directories that have metrics: of a run's name, so none that was set aside or is a copy."""
        found = sorted(file.parent for file in self.path.glob(f"*/*/seed*/{METRICS}"))
        return [run for run in found if RUN_NAME.fullmatch(run.name)]

    def cells(self) -> list[dict[str, Any]]:
        """Return the cells as they were written at submission. Raises DataError where there are none."""
        return list(self.record()["cells"])

    def earlier_cells(self) -> list[dict[str, Any]]:
        """Return the cells of earlier submissions, none where nothing was submitted. Raises DataError."""
        return self.cells() if (self.notes / CELLS).exists() else []

    def record(self) -> dict[str, Any]:
        """Return what was written at submission: cells, and combinations left out. Raises DataError for nothing."""
        try:
            found = read_json(self.notes / CELLS, MAX_STUDY)
            if found.get("schema") != SCHEMA:
                other = f"written in schema {found.get('schema')}, this is {SCHEMA}"
                raise DataError(f"{self.notes / CELLS}: cannot be read ({other})")
            check_record(StudyRecord, found, CELLS)
        except FileNotFoundError:
            hint = "make plan, then make roadmap, with the same STUDY="
            hint += "" if self.path.exists() else nearby(self.path)
            raise DataError(f"{self.path}: no study was submitted there; {hint}") from None
        except (OSError, ValueError) as error:
            again = "; move it away: make roadmap with the same STUDY= and ARGS= writes it again"
            hint = again if isinstance(error, ValueError) else ""
            raise DataError(f"{self.notes / CELLS}: cannot be read ({reason(error)}){hint}") from None
        return found

    def write_cells(self, study: "Study") -> None:
        """Write the study's cells, resolved; submitted cells of other overrides stay. Call it with the study locked.

        Raises ConfigError for more than can be read again, DiskError.
        """
        cells = {cell.key: cell_record(cell) for cell in study.cells}
        jobs = self.jobs()
        earlier = self.earlier_cells()
        found = [*cells.values(), *(cell for cell in earlier if cell["key"] not in cells and cell["key"] in jobs)]
        if len(found) > MAX_CELLS:
            raise ConfigError(f"{self.name}: has {len(found)} cells; a study has {MAX_CELLS} at most")
        values = {
            "schema": SCHEMA,
            "study": study.name,
            "file": str(study.file),
            "left_out": [{"words": list(left.overrides), "reason": left.reason} for left in study.left_out],
            "cells": found,
        }
        with disk_errors(self.notes / CELLS):
            write_json(self.notes / CELLS, values)

    def jobs(self) -> dict[str, list[Row]]:
        """Return what was recorded of each cell, oldest first; a torn line, or one that is none, is passed over."""
        try:
            lines = read_regular(self.notes / JOBS, MAX_JOBS).splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DiskError(f"{self.notes / JOBS}: cannot be read ({reason(error)})") from None
        found: dict[str, list[Row]] = {}
        for row in map(object_or_none, lines):
            if row and is_job(row):
                found.setdefault(row["cell"], []).append(row)
        return found

    def append_jobs(self, rows: Iterable[Row]) -> None:
        """Add to what is recorded of some cells. Call it with the study locked."""
        stamp = {"time": utc(), "host": socket.gethostname(), "uid": os.getuid()}
        path = self.notes / JOBS
        with disk_errors(path):
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                path.open("ab").write(b"\n")  # a killed writer left half a line, or none at all
            append_metrics(path, [{**row, **stamp} for row in rows])

    def pending(self) -> dict[str, Any] | None:
        """Return the submission that was begun and whose end was not recorded, if there is one."""
        try:
            found = read_json(self.notes / PENDING, MAX_STUDY)
            check_record(PendingRecord, found, PENDING)
            return found
        except (OSError, ValueError):
            return None

    def set_pending(self, values: dict[str, Any] | None) -> None:
        """Record that a submission begins, or that it has ended. Call it with the study locked."""
        with disk_errors(self.notes / PENDING):
            if values is None:
                (self.notes / PENDING).unlink(missing_ok=True)
            else:
                write_json(self.notes / PENDING, values)


class Journal:
    """What a scheduler has to record of cells, `(study, key)`; a study that is locked by another process waits."""

    def __init__(self) -> None:
        self.rows: list[tuple[StudyDir, Row]] = []

    def started(self, cells: Iterable[tuple[StudyDir, str]], pid: int, *, waits: bool) -> None:
        """Note the process that runs cells, and whether it waits for others to end first."""
        about = {"run_pid": pid, "run_born": process_start(pid), "waits": waits}
        self.rows += [(study, {"cell": key, **about}) for study, key in cells]

    def ended(self, study: StudyDir, key: str, code: int | None) -> None:
        """Note that a cell has ended, or that it is given back (None)."""
        self.rows.append((study, {"cell": key, "kind": "ended", "exit_code": code}))

    def write(self, wait_s: float = 0.0) -> None:
        """Write what was noted into the studies that are not locked for `wait_s` seconds. Raises DiskError."""
        noted, self.rows = self.rows, []
        for study in {study.path: study for study, _ in noted}.values():
            rows = [row for of, row in noted if of.path == study.path]
            if not study.notes.exists():  # removed: it does not come back
                continue
            try:
                with study.lock(wait_s):
                    jobs = study.jobs()
                    study.append_jobs(
                        row if "kind" in row else jobs[row["cell"]][-1] | row
                        for row in rows
                        if "kind" in row or row["cell"] in jobs
                    )
            except Busy:
                self.rows += [(study, row) for row in rows]


def cell_record(cell: "Cell") -> dict[str, Any]:
    """Return what cells.json holds of a cell."""
    config = cell.config
    return {
        "key": cell.key,
        **{name: getattr(config, name) for name in ("cell", "step", "variant", "label", "seed")},
        "regime": config.regime.name,
        "data": str(config.data.name),
        "words": list(cell.overrides),
        "config": config.values(),
    }


def study_names(args: Iterable[str]) -> list[str]:
    """Return the names of studies that are given by name or by file. Raises ConfigError."""
    names = [check_name("STUDY", Path(arg).stem if arg.endswith(".yaml") else arg) for arg in args]
    if not names:
        raise ConfigError("STUDY=: names no study")
    return list(dict.fromkeys(names))
