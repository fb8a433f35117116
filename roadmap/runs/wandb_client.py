"""W&B's client and the process that it starts: without telemetry, in bounded time, silent on our terminal."""

import functools
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_S = 40.0  # until the process has started: the client itself gives it 30
END_S = 5.0  # until the process, which has nothing left to send, is killed
FREE_S = 1.0  # a call as short as this is work, no wait


class Budget:
    """The seconds that W&B may still cost. Each call runs in a thread of its own, so that one that hangs can be left.

    Calls that take no longer than a moment cost nothing: a long run makes thousands of them.
    """

    def __init__(self, seconds: float) -> None:
        self.left_s = seconds

    def call(self, function: Callable[..., Any], *args: Any, limit_s: float = float("inf")) -> Any:
        """Return what a call returns, or raise what it raises. Raises TimeoutError where it takes too long."""
        outcome: list[tuple[Any, BaseException | None]] = []

        def work() -> None:
            try:
                outcome.append((function(*args), None))
            except BaseException as error:
                outcome.append((None, error))

        began, limit_s = time.monotonic(), min(limit_s, self.left_s)
        thread = threading.Thread(target=work, name="wandb", daemon=True)
        thread.start()
        thread.join(limit_s)
        spent = time.monotonic() - began
        self.left_s -= spent if spent > FREE_S else 0.0
        if not outcome:
            raise TimeoutError(f"no answer within {limit_s:.0f} s")
        value, error = outcome[0]
        if error is not None:
            raise error
        return value


def import_wandb() -> Any:
    """Import W&B, without the reports of its own errors and times that it would send home.

    Half a second that a run without it need not wait. Its client prints WANDB_BASE_URL and writes it into its own log,
    in the run directory: a password goes first. The server was never asked with it, but with the key.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if (url := os.environ.get("WANDB_BASE_URL")) and "@" in url:
        os.environ["WANDB_BASE_URL"] = re.sub(r"(?<=://)[^/@]*@", "", url)
    import wandb

    return wandb


def quiet_settings(init_s: float, finish_s: float) -> dict[str, Any]:
    """Return the settings of our W&B runs, which wait this long for start and end, print nothing, and send neither
    the command line nor the user."""
    return {
        "console": "off",
        "silent": True,
        "disable_git": True,
        "save_code": False,
        "init_timeout": init_s,
        "finish_timeout": finish_s,
        "finish_timeout_raises": False,
        "x_disable_meta": True,  # the command line, the user: system metrics go, these do not
    }


def start_service(log: Path = Path(os.devnull), **settings: Any) -> None:
    """Start W&B's process, unless it runs; what it would write on our terminal goes to a file.

    It writes there when it crashes, when it cannot keep its own log, and after our last line. Raises TimeoutError where
    it does not start, and whatever W&B raises: one that lacks memory lets the client wait for itself without end.
    """
    if not sys.stdin or not sys.stdin.isatty() or not sys.stdout.isatty():  # who can answer is asked for a login
        os.environ.setdefault("WANDB_SILENT", "true")
    cache = os.environ.get("WANDB_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not _writable(Path(cache)):
        os.environ["WANDB_CACHE_DIR"] = _scratch().name
    wandb = import_wandb()
    with _stderr_to(log):
        try:
            Budget(START_S).call(wandb.setup, wandb.Settings(silent=True, **settings))
        except TimeoutError:
            raise TimeoutError(f"its process has not started in {START_S:.0f} s; does it lack memory?") from None
    _end_service_with_main_thread()


@functools.cache
def _end_service_with_main_thread() -> None:
    """End W&B's process before its own hook at exit does, which waits as long as it takes.

    A hook of ours that ends it first is too late: since Python 3.14 it cannot take back theirs, which then fails. And
    since Python 3.12 no thread can be started any more once the main thread has ended, so the one for this waits.
    """
    main_thread = threading.main_thread()

    def end_in_time() -> None:
        main_thread.join()
        _teardown()

    def end() -> None:
        main_thread.join()
        _join_or_kill(ending)

    ending = threading.Thread(target=end_in_time, daemon=True)
    ending.start()
    threading.Thread(target=end, name="end of W&B").start()


def end_service() -> None:
    """End W&B's process, which is no longer of use, at once and without a word."""
    if "wandb" not in sys.modules:
        return
    _kill_service()
    ending = threading.Thread(target=_teardown, daemon=True)
    ending.start()
    _join_or_kill(ending)


def _join_or_kill(ending: threading.Thread) -> None:
    """Wait until W&B's process has ended, which it does by itself within seconds, or never."""
    ending.join(END_S)
    if ending.is_alive():
        _kill_service()
        ending.join(END_S)


def _teardown() -> None:
    with suppress(Exception, SystemExit):  # the latter where the process did not end well
        import_wandb().teardown()


def _kill_service() -> None:
    for children in Path("/proc/self/task").glob("*/children"):  # of this process, by the thread that started them
        with suppress(OSError):
            for pid in children.read_text().split():
                if Path("/proc", pid, "comm").read_text().strip() == "wandb-core":
                    os.kill(int(pid), signal.SIGKILL)


@contextmanager
def staging_below(folder: Path) -> Iterator[None]:
    """Let W&B keep in a folder what it sends later: its own place, in the home, may be full, or not there at all."""
    given = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = given or str(folder)
    try:
        yield
    finally:
        if given is None:
            del os.environ["WANDB_DATA_DIR"]


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that is there until this process ends."""
    return tempfile.TemporaryDirectory()


def _writable(folder: Path) -> bool:
    """Tell whether a folder can be written, or made."""
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    return os.access(folder, os.W_OK)


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Let what writes to stderr, processes started meanwhile included, write to a file."""
    sys.stderr.flush()
    ours = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)
