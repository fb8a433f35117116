"""`python -m roadmap.training FILE`: train the runs of a file side by side, for `make roadmap CLUSTER=local`.

FILE is JSON: `{"share": 0.1, "runs": [{"config": {...}, "log": PATH, "compile": bool}, ...]}`. Each run's lines go to
its log; how it ended goes to stdout, a line of JSON each: `{"run": 0, "code": 0}`. A line on stdin opens the gate at
which the group waits once it is prepared; the end of stdin without one ends the group. Until then it takes at most a
`share` of the GPU's memory, which others train on.
"""

import atexit
import os
import sys

from roadmap.distributed.cores import limit_threads
from roadmap.distributed.signals import ignore_stops, leave_at_once

if __name__ == "__main__":  # the imports below take seconds: whoever stops the group meanwhile is answered
    leave_at_once(silent=True)
    atexit.register(ignore_stops)
    limit_threads()

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in run.py
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import atexit
import gc
import json
import select
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from roadmap.config.schema import Config
from roadmap.distributed.signals import StopSignal
from roadmap.errors import ConfigError, RoadmapError, StoppedEarly, exit_code
from roadmap.files import deny_others, read_json
from roadmap.runs.progress import SweepProgress
from roadmap.runs.result import result_line
from roadmap.text import ArgumentParser, command_line, reason
from roadmap.training.group import Group, GroupRun

POLL_S = 0.2


class StdinGate:
    """Opens with the first line on stdin. Before, this process takes at most a share of the GPU's memory."""

    def __init__(self, share: float) -> None:
        self.opened, self._stdin = False, os.dup(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # no process that is started from here reads it
        if not self.is_open() and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(share)

    def is_open(self) -> bool:
        """Tell whether it has opened."""
        return self.opened or self._read(0.0) is True

    def wait(self, stop: StopSignal) -> bool:
        """Wait for it; return whether it has opened: not where a signal has come, or stdin has ended."""
        while stop.signal is None and not self.opened:
            if self._read(POLL_S) is False:
                return False
        return stop.signal is None

    def _read(self, timeout_s: float) -> bool | None:
        """Return whether stdin has a line, False for its end; None where there is neither."""
        if not select.select([self._stdin], [], [], timeout_s)[0]:
            return None
        self.opened = bool(os.read(self._stdin, 1))
        if self.opened and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)
        return self.opened


@command_line
def main(argv: Sequence[str]) -> int:
    """Train the runs of a file; return the worst of their exit codes."""
    options = ArgumentParser(prog="python -m roadmap.training", description="train the runs of a file side by side")
    options.add_argument("file", type=Path, metavar="FILE", help="JSON, as roadmap/training/__main__.py describes it")
    group = read_group(options.parse_args(argv).file)
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever is printed is no report
    deny_others()
    gc.freeze()  # garbage is never looked for among what is imported: 0.2 s in which no step would be launched
    atexit.register(gc.unfreeze)  # else Triton 3.9 takes what it finds at the end for leaks, in many lines
    codes: list[int] = []
    with ExitStack() as stack:
        shared = dict[str, Any]()
        runs = []
        for entry in group["runs"]:
            log = stack.enter_context(Path(entry["log"]).open("a", encoding="utf-8"))
            runs.append(group_run(entry, SweepProgress(out=log, cache=shared)))
        numbers = {run: number for number, run in enumerate(runs)}

        def ended(run: GroupRun, outcome: dict[str, Any] | BaseException) -> None:
            """Write the line that a run ends with, and report it."""
            error = outcome if isinstance(outcome, BaseException) else None
            run.sweep.write(error_text(error) if error else result_line(run.config, outcome))  # type: ignore[arg-type]
            codes.append(exit_code(error))
            with suppress(BrokenPipeError):  # whoever asked is gone; the others are saved all the same
                reports.write(json.dumps({"run": numbers[run], "code": codes[-1]}) + "\n")

        try:
            Group(runs, ended, StdinGate(group["share"])).train()
        except KeyboardInterrupt:
            codes.append(StoppedEarly.code)
    return max(codes, default=0)


def read_group(file: Path) -> dict[str, Any]:
    """Read the file of a group. Raises ConfigError where it is none."""
    try:
        group = read_json(file)
        if not all({"config", "log", "compile"} <= {*entry} for entry in group["runs"]) or "share" not in group:
            raise KeyError
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({reason(error)})") from None
    except (KeyError, TypeError):
        raise ConfigError(f"{file}: must hold `share` and `runs`, each with `config`, `log` and `compile`") from None
    return group


def group_run(entry: dict[str, Any], sweep: SweepProgress) -> GroupRun:
    """Return a run of the file."""
    config = Config(**entry["config"])
    if entry["compile"] and torch.cuda.is_available():
        return GroupRun(config.replace(compile="true"), sweep, uncompiled=config)
    return GroupRun(config, sweep)


def error_text(error: BaseException) -> str:
    """Return the last lines of a run that an error has ended, as `run.py` has them."""
    if isinstance(error, StoppedEarly):
        return f"{error}; run the same command again to continue"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to continue"
    if isinstance(error, RoadmapError):
        return f"error: {error}"
    return "".join(traceback.format_exception(error)).rstrip()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    leave_at_once(code, silent=True)  # all is done: a late signal changes no code
    sys.exit(code)
