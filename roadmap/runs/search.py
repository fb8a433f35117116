"""Find run directories below the folders, and in the archives, that a user names."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from roadmap.errors import DataError
from roadmap.files import is_system_name, nearby
from roadmap.runs.archive import SUFFIX, find_archive, list_archive
from roadmap.runs.recorded_run import ArchivedRun, RecordedRun
from roadmap.runs.schema import CONFIG, METRICS, STATUS, SUMMARY
from roadmap.text import clean, nearest

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


def find_run_directories(roots: Iterable[str], *, archives: bool = False) -> tuple[list[RecordedRun], list[Problem]]:
    """Return the run directories at any depth below `roots`, each once, and what could not be searched.

    A root is a folder, an archive, or a folder within one; where a study's folder is gone, `make pack` may have left
    its archive beside it. Archives that lie in folders count only where `archives`.
    Links are followed and each folder is entered once; nothing inside a run directory is searched.
    """
    found: list[RecordedRun] = []
    problems: list[Problem] = []
    seen: set[tuple[int, int, str]] = set()
    for root in roots:
        if not os.path.lexists(root) and os.path.isfile(packed := root.rstrip("/") + SUFFIX):
            root = packed
        waiting = [(Path(os.path.realpath(root)), root)]
        while waiting:
            folder, shown = waiting.pop()
            archive, within = find_archive(folder) or (None, "")
            try:
                about = os.stat(archive or folder)
                if (about.st_dev, about.st_ino, within) in seen:
                    continue
                seen.add((about.st_dev, about.st_ino, within))
                if archive:
                    found += runs_of_archive(archive, within, os.path.normpath(shown))
                    continue
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except (DataError, OSError) as error:
                problems.append(Problem(shown, _reason(error, folder) if isinstance(error, OSError) else str(error)))
                continue
            if len(seen) > MAX_FOLDERS:
                problems.append(Problem(root, f"holds more than {MAX_FOLDERS} folders: the rest was not searched"))
                return found, problems
            if _is_run(folder.name, {entry.name for entry in entries}):
                found.append(RecordedRun(folder, shown))
            else:
                inner = [entry for entry in reversed(entries) if _enter(entry, archives)]
                for entry in inner:
                    real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    waiting.append((Path(real), os.path.join(shown, entry.name)))
    return found, problems


def runs_of_archive(path: Path, within: str, shown: str) -> list[RecordedRun]:
    """Return the run directories below a folder within an archive. Raises DataError where it is none that is safe."""
    archive, folders = list_archive(path)
    runs: set[str] = set()
    for folder in sorted(folders):
        parts = folder.split("/")
        passed_over = any(PASSED_OVER.fullmatch(part) or is_system_name(part) for part in parts)
        in_a_run = any("/".join(parts[:n]) in runs for n in range(1, len(parts)))
        if not passed_over and not in_a_run and _is_run(parts[-1], set(folders[folder])):
            runs.add(folder)
    below = sorted(run for run in runs if f"{run}/".startswith(f"{within}/" if within else ""))
    if within and not below:
        there = sorted({"/".join(run.split("/")[: within.count("/") + 1]) for run in runs})
        raise DataError(f"no such folder in this archive; {nearest(clean(within), map(clean, there), limit=8)}")
    stem = shown.removesuffix(within).rstrip("/")
    return [ArchivedRun(path / run, os.path.join(stem, run), archive, folders[run]) for run in below]


def _is_run(folder: str, names: set[str]) -> bool:
    return bool(names & {STATUS, SUMMARY, METRICS}) or (CONFIG in names and bool(RUN_NAME.fullmatch(folder)))


def _enter(entry: os.DirEntry[str], archives: bool) -> bool:
    if PASSED_OVER.fullmatch(entry.name) or is_system_name(entry.name):
        return False
    # os.path.isdir is False for a link that leads to itself, where DirEntry.is_dir raises.
    return os.path.isdir(entry.path) or (archives and entry.name.endswith(SUFFIX) and os.path.isfile(entry.path))


def _reason(error: OSError, folder: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return f"no such folder{nearby(folder)}"
    if isinstance(error, NotADirectoryError):
        return f"is neither a folder nor an archive ({SUFFIX})"
    return f"cannot be read ({error.strerror or type(error).__name__})"
