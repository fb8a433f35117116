"""What is remembered of image sets between runs, in `<runs>/.data`: listings, what a check has opened, its verdicts.

The images may lie on a disk that cannot be written. A file here is whole or it is ignored; nothing in it can run code.
"""

import hashlib
import io
import logging
import os
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roadmap.files import atomic_write, expand, read_json, read_regular, write_json

log = logging.getLogger(__name__)

# A folder that changed this recently may change again within one tick of its clock: not remembered.
SETTLED_NS = 2_000_000_000
Stamp = tuple[int, int, int]


def cache_dir(runs: Path | str) -> Path:
    """Return the folder of what is remembered; no study can have its name."""
    return expand(runs).absolute() / ".data"


def folder_key(folder: Path) -> str:
    """Return a short name for a folder of images, the same by whatever links it is reached."""
    return hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as a whole, behind a hash of them. Raises OSError."""
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, hashlib.sha256(out.getvalue()).digest() + out.getvalue())


def read_arrays(path: Path, kinds: dict[str, str]) -> dict[str, np.ndarray] | None:
    """Read arrays of these names and kinds (`i`, `u`, `S`); None for a file that is missing, damaged or another one."""
    try:
        whole = read_regular(path)
        if hashlib.sha256(memoryview(whole)[32:]).digest() != whole[:32]:
            return None
        with np.load(io.BytesIO(whole[32:]), allow_pickle=False) as file:
            arrays = {name: file[name] for name in kinds}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return arrays if all(arrays[name].dtype.kind == kind for name, kind in kinds.items()) else None


class Listing:
    """The names of the images in each class folder, as they were listed before.

    They count only while the folder is the same and has the same times of change, to the nanosecond; ctime among them,
    which no copying tool can set back. The files' sizes are never remembered: a file overwritten in cache_dir leaves
    its folder's times alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[bytes, tuple[Stamp, list[bytes]]] = {}
        self.listed: dict[bytes, tuple[Stamp, list[bytes]]] = {}
        self.changed = False
        arrays = read_arrays(path, {"folders": "S", "stamps": "i", "counts": "i", "names": "S"})
        if arrays is None or not self._fits(arrays):
            return
        names, ends = arrays["names"].tolist(), np.cumsum(arrays["counts"]).tolist()
        for folder, stamp, first, end in zip(
            arrays["folders"].tolist(), arrays["stamps"].tolist(), [0, *ends], ends, strict=False
        ):
            self.known[folder] = (tuple(stamp), names[first:end])

    @staticmethod
    def _fits(arrays: dict[str, np.ndarray]) -> bool:
        folders, stamps, counts, names = (arrays[name] for name in ("folders", "stamps", "counts", "names"))
        shapes = stamps.shape == (len(folders), 3) and counts.shape == folders.shape and names.ndim == 1
        return shapes and bool((counts > 0).all()) and int(counts.sum()) == len(names)

    def names(self, folder: bytes, stamp: Stamp) -> list[bytes] | None:
        """Return the names in a folder if nothing there has changed since they were listed."""
        before = self.known.get(folder)
        if before is None or before[0] != stamp:
            return None
        self.listed[folder] = before
        return before[1]

    def add(self, folder: bytes, stamp: Stamp, names: Sequence[bytes]) -> None:
        """Remember a folder that was listed just now, unless it changed just now too."""
        if names and time.time_ns() - max(stamp[1:]) > SETTLED_NS:
            self.listed[folder] = (stamp, list(names))
            self.changed = True

    def save(self) -> None:
        """Write what was listed, if anything is new; where that fails, the next start lists again."""
        if not self.changed and self.listed.keys() == self.known.keys():
            return
        rows = sorted(self.listed.items())
        try:
            write_arrays(
                self.path,
                folders=np.array([folder for folder, _ in rows], dtype=None if rows else "S1"),
                stamps=np.array([stamp for _, (stamp, _) in rows], dtype=np.int64).reshape(-1, 3),
                counts=np.array([len(names) for _, (_, names) in rows], dtype=np.int64),
                names=np.array([name for _, (_, names) in rows for name in names], dtype=None if rows else "S1"),
            )
        except OSError as error:
            log.warning(
                "%s: cannot be written (%s); the images are listed anew at every start", self.path, error.strerror
            )


def stamp_of(about: os.stat_result) -> Stamp:
    """Return what changes when an entry of a folder is added, removed, renamed or replaced."""
    return about.st_ino, about.st_mtime_ns, about.st_ctime_ns


def write_verdict(runs: Path | str, fingerprint: str, values: dict[str, Any]) -> None:
    """Keep what a data check came to. Raises OSError."""
    cache_dir(runs).mkdir(parents=True, exist_ok=True)
    write_json(cache_dir(runs) / f"{fingerprint}.json", {**values, "fingerprint": fingerprint})


def checked_on(runs: Path | str, fingerprint: str, rules: int) -> str | None:
    """Return when every image of exactly this set was opened and found whole by these rules, or None."""
    try:
        verdict = read_json(cache_dir(runs) / f"{fingerprint}.json")
    except (OSError, ValueError):
        return None
    whole = all(
        verdict.get(key) == value for key, value in (("fingerprint", fingerprint), ("state", "whole"), ("rules", rules))
    )
    return str(verdict.get("time")) if whole else None
