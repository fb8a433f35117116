"""Remove the checkpoints that finished runs no longer need: all but the last, which `mode=evaluate` reads.

A run is touched only where it is done and whole, safe, and not locked; only files named like a checkpoint are removed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from roadmap.errors import DiskError, RoadmapError
from roadmap.files import remove
from roadmap.runs import checkpoint
from roadmap.runs.checkpoint_files import list_checkpoints, newest_place, older_files, parse_checkpoint
from roadmap.runs.permissions import refuse_unsafe
from roadmap.runs.progress import size_text
from roadmap.runs.result import load_result
from roadmap.runs.run_dir import RunDir
from roadmap.runs.schema import CHECKPOINTS, STATUS, Status, read_or_empty
from roadmap.sweep.study_dir import StudyDir
from roadmap.text import clean, one_line


@dataclass(frozen=True)
class Surplus:
    """The files of a finished run that nothing reads any more, with their bytes, the older ones first."""

    key: str
    run: Path
    files: dict[Path, int]


def find_surplus(study: StudyDir, echo: Callable[[str], None]) -> list[Surplus]:
    """Return what can be removed of a study's runs; tell which runs are left alone for another reason than their state.

    Raises DataError where there is no run.
    """
    runs = study.run_directories()
    if not runs:
        study.cells()  # says that nothing is there
    found = []
    for run in runs:
        key = clean("/".join(run.parts[-3:]))
        if read_or_empty(Status, run / STATUS).state != "done" or not (files := older_files(run)):
            continue
        if why := reason_to_leave(run):
            echo(f"{key}: skipped, {why}")
        else:
            found.append(Surplus(key, run, files))
    return found


def reason_to_leave(run: Path) -> str:
    """Return why a finished run is not touched; nothing where it may be."""
    links = [part for part in (*reversed(run.parents[:2]), run, run / CHECKPOINTS) if part.is_symlink()]
    links += [path for path in list_checkpoints(run / CHECKPOINTS)[:1] if path.is_symlink()]
    if links:
        return f"{clean(links[0].name)} is a link"
    try:
        refuse_unsafe(run)
        load_result(run)
    except RoadmapError as error:
        return one_line(error, 400)
    status = read_or_empty(Status, run / STATUS)
    if newest_place(run / CHECKPOINTS)[0] != status.step:
        return f"its last checkpoint, of step {status.step}, is not there"
    return ""


def remove_surplus(surplus: Surplus) -> int:
    """Remove the older checkpoints of one run, once its last one is found to be whole; return the bytes.

    Raises Busy, Refused, DataError where the run is not as it was found, or its last checkpoint is broken; DiskError.
    """
    with RunDir(surplus.run).lock():
        if why := reason_to_leave(surplus.run):
            raise RoadmapError(why)
        last = checkpoint.find_newest(surplus.run / CHECKPOINTS)
        if last is None or list(parse_checkpoint(last.path.name) or ()) != newest_place(last.path.parent):
            raise RoadmapError(f"its last checkpoint is not whole ({'; '.join(last.skipped) if last else 'gone'})")
        freed = 0
        for path, size in older_files(surplus.run).items():
            if path in surplus.files:
                if note := remove(path):
                    raise DiskError(note)
                freed += size
    return freed


def as_text(found: list[Surplus]) -> str:
    """Return what would be removed, run by run."""
    lines = []
    for surplus in found:
        names = [path.stem for path in surplus.files if path.suffix == ".pt"]
        size = size_text(sum(surplus.files.values()) / 1e9)
        lines.append(f"{surplus.key}: {size}, {', '.join(names) or 'manifests'}")
    total = size_text(sum(sum(surplus.files.values()) for surplus in found) / 1e9)
    return "\n".join([*lines, f"{total} in {len(found)} finished runs; the last checkpoint of each stays"])


def prune(found: list[Surplus], echo: Callable[[str], None]) -> str:
    """Remove what was found; return a line about it. What is not as it was found is told and left.

    Raises DiskError at the end where files could not be removed.
    """
    freed, left, failed = 0, 0, 0
    for surplus in found:
        try:
            freed += remove_surplus(surplus)
        except RoadmapError as error:
            echo(f"{surplus.key}: skipped, {one_line(error, 400)}")
            left, failed = left + 1, failed + isinstance(error, DiskError)
    line = f"{size_text(freed / 1e9)} removed" + (f"; {left} runs skipped" if left else "")
    if failed:
        raise DiskError(line)
    return line
