"""Whether others could put files of their own in place of a run's: modes and owners of its folders and files."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from roadmap.errors import ConfigError, DiskError, Refused
from roadmap.files import deny_others

# Folders in a run's or a study's directory; each snapshot is checked by itself.
NOT_LOADED = {"wandb", "snapshots", "logs", "slurm"}


def refuse_unsafe(path: Path, runs: Path | None = None, key: str = "paths.runs") -> None:
    """Raise Refused where anybody on the machine could put files in place of those in a directory, or has done so.

    What counts is each folder on the way, through every link, and each file inside: none is writable for everyone, but
    for folders with the sticky bit (as /tmp), which protect what is in them. What lies below `runs`, the folder that
    the user has chosen, belongs to him, to root, or to an owner of that folder or of one above; a folder that a group
    of his may write is the group's own affair. `key` is what named the directory.
    """
    runs = runs or path.parents[3]
    above = dict.fromkeys(on_the_way(runs))
    trusted = {0, os.geteuid(), *(about.st_uid for folder in above if (about := _stat(folder)))}
    seen: set[Path] = set()
    for inside in (path, *files_inside(path)):
        for part in on_the_way(inside):
            if part in seen or not (about := _stat(part)):  # made later, or told then
                continue
            seen.add(part)
            shown, mode = part.resolve(), f"mode {stat.S_IMODE(about.st_mode):o}"
            protected = stat.S_ISDIR(about.st_mode) and about.st_mode & stat.S_ISVTX
            can_be_loaded = stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode)  # a device is refused in reading
            if about.st_mode & stat.S_IWOTH and can_be_loaded and not protected:
                raise Refused(f"{key}: {shown} is writable by everyone ({mode}); chmod o-w it, or use another")
            strangers = {about.st_uid, part.lstat().st_uid} - trusted  # the latter of a link
            if part not in above and strangers and not _is_of_our_group(part.parent):
                raise Refused(f"{key}: {shown} belongs to another user (uid {strangers.pop()}); use another folder")


def make_folder(path: Path, runs: Path | None = None, key: str = "paths.runs") -> None:
    """Make a folder that nobody but its owner and group can write. Raises Refused as `refuse_unsafe`, DiskError."""
    refuse_unsafe(path, runs, key)
    deny_others()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{key}: {path} cannot be made ({error.strerror})") from None


def on_the_way(path: Path) -> Iterator[Path]:
    """Yield a path and all folders above it, and of every link among them where it leads to, and the folders above."""
    waiting, seen = [path.absolute()], set[Path]()
    while waiting:
        here = waiting.pop()
        for part in (here, *here.parents):
            if part in seen:
                continue
            seen.add(part)
            yield part
            if os.path.islink(part):  # false where a folder may not be entered, which writing there reports
                waiting.append(part.parent / os.readlink(part))


def files_inside(path: Path) -> Iterator[Path]:
    """Yield files and folders at any depth below a directory, but for those that nothing is loaded from."""
    for root, folders, files in os.walk(path):
        folders[:] = [name for name in folders if Path(root) != path or name not in NOT_LOADED]
        yield from (Path(root, name) for name in (*folders, *files))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_of_our_group(folder: Path) -> bool:
    about = _stat(folder)
    groups = {os.getegid(), *os.getgroups()}
    return about is not None and bool(about.st_mode & stat.S_IWGRP) and about.st_gid in groups


def require_folder(text: str) -> Path:
    """Return the folder that --out names. Raises ConfigError for none, DiskError where something is in its way."""
    if not text:
        raise ConfigError("--out '': is empty, perhaps from a variable that is not set; `.` is this folder")
    path = Path(text)
    there = next((part for part in (path, *path.parents) if os.path.lexists(part)), path)
    if os.path.lexists(there) and not there.is_dir():
        raise DiskError(f"--out {path}: cannot be written, {there} is no folder; --out takes a folder")
    return path
