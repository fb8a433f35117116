"""Find run directories below the folders that a user names. Used by `roadmap.report.runs`."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from roadmap.report.text import clean
from roadmap.runs.schema import CONFIG, METRICS, STATUS, SUMMARY

RUN_NAME = re.compile(r"seed\d+")
SET_ASIDE = re.compile(r"seed\d+\.old\d+")  # by `fresh=true`: their owner replaced them
OFFLINE = re.compile(r"run-.+\.wandb")  # the log in an offline directory of W&B
LATEST = "latest-run"  # W&B's second name for one of its directories
MAX_FOLDERS = 200_000  # a link to a whole disk must end some time


@dataclass(frozen=True)
class Finding:
    """A folder that gives no number, and why, in plain words."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{clean(self.path)}: {clean(self.reason, 300)}"


@dataclass(frozen=True)
class Place:
    """A run directory, or an offline directory of W&B: where it really is, and the name under which the user sees it."""

    folder: Path
    shown: str
    offline: bool = False


def find_runs(roots: Iterable[str | Path]) -> tuple[list[Place], list[Finding]]:
    """Return the run directories and W&B's offline ones at any depth below `roots`, each once, and what could not be searched.

    Links are followed and each folder is entered once; folders whose name starts with a dot, and runs set aside by
    `fresh=true`, are not entered.
    """
    places: list[Place] = []
    findings: list[Finding] = []
    seen: set[tuple[int, int]] = set()
    for root in roots:
        waiting = [Place(Path(os.path.realpath(root)), str(root))]
        while waiting:
            place = waiting.pop()
            try:
                about = os.stat(place.folder)
                if (about.st_dev, about.st_ino) in seen:
                    continue
                seen.add((about.st_dev, about.st_ino))
                folders, kind = _look_into(place)
            except OSError as error:
                findings.append(Finding(place.shown, _plain(error)))
                continue
            if len(seen) > MAX_FOLDERS:
                findings.append(Finding(str(root), f"holds more than {MAX_FOLDERS} folders: the rest was not searched"))
                return places, findings
            if kind:
                places.append(replace(place, offline=kind == "offline"))
            else:
                waiting += reversed(folders)
    return places, findings


def _look_into(place: Place) -> tuple[list[Place], str]:
    """Return the folders below a folder by name, and whether it is a `run` directory or an `offline` one. Raises OSError."""
    with os.scandir(place.folder) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    names = {entry.name for entry in entries}
    is_run = bool(names & {STATUS, SUMMARY, METRICS}) or (
        CONFIG in names and RUN_NAME.fullmatch(place.folder.name) is not None
    )
    folders = []
    for entry in entries:
        path = Path(entry.path)
        # os.path.isdir is False for a link that leads to itself, where DirEntry.is_dir raises.
        passed_over = (
            entry.name.startswith(".")
            or SET_ASIDE.fullmatch(entry.name)
            or (entry.name == LATEST and entry.is_symlink())
        )
        if not passed_over and os.path.isdir(path):
            real = Path(os.path.realpath(path)) if entry.is_symlink() else path
            folders.append(Place(real, os.path.join(place.shown, entry.name)))
    return folders, "run" if is_run else "offline" if any(OFFLINE.fullmatch(name) for name in names) else ""


def _plain(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such folder"
    if isinstance(error, NotADirectoryError):
        return "is not a folder"
    return f"cannot be read ({error.strerror or type(error).__name__})"
