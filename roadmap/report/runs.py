"""Collect the runs below some folders: those that count, those not finished, and what is suspect.

Used by `python -m roadmap.report` and the notebook.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roadmap.report.find import Finding, find_runs
from roadmap.report.record import Run, Suspect, Unfinished, read_run


@dataclass(frozen=True)
class Collected:
    """All that lies below the folders: the runs that count, those not finished, and what is suspect and left out."""

    runs: tuple[Run, ...]
    unfinished: tuple[Finding, ...]
    suspect: tuple[Finding, ...]


def collect(roots: Iterable[str | Path]) -> Collected:
    """Read every run below `roots` (a folder of runs, a study, or one run directory); never raises for a bad run."""
    places, suspect = find_runs(roots)
    runs: list[Run] = []
    unfinished: list[Finding] = []
    for place in places:
        try:
            runs.append(read_run(place))
        except Unfinished as reason:
            unfinished.append(Finding(place.shown, str(reason)))
        except Suspect as reason:
            suspect.append(Finding(place.shown, str(reason)))
        except OSError as error:
            suspect.append(Finding(place.shown, f"cannot be read ({error.strerror or type(error).__name__})"))
    for rule in (_one_of_each, _same_settings):
        runs, findings = rule(runs)
        suspect += findings
    return Collected(tuple(runs), tuple(unfinished), tuple(suspect))


def _one_of_each(runs: list[Run]) -> tuple[list[Run], list[Finding]]:
    """Count a run that lies in several folders once if all agree, and not at all if they do not."""
    places: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        places[run.study, run.regime, run.data, run.cell, run.seed].append(run)
    kept, findings = [], []
    for same in places.values():
        if all(run == same[0] for run in same):
            kept.append(same[0])
            findings += [Finding(run.path, f"a copy of {same[0].path}: counted once") for run in same[1:]]
        else:
            values = ", ".join(f"{run.top1:.2f}" for run in same)
            findings += [
                Finding(run.path, f"the same cell and seed is there {len(same)} times (top-1 {values}): none is counted") for run in same
            ]
    return kept, findings


def _same_settings(runs: list[Run]) -> tuple[list[Run], list[Finding]]:
    """Leave out the seeds of a cell that were trained otherwise than most of it: a mean over both would mean nothing."""
    cells: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.study, run.regime, run.data, run.cell].append(run)
    kept, findings = [], []
    for same in cells.values():
        counts = Counter(map(_settings, same))
        usual = max(counts, key=lambda key: (counts[key], key[1] or 0, str(key)))  # of two equal parts the longer training
        for run in same:
            if _settings(run) == usual:
                kept.append(run)
                continue
            names = ("recipe", "epochs", "image_size", "batch_size", "gmacs", "images")
            differs = [f"{n}={a}, not {b}" for n, a, b in zip(names, _settings(run), usual, strict=True) if a != b]
            findings.append(Finding(run.path, f"trained otherwise than the other seeds of {run.cell} ({'; '.join(differs)})"))
    return kept, findings


def _settings(run: Run) -> tuple[str | float | None, ...]:
    gmacs = None if run.gmacs is None else float(f"{run.gmacs:.4g}")
    return run.recipe, run.epochs, run.image_size, run.batch_size, gmacs, run.images
