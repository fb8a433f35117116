"""Two cells, each with one seed or several: in what their configs and machines differ, and what they reached."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from roadmap.config import KEYS, Affects, is_read
from roadmap.config.schema import DERIVED
from roadmap.errors import ConfigError, DataError
from roadmap.files import nearby
from roadmap.report.analyse import statistics
from roadmap.report.analyse.cells import Cell, Gain, cell_of
from roadmap.report.analyse.collect import read_sources
from roadmap.report.analyse.comparability import config_value, count_once
from roadmap.report.analyse.gains import gain_over
from roadmap.report.read.run import Run
from roadmap.runs.archive import find_archive
from roadmap.runs.recorded_run import RecordedRun
from roadmap.runs.search import RUN_NAME, Problem, find_run_directories
from roadmap.text import clean, first_few, nearest, shorten

EFFECTS = {
    Affects.result: "may change the result",
    Affects.rounding: "rounding only",
    Affects.place: "where and how it ran",
}
OF_THE_CELL = {*DERIVED, "seed", "study"} - {"step", "variant"}  # follow from the other keys, or are said at the top
UNKNOWN = "not recorded"
PROVENANCE: dict[str, Callable[[Run], object]] = {
    "study": lambda run: run.study,
    "images": lambda run: run.images,
    "val images": lambda run: run.val_images,
    "hardware": lambda run: run.hardware,
    "precision": lambda run: run.precision,
    "versions": lambda run: run.versions,
    "code": lambda run: run.code,
    "commit": lambda run: run.commit,
    "drift": lambda run: run.drift,
    "resumed with other": lambda run: run.rounding,
}


@dataclass(frozen=True)
class Side:
    """One side of a comparison: what was typed, the cell that it names, and what of it does not count."""

    name: str
    cell: Cell
    first: RecordedRun  # of its first run
    hours: float | None  # by the clock, mean over seeds
    left_out: tuple[Problem, ...]


@dataclass(frozen=True)
class Change:
    """A key that differs, or a part of the provenance, with its values of both sides as text."""

    name: str
    affects: Affects | None  # None for provenance
    a: str
    b: str


@dataclass(frozen=True)
class Comparison:
    """B against A."""

    a: Side
    b: Side
    keys: tuple[Change, ...]
    provenance: tuple[Change, ...]  # those that are recorded, also where both sides have the same
    gain: Gain  # of B over A, not adjusted: one comparison
    paired_seeds: tuple[int, int] | None  # whose nets were compared on the images


def compare(a: Side, b: Side) -> Comparison:
    """Return in what two sides differ, and what B gains over A."""
    gain, seeds = gain_over(b.cell, a.cell, a.name), None
    if gain.only_this is not None:
        seeds = (min(set(a.cell.seeds) & set(b.cell.seeds)),) * 2
    elif (bits := _bits_of_both(a.cell.runs[0], b.cell.runs[0])) is not None:  # the numbers of seeds pair nothing
        found, seeds = statistics.mcnemar(bits[1], bits[0]), (a.cell.seeds[0], b.cell.seeds[0])
        gain = replace(gain, only_this=found.only_this, only_parent=found.only_other, mcnemar_p=found.p)
    return Comparison(a, b, tuple(_changed_keys(a.cell, b.cell)), tuple(_provenance(a.cell, b.cell)), gain, seeds)


def _bits_of_both(a: Run, b: Run) -> tuple[np.ndarray, np.ndarray] | None:
    """Return which images two nets have right; None where they did not see the same."""
    bits = a.correct(), b.correct()
    if bits[0] is None or bits[1] is None or (a.images, a.val_images) != (b.images, b.val_images):
        return None
    return bits[0], bits[1]


def _changed_keys(a: Cell, b: Cell) -> list[Change]:
    runs = (*a.runs, *b.runs)
    lost = sorted({key for run in runs for key in run.config if key not in KEYS})
    changes = []
    for key in (*(key for key in KEYS if key not in OF_THE_CELL), *lost):
        values = [_listed(_value(run, key) for run in cell.runs) for cell in (a, b)]
        if values[0] != values[1]:
            affects = KEYS[key].affects if key in KEYS else Affects.result  # what is not known any more may have
            changes.append(Change(key, affects, *values))
    return changes


def _value(run: Run, key: str) -> str | None:
    return "not read" if key in KEYS and not is_read(key, run.config) else config_value(run, key)


def _provenance(a: Cell, b: Cell) -> list[Change]:
    values = {name: [_listed(map(value, cell.runs)) for cell in (a, b)] for name, value in PROVENANCE.items()}
    return [Change(name, None, *both) for name, both in values.items() if set(both) != {UNKNOWN}]


def _listed(values: Iterable[object]) -> str:
    """Return the values of some runs as text, each once: `0.1`, or `0.1 | 0.2`."""
    texts = {UNKNOWN if value in (None, "") else clean(value) for value in values}
    return shorten(" | ".join(sorted(texts)), 300)


def find_side(name: str, within: str = "") -> Side:
    """Return the finished, sound runs of one cell: a run, or a folder of its seeds, also in an archive.

    A name that is no path is sought among the runs below `within`, as a cell (`gelu`) or a run (`gelu/seed0`). Raises
    ConfigError where there is no such run, or several cells; DataError where no run of it gives a number.
    """
    found, problems = _directories(name, within)
    if not found:
        raise DataError("; ".join(map(str, problems)) or f"{clean(name)}: holds no run")
    runs, unfinished, damaged = read_sources(found)
    runs, copies = count_once(runs)
    left_out = (*problems, *unfinished, *damaged, *copies)
    if not runs:
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise DataError(f"{clean(name)}: no finished, undamaged run; {left_out[0]}{more}")
    cells = sorted({run.name.rpartition("/")[0] for run in runs})
    if len(cells) > 1:
        which = f"contains runs of {len(cells)} cells, and each side must be one; name one of {first_few(cells, 5)}"
        raise ConfigError(f"{clean(name)}: {which}")
    runs.sort(key=lambda run: run.seed)
    directories = {directory.shown: directory for directory in found}
    known = [run.time_s / 3600 for run in runs if run.time_s]
    return Side(name, cell_of(runs), directories[runs[0].path], fmean(known) if known else None, left_out)


def _directories(name: str, within: str) -> tuple[Sequence[RecordedRun], list[Problem]]:
    if not name.strip():
        raise ConfigError("a side is empty; name two runs, or two rows: A=gelu B=kernel_7")
    path, packed = os.path.normpath(name), find_archive(Path(name))
    if os.path.lexists(path) and not packed:
        return find_run_directories([path])
    source = str(packed[0]) if packed else within
    there, problems = find_run_directories([source] if source else [])
    found = [run for run in there if f"/{path}/" in f"/{run.shown}/"]
    if found or (packed and problems):
        return found, problems
    cells = sorted({clean(run.named[1], 80) for run in there})
    cell = next((part for part in reversed(Path(path).parts) if not RUN_NAME.fullmatch(part)), path)
    where = f", and no row of {clean(source)}; {nearest(clean(cell, 80), cells, limit=12)}"
    if not cells:
        empty = f", and no run in {clean(source)}" if source else ""
        where = f"; {problems[0]}" if problems else empty or nearby(Path(path))
    raise ConfigError(f"{clean(name)}: no such run or folder{where}")
