"""Files that are whole under their name whatever happens: atomic writes, JSON, YAML, locks, the system's errors.

What is read may have been made to do harm: only regular files, of a size, depth and length that ours may have.
"""

import errno
import fcntl
import filecmp
import hashlib
import json
import math
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, TextIO

from roadmap.errors import Busy, ConfigError, DiskError
from roadmap.parsing import parse_json, parse_yaml
from roadmap.text import clean, nearest, one_line, reason, unlike

# What a file system answers that does not know an operation.
NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
MayEnd = Callable[[str], bool]  # of who holds a lock
MAX_JSON, MAX_YAML, MAX_HASHED = 2**22, 2**18, 2**40  # bytes of a record, of a config, of a checkpoint


def remove_temporaries(folder: Path, *names: str) -> list[str]:
    """Remove what killed writers of files of these names (patterns) left; return a line for each that cannot be.

    Only where nobody else writes.
    """
    return [line for name in names for path in folder.glob(f".{name}.*.tmp") if (line := remove(path))]


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield the name under which this process makes a file or a folder before it is whole; in the end nothing has it.

    What killed processes of this host left of the same one goes first: hidden, and as large as a set of images may be.
    """
    start = f".{path.name}.{socket.gethostname()}."
    made = path.with_name(f"{start}{os.getpid()}.tmp")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            pid = entry.name.removeprefix(start).removesuffix(".tmp")
            dead = pid.isdecimal() and (int(pid) == os.getpid() or not Path("/proc", pid).exists())
            if dead and entry.name == f"{start}{pid}.tmp":  # of our number, before the machine or container restarted
                _remove_any(path.with_name(entry.name))
    try:
        yield made
    finally:
        _remove_any(made)


def _remove_any(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove(path)


def remove(path: Path) -> str:
    """Remove a file, if it is there; return in a line why it cannot be, or nothing."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"{path}: cannot be removed ({error.strerror})"
    return ""


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
    with atomic_file(path) as out:
        out.write(data)


@contextmanager
def atomic_file(path: Path, *, new: bool = False) -> Iterator[BufferedRandom]:
    """Open a file to be written, which has its final name once it is whole and on disk; where that fails nothing has.

    A `new` one takes no other file's place: raises FileExistsError where one of other contents is there in the end.
    Raises OSError.
    """
    with temporary(path) as made:
        with open(made, "w+b") as out:
            yield out
            out.flush()
            fsync(out.fileno())
        (_rename_new if new else os.replace)(made, path)
    fsync_dir(path.parent)


def _rename_new(made: Path, path: Path) -> None:
    try:
        os.link(made, path)  # which, unlike renaming, takes no other file's name
    except FileExistsError as error:
        if path.is_symlink() or not filecmp.cmp(made, path, shallow=False):
            raise FileExistsError(error.errno, error.strerror, str(path)) from None
    except OSError as error:
        if error.errno not in (*NOT_SUPPORTED, errno.EPERM):
            raise
        os.replace(made, path)


