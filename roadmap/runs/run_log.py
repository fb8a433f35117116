"""The file in which a run keeps what it says, `run.log`."""

import logging
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

from roadmap.files import refuse_pipe
from roadmap.text import printable_lines

log = logging.getLogger("roadmap")
# The log of the run that is executing, where several train side by side; None in threads of no run.
current: ContextVar["LogFile | None"] = ContextVar("current", default=None)


class LogFormatter(logging.Formatter):
    """Lines and tracebacks without secrets and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return what is written of a record."""
        return printable_lines(super().format(record))


class LogFile(logging.FileHandler):
    """Keeps the package's log in a file, until it is closed.

    Lines that cannot be written are lost: a full disk is reported where the run's own files are written.
    """

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError."""
        refuse_pipe(path)
        super().__init__(path, encoding="utf-8")
        self.setFormatter(LogFormatter("%(asctime)s %(message)s"))
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(self)
        current.set(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the lines of this run alone."""
        return current.get() in (None, self) and bool(super().filter(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Do nothing."""

    def close(self) -> None:
        """Take no more lines."""
        log.removeHandler(self)
        current.set(None)
        with suppress(OSError):
            super().close()
