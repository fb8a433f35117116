"""Processes of this host, each told from a later one of the same number by when it began."""

import os
import signal
import socket
from pathlib import Path
from typing import Any


def process_start(pid: Any) -> int | None:
    """Return when a process of this host began, in the kernel's ticks; None where there is none."""
    try:
        text = Path("/proc", str(int(pid)), "stat").read_text()
    except (OSError, ValueError, TypeError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def is_alive(pid: Any, born: int | None) -> bool:
    """Tell whether a process lives, and is the one that began then; an older record does not say when."""
    began = process_start(pid)
    return began is not None and born in (None, began)


def lives(host: str | None, pid: Any, born: int | None) -> bool | None:
    """Tell whether a recorded process lives; None for one of another host, where it cannot be checked."""
    return is_alive(pid, born) if host == socket.gethostname() else None


def terminate(pid: int, born: int | None) -> str:
    """Ask a process to end, if it is still the one that began then; return why it was not asked, or nothing."""
    if not is_alive(pid, born):
        return "has ended"
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return "has ended"
    except PermissionError:
        return "is another user's"
    return ""
