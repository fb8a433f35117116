"""Files that are whole under their name whatever happens: atomic writes, JSON, fsync, and the system's errors in plain words."""

import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roadmap.errors import DiskError


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that under its final name it is whole, whatever happens meanwhile. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def fsync_dir(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file as a whole; a number that is not finite becomes null. Raises OSError."""
    atomic_write(path, (json.dumps(finite_or_null(values), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError (with the file's name) where it is none, OSError where it cannot be read."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # the latter for brackets nested without end
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a JSON object")
    return values


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
