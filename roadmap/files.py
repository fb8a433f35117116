"""Files that are whole under their name whatever happens: atomic writes, JSON, YAML, locks, the system's errors."""

import errno
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml

from roadmap.errors import Busy, ConfigError, DiskError
from roadmap.text import clean, nearest, one_line, unlike

# What a file system answers that does not know an operation.
NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


# What NAS boxes, macOS, Windows and file systems put among other people's files.
SYSTEM_NAMES = frozenset(
    name.lower()
    for name in (
        *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", ".DS_Store", "__MACOSX", "Icon\r"),
        *("$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found"),
    )
)


def is_system_name(name: str) -> bool:
    """Tell whether a name is one of a system's own, such as `@eaDir`, `$RECYCLE.BIN` or `._image.jpg`."""
    return name.startswith("._") or name.lower() in SYSTEM_NAMES


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that under its final name it is whole, whatever happens meanwhile. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def fsync(handle: int) -> None:
    """Make a file, or the names in a folder, durable; some file systems cannot, and take care of it themselves."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def fsync_dir(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fsync(handle)
    finally:
        os.close(handle)


def expand(path: str | Path) -> Path:
    """Return a path with `~` replaced by a home folder. Raises ConfigError where nobody knows whose."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: there is no home folder of that name; write the path in full") from None


def nearby(path: Path) -> str:
    """Return what lies there instead of a path that leads to nothing: `; FOLDER: did you mean X? There are: ...`."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    try:
        names = sorted(n for n in os.listdir(missing.parent) if not n.startswith(".") and not is_system_name(n))
    except OSError:
        return ""
    there = nearest(clean(missing.name, 80), [clean(name, 80) for name in names], limit=8) if names else "it is empty"
    alike = next((how for name in names if (how := unlike(missing.name, name))), "")
    where = "in this folder" if missing.parent == Path() else clean(missing.parent)
    return f"; {where}: {there}{alike and f' ({alike})'}"


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file as a whole; a number that is not finite becomes null. Raises OSError."""
    atomic_write(path, (json.dumps(finite_or_null(values), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError with the file's name where it is none, OSError where it cannot be read."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # the latter for brackets nested without end
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a JSON object")
    return values


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, {} where there is none that can be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def read_yaml(path: Path) -> Any:
    """Read a YAML file. Raises ValueError (with the file's name) where it is none, OSError where it cannot be read."""
    try:
        return yaml.load(
            path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )  # the C parser, where there is one
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({one_line(error)})") from None


def json_object(line: bytes) -> dict[str, Any] | None:
    """Return the object that a line of JSON holds, None where it holds none: its writer died in it."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def file_lock(path: Path, busy: str, wait_s: float, may_end: Callable[[str], bool] = lambda _: True) -> Iterator[None]:
    """Hold an advisory lock on a file, which names its holder as `process PID on HOST`.

    Another holder is waited for, `wait_s` seconds and while `may_end(holder)`; then Busy says `busy` and who it is.
    Raises DiskError where the file cannot be written or locked.
    """
    try:
        lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, which ends the lock
    except OSError as error:
        raise DiskError(f"{path.parent}: cannot be written ({error.strerror})") from None
    with lock:
        deadline = time.monotonic() + wait_s
        while not _try_lock(lock, path):
            lock.seek(0)
            holder = lock.read().strip()
            if time.monotonic() > deadline or not may_end(holder):
                raise Busy(f"{busy} ({holder})")
            time.sleep(0.1)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def _try_lock(lock: TextIO, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        hint = "; this file system has no locks, take a folder on another, or let it be mounted with flock"
        raise DiskError(
            f"{path.parent}: cannot be locked ({error.strerror}){hint if error.errno in NOT_SUPPORTED else ''}"
        ) from None
    return True


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors while writing a file into a DiskError that names it."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror or error})") from None


def finite_or_null(value: Any) -> Any:
    """Return plain containers with every number that is not finite replaced by None: JSON has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return value