def fsync(handle: int) -> None:
    """Make a file, or the names in a folder, durable; some file systems cannot, and take care of it themselves."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def deny_others() -> None:
    """Set the umask so that no file of this process is writable for everybody: such files are refused later."""
    os.umask(os.umask(0o077) | stat.S_IWOTH)


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


def same_path(a: str, b: str) -> bool:
    """Tell whether two paths lead to the same place, by links too."""
    return os.path.realpath(os.path.expanduser(a)) == os.path.realpath(os.path.expanduser(b))


def nearby(path: Path) -> str:
    """Return what lies there instead of a path that leads to nothing: `; did you mean X? In FOLDER there are: ...`."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    if os.path.lexists(missing):
        link = f"a link to {clean(os.readlink(missing))}, which is not there" if missing.is_symlink() else ""
        return f"; {clean(missing.name)} is {link or ('a folder' if missing.is_dir() else 'a file')}"
    try:
        names = sorted(n for n in os.listdir(missing.parent) if not n.startswith(".") and not is_system_name(n))
    except OSError:
        return ""
    alike = next((how for name in names if (how := unlike(missing.name, name))), "")
    where = "this folder" if missing.parent == Path() else clean(missing.parent)
    there = nearest(clean(missing.name, 80), [clean(name, 80) for name in names], 8, f"in {where} there are", 0.61)
    return f"; {there if names else f'{where} is empty'}{alike and f' ({alike})'}"


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file as a whole; a number that is not finite becomes null. Raises OSError."""
    atomic_write(path, (json.dumps(finite_or_null(values), indent=2, allow_nan=False) + "\n").encode())


def open_regular(path: Path, limit: int | None = None) -> BufferedReader:
    """Open a regular file of at most `limit` bytes: reading from a pipe or a device may never end. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    about = os.fstat(handle)
    if stat.S_ISREG(about.st_mode) and (limit is None or about.st_size <= limit):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISREG(about.st_mode):
        raise OSError(errno.EFBIG, f"too large, {about.st_size} bytes, at most {limit}", str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def refuse_pipe(path: Path) -> None:
    """Raise OSError for a pipe: opening it to write waits for a reader, and hears no signal meanwhile."""
    if path.is_fifo():
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """Return the bytes of a file as `open_regular` opens it. Raises OSError."""
    with open_regular(path, limit) as file:
        return file.read()


def last_lines(log: Path) -> list[str]:
    """Return the last 64 KiB of a log by lines, of which there is one at least."""
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2**16))
        return file.read().decode("utf-8", "replace").strip().splitlines() or [""]


def last_error(log: Path) -> str:
    """Return the last line of a log that begins as an error does, else its end: libraries go on after one."""
    lines = last_lines(log)
    return next((line for line in reversed(lines) if re.match(r"error: |[\w.]+Error: ", line)), lines[-1])


def sha256_of(path: Path) -> str:
    """Return the hash of a regular file, of which no more than a piece is in memory at once. Raises OSError."""
    with open_regular(path, MAX_HASHED) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError with the file's name where it is none, OSError where it cannot be read."""
    try:
        return parse_json(read_regular(path, limit))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({one_line(error)})") from None


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, {} if none can be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of KEY: VALUE lines. Raises ValueError (with the file's name) where it is none, OSError where it
    cannot be read."""
    try:
        values = parse_yaml(read_regular(path, MAX_YAML).decode())
    except ValueError as error:
        raise ValueError(f"{path}: not YAML ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds no KEY: VALUE lines")
    return values


@contextmanager
def file_lock(path: Path, busy: str, wait_s: float, may_end: MayEnd = lambda _: True) -> Iterator[TextIO]:
    """Hold an advisory lock on a file, which names its holder as `process PID on HOST`.

    Another holder is waited for, `wait_s` seconds and while `may_end(holder)`; then Busy says `busy` and who it is.
    Raises DiskError where the file cannot be written or locked.
    """
    try:
        refuse_pipe(path)
        lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, which ends the lock
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({reason(error)})") from None
    with lock:
        deadline = time.monotonic() + wait_s
        while not _try_lock(lock, path):
            lock.seek(0)
            holder = lock.read().strip()
            if time.monotonic() > deadline or not may_end(holder):
                raise Busy(f"{busy} ({holder})")
            time.sleep(0.1)
        with suppress(OSError):  # on a full disk, where `prune` makes room, nobody learns whose it is
            lock.truncate(0)
            os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield lock


def _try_lock(lock: TextIO, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        why = f"{path.parent}: cannot be locked ({error.strerror})"
        if error.errno in NOT_SUPPORTED:
            why += "; this file system has no locks, take a folder on another, or let it be mounted with flock"
        raise DiskError(why) from None
    return True


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors while writing a file into a DiskError that names it."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror or error})") from None


def is_unwritable(error: BaseException) -> bool:
    """Tell whether an error is of a disk, or a user's share of one, that is full or may not be written to."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def finite_or_null(value: Any) -> Any:
    """Return plain containers with every number that is not finite replaced by None: JSON has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return value
