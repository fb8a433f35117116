"""Every run below some folders and in some archives, a line each: how it stands, its accuracy, when, where.

Read are each run's status, and then its summary, or the config and the end of the ledger of one that is not done. That
is enough to list it, and less than the report checks before it counts a number.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from roadmap import paper
from roadmap.errors import ConfigError, DataError
from roadmap.runs.process import lives
from roadmap.runs.recorded_run import ArchivedRun, RecordedRun, Suspect
from roadmap.runs.schema import METRICS, QUANTITIES, STATUS, SUMMARY, Status, Summary, check_record
from roadmap.runs.search import RUN_NAME, find_run_directories
from roadmap.text import clean, nearest, plain_table, reason, shorten

STATES = ("done", "running", "stopped", "failed", "damaged")
DAMAGED = STATES[-1]
COLUMNS = ("state", "top-1", "epoch", "updated (UTC)")
FILTERS = ("study", "step", "cell", "state", "data", "regime", "seed")


@dataclass(frozen=True)
class ListedRun:
    """One run as its record says it stands; its names are those of its folders. Accuracies in percent."""

    path: str
    study: str = ""
    regime: str = ""
    data: str = ""
    cell: str = ""
    step: str = ""
    seed: int | None = None
    state: str = DAMAGED
    top1: float | None = None  # of the last evaluation
    epoch: int | None = None  # evaluated
    epochs: int | None = None
    updated: str | None = None  # UTC
    reason: str = ""


def list_runs(sources: Sequence[str]) -> list[ListedRun]:
    """Return the runs of some sources by study, data, step and seed; one that cannot be read says why.

    Raises DataError where there is none.
    """
    found, problems = find_run_directories(sources, archives=True)
    if not found:
        raise DataError(str(problems[0]) if problems else f"{clean(', '.join(sources))}: holds no run")
    runs = [ListedRun(clean(problem.path, 500), reason=clean(problem.reason, 300)) for problem in problems]
    runs += map(list_run, found)
    runs.sort(key=lambda r: (r.study, r.regime, r.data, paper.position(r.step, {}), r.cell, r.seed or 0, r.path))
    return runs


def list_run(run: RecordedRun) -> ListedRun:
    """Return how a run stands; never raises for a bad one."""
    known = named(run)
    try:
        return progress(run, known)
    except ValueError as why:
        return replace(known, reason=clean(why, 300))
    except OSError as error:
        return replace(known, reason=f"cannot be read ({reason(error)})")


def named(run: RecordedRun) -> ListedRun:
    """Return what a run's folders say of it."""
    seed, cell, place = run.named
    if not RUN_NAME.fullmatch(seed) or len(seed) > 15:
        return ListedRun(clean(run.shown, 500))
    regime, _, data = place.partition("-")
    study = run.folder.parts[-4] if len(run.folder.parts) > 4 else ""
    step = re.split("[+,]", cell)[0]
    study, regime, data, cell, step = (clean(text, 80) for text in (study, regime, data, cell, step))
    return ListedRun(clean(run.shown, 500), study, regime, data, cell, step, int(seed.removeprefix("seed")))


def progress(run: RecordedRun, known: ListedRun) -> ListedRun:
    """Add how far a run is. Raises ValueError and OSError."""
    status = check_record(Status, run.status(), STATUS)
    if status.state is None:
        raise Suspect(f"{STATUS}: has no state")
    if status.state == "done":
        if (values := run.summary()) is None:
            raise Suspect(f"done, but there is no {SUMMARY}")
        summary = check_record(Summary, values, SUMMARY)
        state, why, epoch, epochs, top1 = "done", "", summary.epoch, summary.epochs, summary.top1
    else:
        state, why = _unfinished(run, status)
        recipe = run.config().get("recipe")
        text = str(recipe.get("epochs", "")) if isinstance(recipe, dict) else ""
        epochs = int(text) if re.fullmatch("[0-9]{1,9}", text) else None
        first, last = run.last_rows()
        why = why or ("no step yet" if state == "running" and not first else "")
        epoch = max([number for number in (last.get("epoch"), status.epoch) if number is not None], default=None)
        top1 = _percent(last.get("val/top1"))
    updated = _minute(status.updated)
    return replace(known, state=state, reason=why, epoch=epoch, epochs=epochs, top1=top1, updated=updated)


def _unfinished(run: RecordedRun, status: Status) -> tuple[str, str]:
    """Return the state of a run that is not done, and why."""
    if status.state in ("stopped", "failed"):
        return status.state, status.reason or ""
    if isinstance(run, ArchivedRun):
        return "running", "when it was packed"
    alive = lives(status.host, status.pid, status.pid_start)
    if alive is None:
        return "running", f"on {status.host}, by its own record" if status.host else ""
    return ("running", "") if alive else ("failed", "killed: its process is gone")


def _percent(value: Any) -> float | None:
    """Return an accuracy in the ledger. Raises Suspect where it is none."""
    if value is None or (type(value) in (int, float) and 0 <= value <= 100):
        return value
    raise Suspect(f"{METRICS}: top1={clean(value, 20)} is not a percentage")


def _minute(text: str | None) -> str | None:
    """Return a time of a record to the minute; None for none."""
    try:
        return datetime.fromisoformat(text or "").strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return None


def select(runs: Sequence[ListedRun], wanted: dict[str, Sequence[str]]) -> list[ListedRun]:
    """Return the runs that have one of the wanted values in every filter. Raises ConfigError for one that none has."""
    for name, values in wanted.items():
        there = {str(getattr(run, name)) for run in runs if getattr(run, name) not in ("", None)}
        there |= set(STATES if name == "state" else ())
        if missing := [value for value in values if value not in there]:
            listed = nearest(missing[0], sorted(there), limit=12)
            raise ConfigError(f"--{name} {clean(missing[0], 80)}: no run here has it; {listed}")
    return [run for run in runs if all(str(getattr(run, name)) in values for name, values in wanted.items() if values)]


def as_text(runs: Sequence[ListedRun], total: int, below: str = "") -> str:
    """Return a table with paths below a folder, and a line that counts; `total` is the number before any filter."""
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    of = f" of {total}" if total != len(runs) else ""
    line = f"{len(runs)}{of} runs: " + (", ".join(f"{n} {state}" for state, n in counts.items() if n) or "none")
    heading = (*COLUMNS, f"run below {clean(below)}" if below else "run")
    table = plain_table([heading, *(table_row(run, below) for run in runs)], right=(1, 2))
    return f"{table}\n{line}" if runs else line


def table_row(run: ListedRun, below: str) -> tuple[str, ...]:
    """Return a run as text."""
    epochs = "" if run.epoch is None else f"{run.epoch}/{run.epochs or '?'}"
    path = run.path.removeprefix(f"{below.rstrip('/')}/") if below else run.path
    path += f": {run.reason}" if run.reason else ""
    return run.state, QUANTITIES["top1"].text(run.top1), shorten(epochs, 12), run.updated or "", path
