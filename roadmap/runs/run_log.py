"""The file in which a run keeps what it says, `run.log`."""

import logging
from pathlib import Path

from roadmap.files import disk_errors
from roadmap.text import printable_lines

log = logging.getLogger("roadmap")


class LogFormatter(logging.Formatter):
    """Lines and tracebacks without secrets and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return what is written of a record."""
        return printable_lines(super().format(record))


def log_to(path: Path) -> logging.Handler:
    """Let the package's log go to a file. Raises DiskError."""
    with disk_errors(path):
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(LogFormatter("%(asctime)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    return handler
