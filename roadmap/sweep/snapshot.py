"""The code that a study runs, copied when it is submitted: editing the working tree changes no queued job.

A snapshot is named by what is in it, so typing the command again on the same code makes no second one.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from roadmap.errors import DiskError
from roadmap.files import disk_errors, fsync, temporary, write_json
from roadmap.runs.permissions import refuse_unsafe
from roadmap.runs.provenance import SNAPSHOT, git, git_state
from roadmap.steps.tree import CONF, GROUPS
from roadmap.sweep.study_dir import StudyDir
from roadmap.text import clean

ROOT = CONF.parent
PARTS = ("run.py", "roadmap", "conf", "sweeps")
OWN = "study"  # where a study from outside the repository goes, with its steps
FOLDER = "snapshots"  # below the study's notes


def take_snapshot(directory: StudyDir, study_file: Path) -> Path:
    """Copy the code, and the study's file with its steps, into the study's notes; return the copy. Raises DiskError."""
    files = {name: path.read_bytes() for name, path in sorted(files_to_copy(study_file))}
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name}\0".encode() + data + b"\0")
    snapshots = directory.notes / FOLDER
    snapshot = snapshots / digest.hexdigest()[:16]
    if (snapshot / SNAPSHOT).exists():
        refuse_unsafe(snapshot, directory.path.parent, "RUNS")  # it is run as it lies there
        for name, data in files.items():
            with disk_errors(snapshot / name):
                changed = not (snapshot / name).is_file() or (snapshot / name).read_bytes() != data
            if changed:
                raise DiskError(f"{snapshot / name}: is not what was copied there; remove {snapshot}, and try again")
        remove_others(snapshot, files)
        return snapshot
    try:
        snapshots.mkdir(parents=True, exist_ok=True)
        with temporary(snapshots / "new") as copy:
            for name, data in files.items():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                with open(copy / name, "xb") as out:
                    out.write(data)
                    out.flush()
                    fsync(out.fileno())
            write_json(copy / SNAPSHOT, {**git_state(*PARTS), "source": str(ROOT)})
            os.rename(copy, snapshot)
    except OSError as error:
        if not (snapshot / SNAPSHOT).exists():  # else another study's submission was first
            raise DiskError(f"{snapshots}: the code cannot be copied there ({error.strerror or error})") from None
    return snapshot


def remove_others(snapshot: Path, files: Collection[str]) -> None:
    """Remove what Python compiled of a copy, which it would run in place of the code.

    Raises DiskError for a file that was not copied: the study may come from somebody else, and Python would import it
    before its own modules.
    """
    copied = {*files, SNAPSHOT}
    for folder, folders, names in os.walk(snapshot):
        if Path(folder).name == "__pycache__":
            folders.clear()
            with suppress(OSError):  # another user's, who may put code there anyway
                os.chmod(folder, 0o700)
                shutil.rmtree(folder)
            continue
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for path in (Path(folder, name) for name in (*names, *links)):
            if str(path.relative_to(snapshot)) not in copied:
                raise DiskError(f"{clean(path)}: was not copied there; remove {snapshot}, and try again")


def config_dir(snapshot: Path, study_file: Path) -> Path:
    """Return the folder of the study's file in a snapshot, for `-cd`."""
    return snapshot / ("sweeps" if study_file.parent == ROOT / "sweeps" else OWN)


def files_to_copy(study_file: Path) -> Iterator[tuple[str, Path]]:
    """Yield name in the snapshot and path of each file: what git tracks or would, local settings, the study's own."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS)
    if listed is not None:
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        paths = [ROOT / "run.py", *(path for part in PARTS[1:] for path in (ROOT / part).rglob("*"))]
    paths += (CONF / "local").glob("*.yaml")
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(ROOT)), path
    if study_file.parent != ROOT / "sweeps":
        yield f"{OWN}/{study_file.name}", study_file
        for group in GROUPS:
            for path in (study_file.parent / group).glob("*"):
                if path.suffix in {".yaml", ".csv"} and path.is_file():
                    yield f"{OWN}/{group}/{path.name}", path
