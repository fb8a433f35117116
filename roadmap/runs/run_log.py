"""The file in which a run keeps what it says, `run.log`."""

import logging
from contextlib import suppress
from pathlib import Path

from roadmap.text import printable_lines

log = logging.getLogger("roadmap")


class LogFormatter(logging.Formatter):
    """Lines and tracebacks without secrets and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return what is written of a record."""
        return printable_lines(super().format(record))


class LogFile(logging.FileHandler):
    """Keeps the package's log in a file, until it is closed.

    Lines that the disk does not take are lost: whoever writes what a run needs says that the disk is full.
    """

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError."""
        super().__init__(path, encoding="utf-8")
        self.setFormatter(LogFormatter("%(asctime)s %(message)s"))
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(self)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Do nothing."""

    def close(self) -> None:
        """Take no more lines."""
        log.removeHandler(self)
        with suppress(OSError):
            super().close()
