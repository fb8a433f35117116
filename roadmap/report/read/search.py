"""Find run directories below the folders that a user names."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from roadmap.files import is_system_name, nearby
from roadmap.report.read.run_directory import RunDirectory
from roadmap.runs.schema import CONFIG, METRICS, STATUS, SUMMARY
from roadmap.text import clean

RUN_NAME = re.compile(r"seed\d+")
# Set aside by `fresh=true`, W&B's own folders (they hold copies of a run's files), and whatever is hidden.
PASSED_OVER = re.compile(r"seed\d+\.old\d+|(offline-)?run-\d{8}_\d{6}-.+|latest-run|\..*")
MAX_FOLDERS = 200_000  # a link to a whole disk must end some time


@dataclass(frozen=True)
class Problem:
    """A run or a folder that gives no number, and why, in plain words."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{clean(self.path)}: {clean(self.reason, 300)}"


def find_run_directories(roots: Iterable[str]) -> tuple[list[RunDirectory], list[Problem]]:
    """Return the run directories at any depth below `roots`, each once, and what could not be searched.

    Links are followed and each folder is entered once; nothing inside a run directory is searched.
    """
    found: list[RunDirectory] = []
    problems: list[Problem] = []
    seen: set[tuple[int, int]] = set()
    for root in roots:
        waiting = [(Path(os.path.realpath(root)), root)]
        while waiting:
            folder, shown = waiting.pop()
            try:
                about = os.stat(folder)
                if (about.st_dev, about.st_ino) in seen:
                    continue
                seen.add((about.st_dev, about.st_ino))
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                problems.append(Problem(shown, _reason(error, folder)))
                continue
            if len(seen) > MAX_FOLDERS:
                problems.append(Problem(root, f"holds more than {MAX_FOLDERS} folders: the rest was not searched"))
                return found, problems
            if _is_run(folder, {entry.name for entry in entries}):
                found.append(RunDirectory(folder, shown))
            else:
                waiting += [
                    (_real(entry), os.path.join(shown, entry.name)) for entry in reversed(entries) if _enter(entry)
                ]
    return found, problems


def _is_run(folder: Path, names: set[str]) -> bool:
    return bool(names & {STATUS, SUMMARY, METRICS}) or (CONFIG in names and bool(RUN_NAME.fullmatch(folder.name)))


def _enter(entry: os.DirEntry[str]) -> bool:
    # os.path.isdir is False for a link that leads to itself, where DirEntry.is_dir raises.
    return not PASSED_OVER.fullmatch(entry.name) and not is_system_name(entry.name) and os.path.isdir(entry.path)


def _real(entry: os.DirEntry[str]) -> Path:
    return Path(os.path.realpath(entry.path) if entry.is_symlink() else entry.path)


def _reason(error: OSError, folder: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return f"no such folder{nearby(folder)}"
    if isinstance(error, NotADirectoryError):
        return "is not a folder"
    return f"cannot be read ({error.strerror or type(error).__name__})"
