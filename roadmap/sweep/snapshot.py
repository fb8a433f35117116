"""The code that a study runs, copied when it is submitted: editing the working tree cannot change queued or requeued jobs.

A snapshot is named by what is in it, so typing the command again on the same code makes no second one.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from roadmap.errors import DiskError
from roadmap.files import read_json, write_json
from roadmap.runs.provenance import SNAPSHOT as ABOUT
from roadmap.steps.hydra_guard import GROUPS
from roadmap.steps.tree import CONF

ROOT = CONF.parent
PARTS = ("run.py", "roadmap", "conf", "sweeps")
OWN = "study"  # where a study from outside the repository goes, with its steps


def take(snapshots: Path, study: Path) -> Path:
    """Copy the code, and the study's file with its steps, into a folder below `snapshots`; return it. Raises DiskError."""
    files = dict(sorted(_files(study)))
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    place = snapshots / digest.hexdigest()[:16]
    if (place / ABOUT).exists():
        return place
    try:
        snapshots.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=snapshots, prefix=".new-") as temporary:
            copy = Path(temporary) / "code"
            for name, path in files.items():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy / name)
            write_json(copy / ABOUT, {**git_facts(), "source": str(ROOT)})
            os.rename(copy, place)
    except OSError as error:
        if not (place / ABOUT).exists():  # else another study's submission was first
            raise DiskError(f"{snapshots}: the code cannot be copied there ({error.strerror or error})") from None
    return place


def config_dir(snapshot: Path, study: Path) -> Path:
    """Return the folder of the study's file in a snapshot, for `-cd`."""
    return snapshot / ("sweeps" if study.parent == ROOT / "sweeps" else OWN)


def facts(snapshot: Path) -> dict[str, str | bool | None]:
    """Return commit and dirtiness of a snapshot's code, as they were when it was taken."""
    about = read_json(snapshot / ABOUT)
    return {"git_commit": about.get("git_commit"), "git_dirty": about.get("git_dirty")}


def _files(study: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name in the snapshot and the path of every file: what git tracks or would, the local settings, the study's own."""
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS)
    if listed is not None:
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        paths = [
            ROOT / "run.py",
            *(p for part in PARTS[1:] for p in (ROOT / part).rglob("*") if "__pycache__" not in p.parts),
        ]
    paths += (CONF / "local").glob("*.yaml")
    for path in paths:
        if path.is_file():
            yield str(path.relative_to(ROOT)), path
    if study.parent != ROOT / "sweeps":
        yield f"{OWN}/{study.name}", study
        for group in GROUPS:
            for path in (study.parent / group).glob("*"):
                if path.suffix in {".yaml", ".csv"} and path.is_file():
                    yield f"{OWN}/{group}/{path.name}", path


def git_facts() -> dict[str, str | bool | None]:
    """Return the commit of the working tree, and whether what a study runs was changed since; None outside a checkout."""
    changes = _git("status", "--porcelain", "--", *PARTS)
    commit = _git("rev-parse", "HEAD")
    return {"git_commit": commit.strip() if commit else None, "git_dirty": None if changes is None else bool(changes)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
